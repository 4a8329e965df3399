"""Trainer with the optimizer's options as a dictionary, checked before training starts."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from scao_hf.hf.arguments import (
    SHARED_FIELDS,
    optimizer_and_kwargs,
    optimizer_name,
    training_options,
    warn_overridden,
)
from scao_hf.hf.backends import refuse_sharding
from scao_hf.hf.callback import SCAOMonitorCallback
from scao_hf.hf.options import OPTIMIZERS, TRAINING_FIELDS, OptionError, format_options, read_options, resolve_options
from scao_hf.hf.registration import register

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)


class SCAOTrainerMixin(_Base):
    """Put before a Trainer class, gives it `scao_kwargs` and the metrics of `SCAOMonitorCallback`.

    The optimizer is SCAO unless `args.optim` names another of this package. What is set in two places is taken from the
    first of

        scao_kwargs,  args.optim_args,  the other fields of args (learning_rate, weight_decay, adam_epsilon, betas)

    with a warning where they differ. The outcome is written to the trainer's own copy of `args` (`optim`, `optim_args`,
    `learning_rate`, `weight_decay`), so that a model card and `training_args.bin` say what was trained with.
    An optimizer passed as `optimizers` or `optimizer_cls_and_kwargs` is used as it is.

    Args:
        scao_kwargs: keyword arguments of the optimizer's constructor.
        args, kwargs: the other Trainer's.

    Raises:
        OptionError: an option that the optimizer does not have or cannot take; at construction, not at `train()`.
        UnsupportedBackendError: DeepSpeed or FSDP is configured.
        ValueError: both `scao_kwargs` and a ready optimizer were passed.
    """

    def __init__(self, *args: Any, scao_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        register()
        super().__init__(*args, **kwargs)
        self._scao_options: dict[str, Any] | None = None
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            self.args = copy.copy(self.args)  # the caller may build another trainer with the same arguments
            self._scao_options = _settle(self.args, scao_kwargs or {})
            refuse_sharding(optimizer_name(self.args), self.args, self.model)
        elif scao_kwargs:
            raise ValueError("scao_kwargs and a ready optimizer were both passed: give one of them")
        if not any(isinstance(callback, SCAOMonitorCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(SCAOMonitorCallback())

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, with the class and the parameter groups of this package. Takes what that of the version takes."""
        if self.optimizer is not None or self._scao_options is None:
            return super().create_optimizer(*args, **kwargs)
        model = next((given for given in (*args, kwargs.get("model")) if given is not None), self.model)
        self.optimizer_cls_and_kwargs = optimizer_and_kwargs(self.args, model, self._scao_options)
        try:
            return super().create_optimizer(*args, **kwargs)
        finally:
            self.optimizer_cls_and_kwargs = None


class SCAOTrainer(SCAOTrainerMixin, Trainer):
    """`transformers.Trainer` that trains with SCAO: `SCAOTrainer(model, args, scao_kwargs={"k_max": 32}, ...)`."""


def _settle(args: TrainingArguments, scao_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the three places into options for the optimizer, and write them to `args`."""
    if optimizer_name(args) not in OPTIMIZERS:
        if args.optim != _default_of(args, "optim"):
            warn_overridden("SCAOTrainer's optim", "scao", "TrainingArguments optim", optimizer_name(args))
        args.optim = OptimizerNames("scao")
    name = optimizer_name(args)
    given = dict(scao_kwargs)
    _settle_fields(args, {option: given.pop(option) for option in TRAINING_FIELDS if option in given})

    below, unset = training_options(args), {"eps": _default_of(args, "adam_epsilon")}
    places = {option: f"TrainingArguments {field}" for option, field in SHARED_FIELDS.items()}
    chosen: dict[str, Any] = {}
    for place, layer in (("optim_args", args.optim_args), ("scao_kwargs", given)):
        above = read_options(name, layer, betas=below.get("betas"))
        for option, value in above.items():
            if option in below and below[option] not in (value, unset.get(option)):
                warn_overridden(f"{place} {option}", value, places[option], below[option])
        chosen |= above
        below |= above
        places |= {option: f"{place} {option}" for option in above}
        unset = {option: value for option, value in unset.items() if option not in above}
    args.optim_args = _as_text(resolve_options(name, chosen))
    return chosen


def _settle_fields(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    for option, value in given.items():
        field = TRAINING_FIELDS[option]
        if getattr(args, field) not in (value, _default_of(args, field)):
            warn_overridden(f"scao_kwargs {option}", value, f"TrainingArguments {field}", getattr(args, field))
        setattr(args, field, value)


def _as_text(options: Mapping[str, Any]) -> str | None:
    """The options for `args.optim_args`, without those that no text can hold, such as a refresh schedule."""
    texts = []
    for option, value in options.items():
        try:
            texts.append(format_options({option: value}))
        except OptionError as error:
            logger.warning("args.optim_args leaves out an option: %s", error)
    return ",".join(texts) or None


def _default_of(args: TrainingArguments, name: str) -> Any:
    """The default that this class of arguments has for a field."""
    return next(field.default for field in dataclasses.fields(args) if field.name == name)
