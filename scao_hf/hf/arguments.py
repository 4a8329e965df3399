"""From `transformers.TrainingArguments` to an optimizer: the class, its keyword arguments, its parameter groups."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scao_hf.hf.backends import refuse_sharding
from scao_hf.hf.options import optimizer_class, resolve_options
from scao_hf.hf.parameters import parameter_groups

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

UNSET_BETAS = (0.9, 0.999)
"""The defaults of TrainingArguments.adam_beta1 and adam_beta2, which count as not set."""

UNSET_EPS = 1e-8
"""The default of TrainingArguments.adam_epsilon."""

SHARED_FIELDS = {"betas": "adam_beta1, adam_beta2", "eps": "adam_epsilon"}
"""The options that TrainingArguments has fields of its own for, and those fields."""


def optimizer_name(args: TrainingArguments) -> str:
    """`args.optim` as a plain string."""
    return str(getattr(args.optim, "value", args.optim))


def optimizer_and_kwargs(
    args: TrainingArguments, model: nn.Module | None = None, options: Mapping[str, Any] | None = None
) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer that `args.optim` names and the keyword arguments to construct it with.

    lr, eps and weight_decay come from TrainingArguments, and betas as well unless they are its untouched defaults (0.9,
    0.999): those count as not set, and the optimizer's own apply. `args.optim_args` overrides eps and betas.
    `args.optim_target_modules` narrows what is preconditioned; everything else trains with AdamW.

    Args:
        args: with `optim` one of "scao", "scao_published", "soap".
        model: the model to train; without it there is no "params" among the arguments.
        options: resolved options instead of those in `args.optim_args`.

    Returns:
        The class and a new dictionary; "params" holds `parameter_groups(model, ...)`, which Trainer then uses in place
        of its own two groups.

    Raises:
        OptionError: `optim_args` cannot be read (see `resolve_options`).
        UnsupportedBackendError: DeepSpeed, FSDP or DTensor parameters.
    """
    name = optimizer_name(args)
    refuse_sharding(name, args, model)
    chosen = options_of(args) if options is None else dict(options)
    kwargs = {**training_options(args), **chosen, "lr": args.learning_rate, "weight_decay": args.weight_decay}
    if model is not None:
        kwargs["params"] = parameter_groups(
            model, args.weight_decay, lr=args.learning_rate, target_modules=args.optim_target_modules, names=True
        )
    return optimizer_class(name), kwargs


def options_of(args: TrainingArguments) -> dict[str, Any]:
    """`args.optim_args` resolved, with a warning where it overrides what another field of `args` sets."""
    set_in_fields = training_options(args)
    options = resolve_options(optimizer_name(args), args.optim_args, betas=set_in_fields.get("betas"))
    for option, field in SHARED_FIELDS.items():
        below = set_in_fields.get(option)
        if option in options and below not in (None, UNSET_EPS, options[option]):
            warn_overridden(f"optim_args {option}", options[option], f"TrainingArguments {field}", below)
    return options


def training_options(args: TrainingArguments) -> dict[str, Any]:
    """The options that TrainingArguments has fields of its own for: eps, and betas where they were set."""
    betas = (args.adam_beta1, args.adam_beta2)
    return {"eps": args.adam_epsilon} if betas == UNSET_BETAS else {"eps": args.adam_epsilon, "betas": betas}


def warn_overridden(above: str, value: Any, below: str, overridden: Any) -> None:
    """Say which of two settings that differ is used."""
    logger.warning("%s=%s is used, and %s=%s is not", above, value, below, overridden)
