"""What a recipe leaves to be settled: TRL's arguments, the number of steps, and everything that says "auto"."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError, raise_all
from scao_hf.finetune.schema import EARLY_STOPPING, closest
from scao_hf.hf.options import OPTIMIZERS, adam_steps_of, format_options

_REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Trackers that an extra of this package installs, and the module that must be there."""

_ALL_REPORTERS = ("none", "all")


def require_complete(recipe: Recipe) -> None:
    """Refuse a recipe that leaves the model or the data to be given.

    Raises:
        FinetuneError: config.missing-value, for each that is missing.
    """
    needed = {"model.model_name_or_path": recipe.model.model_name_or_path, "data.path": recipe.data.path}
    hints = {"model.model_name_or_path": "a hub id, a directory, or tiny-llama", "data.path": "a file or a hub id"}
    problems = [
        FinetuneError("config.missing-value", f"recipe {recipe.name} does not say `{path}`", f"{path}={hints[path]}")
        for path, value in needed.items()
        if value is None
    ]
    raise_all(problems, recipe.source)


def output_directory(recipe: Recipe) -> Path:
    """`training.output_dir` with `~` and environment variables filled in."""
    return Path(os.path.expandvars(recipe.training["output_dir"])).expanduser()


def _reporters_of_transformers() -> list[str]:
    from transformers.integrations import integration_utils

    return sorted(integration_utils.INTEGRATION_TO_CALLBACK)


def check_reporters(recipe: Recipe) -> None:
    """Refuse a tracker that transformers does not know, or whose package is not installed.

    Raises:
        FinetuneError: config.invalid-value, extra.missing.
    """
    wanted = recipe.training.get("report_to") or []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name not in (*_ALL_REPORTERS, *_reporters_of_transformers()):
            near = closest(name, _reporters_of_transformers())
            hint = f"did you mean `{near}`?" if near else f"one of {', '.join(_reporters_of_transformers())}"
            raise FinetuneError("config.invalid-value", f"`training.report_to` names no tracker: {name!r}", hint)
        module = _REPORTERS.get(name)
        if module is not None and importlib.util.find_spec(module) is None:
            message = f"training.report_to names {name}, which is not installed"
            raise FinetuneError("extra.missing", message, f'pip install "scao-hf[{name}]"')


def sft_arguments(recipe: Recipe, loss_on: str, mixed_precision: bool) -> Any:
    """TRL's `SFTConfig` for a recipe; the warm-ups are filled in once the number of steps is known.

    Args:
        recipe: complete.
        loss_on: "all", "completion" or "assistant".
        mixed_precision: whether to compute in bfloat16 unless the recipe says so itself.

    Raises:
        FinetuneError: config.invalid-value, with TRL's or transformers' reason.
    """
    from trl import SFTConfig

    training = {key: value for key, value in recipe.training.items() if not (key == "bf16" and value is None)}
    training = _with_metric({key: value for key, value in training.items() if key not in EARLY_STOPPING}, recipe)
    given = {
        "bf16": mixed_precision and not training.get("fp16"),
        **training,
        "output_dir": str(output_directory(recipe)),
        "warmup_steps": 0,
        "max_length": recipe.data.max_length,
        "packing": recipe.data.packing,
        "eval_packing": False,
        "assistant_only_loss": loss_on == "assistant",
        "completion_only_loss": loss_on == "completion",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "log_level": "error",
    }
    try:
        return SFTConfig(**given)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FinetuneError("config.invalid-value", f"section `training`: {reason}", None) from error
    except ImportError as error:
        raise FinetuneError("extra.missing", str(error).strip().splitlines()[0], "install what is named") from error


def _with_metric(training: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """`training` with what tells the best step: transformers would look at nothing, or take a perplexity for better
    when it is greater."""
    if training.get("metric_for_best_model") is None and early_stopping(recipe) is None:
        return training
    training["metric_for_best_model"] = training.get("metric_for_best_model") or "loss"
    if training.get("greater_is_better") is None:
        training["greater_is_better"] = False
    return training


def early_stopping(recipe: Recipe) -> dict[str, Any] | None:
    """The arguments of `transformers.EarlyStoppingCallback`; None for a run that makes all its steps."""
    given = {key: recipe.training[key] for key in EARLY_STOPPING if recipe.training.get(key) is not None}
    return given if "early_stopping_patience" in given else None


def total_steps(args: Any, rows: int | None) -> int:
    """Optimizer steps of a run over so many rows, as transformers counts them; None for a stream with `max_steps`."""
    if rows is None:
        return int(args.max_steps)
    per_pass = args.per_device_train_batch_size * args.world_size
    batches = rows // per_pass if args.dataloader_drop_last else math.ceil(rows / per_pass)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)


def lr_warmup_steps(recipe: Recipe, steps: int) -> int:
    """`training.warmup_steps` as a count; below 1 it is a fraction of all steps."""
    wanted = recipe.training.get("warmup_steps") or 0
    return math.ceil(wanted * steps) if wanted < 1 else int(wanted)


def optimizer_options(recipe: Recipe, steps: int) -> dict[str, Any]:
    """The section `scao` with "auto" resolved; empty for another optimizer."""
    options = dict(recipe.scao)
    if options.get("warmup_steps") == "auto":
        options["warmup_steps"] = auto_adam_steps(steps)
    return options


def auto_adam_steps(steps: int) -> int:
    """Steps of SCAO's Adam phase: a tenth of the run, within 10 and 200, but never more than a quarter of it."""
    return min(max(round(0.1 * steps), 10), 200, steps // 4)


def adam_steps(optimizer: str, options: Mapping[str, Any]) -> int | None:
    """Steps of plain Adam before preconditioning begins; None for an optimizer without such a phase."""
    if optimizer not in OPTIMIZERS:
        return None
    return adam_steps_of(optimizer, options)


def checkpoints_activations(args: Any) -> bool:
    """Whether activations are computed again in the backward pass, under the name that the release has for it."""
    return bool(getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", None))


def settle_steps(args: Any, recipe: Recipe, rows: int | None) -> int:
    """Fill the warm-ups of `args` in, and return the number of steps."""
    steps = total_steps(args, rows)
    args.warmup_steps = lr_warmup_steps(recipe, steps)
    if str(recipe.training["optim"]) in OPTIMIZERS:
        args.optim_args = format_options(optimizer_options(recipe, steps)) or None
    return steps
