"""What the curvature looks like, in the logs of a stock Trainer."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from scao_hf.hf.arguments import optimizer_name, options_of, training_options, warn_overridden
from scao_hf.hf.options import OPTIMIZERS, hyperparameters, optimizer_class
from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.scao import SCAO

logger = logging.getLogger(__name__)

PREFIX = "scao/"
LEAST_SHARE = 0.1
"""Of a run, below which the preconditioned steps are too few to be worth their state."""
ADAM_PHASE = ("warmup_steps", "adam_warmup_steps", "min_precond_updates", "precond_freq")
"""Options that an optimizer may have, and that decide on how long it is plain Adam."""


class SCAOMonitorCallback(TrainerCallback):
    """Adds the optimizer's `diagnostics()` to every log entry that has a training loss, as `scao/rank_mean` and so on.

    Pass it to any Trainer, SFTTrainer included: `Trainer(..., callbacks=[SCAOMonitorCallback()])`. The metrics reach
    `trainer.state.log_history` and every reporter (TensorBoard shows them as `train/scao/rank_mean`). The tensors are
    read back when Trainer logs and at no other time.

    It warns when training begins if less than a tenth of the run comes after the optimizer's Adam phase, naming the
    option that makes it so long, if a checkpoint brought other hyperparameters than the arguments ask for, and if the
    optimizer is not one of this package.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = unwrap_optimizer(kwargs.get("optimizer"))
        if not isinstance(optimizer, KroneckerOptimizer):
            logger.warning("SCAOMonitorCallback has nothing to report about %s", type(optimizer).__name__)
            return
        _warn_of_a_long_adam_phase(optimizer, state.max_steps)
        if state.global_step > 0:
            _warn_of_a_checkpoints_settings(optimizer, args)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        optimizer = unwrap_optimizer(kwargs.get("optimizer"))
        if logs is None or "loss" not in logs or not isinstance(optimizer, KroneckerOptimizer):
            return
        metrics = {PREFIX + name: value for name, value in optimizer.diagnostics().items()}
        logs.update(metrics)
        # Trainer appends a copy of the entry to its history before it asks the callbacks.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)


def unwrap_optimizer(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def tell_total_steps(optimizer: Any, steps: float) -> None:
    """Tell SCAO, inside accelerate's wrappers too, how long the run is; others need no telling.

    Args:
        optimizer: any.
        steps: a part of one counts as one; none is no run, and is not told.
    """
    inner = unwrap_optimizer(optimizer)
    if isinstance(inner, SCAO) and steps > 0:
        inner.set_total_steps(math.ceil(steps))


def _warn_of_a_long_adam_phase(optimizer: KroneckerOptimizer, max_steps: int) -> None:
    # A group that takes Adam throughout does so by choice.
    groups = [g for g in optimizer.param_groups if g.get("sides") != "none" and g.get("kind") != "vector"]
    group = max(groups, key=optimizer.adam_steps, default=None)
    if group is None or max_steps - (adam_steps := optimizer.adam_steps(group)) >= LEAST_SHARE * max_steps:
        return
    left = max_steps - adam_steps
    logger.warning(
        "%s is plain Adam up to step %d and training ends after %d: %s. Train longer, or lower the optimizer's own %s: "
        "%d would be a tenth of the run (in optim_args, scao_kwargs, or the scao section of a recipe; "
        "TrainingArguments.warmup_steps is the learning rate's)",
        type(optimizer).__name__,
        adam_steps,
        max_steps,
        f"only the last {left} will be preconditioned" if left > 0 else "nothing will be preconditioned",
        " and ".join(_what_prolongs(optimizer, group)),
        max_steps // 10,
    )


def _what_prolongs(optimizer: KroneckerOptimizer, group: dict[str, Any]) -> list[str]:
    """The options of a group that decide on the length of its Adam phase: the one that alone would shorten it, or all
    that ask for as many steps."""
    present = [name for name in ADAM_PHASE if name in group]
    adam_steps = optimizer.adam_steps(group)
    alone = [name for name in present if optimizer.adam_steps({**group, name: 1}) < adam_steps]
    least = dict.fromkeys(present, 1)
    return alone or [
        name for name in present if optimizer.adam_steps({**group, **least, name: group[name]}) == adam_steps
    ]


def _warn_of_a_checkpoints_settings(optimizer: KroneckerOptimizer, args: TrainingArguments) -> None:
    """A checkpoint restores hyperparameters with the state, as every torch optimizer's does."""
    name = optimizer_name(args)
    if name not in OPTIMIZERS or not isinstance(optimizer, optimizer_class(name)):
        return
    asked = hyperparameters(name, {**training_options(args), **options_of(args)})
    for option, value in asked.items():
        restored = optimizer.param_groups[0].get(option, value)
        if option != "sides" and restored != value and not callable(restored):
            warn_overridden(f"the checkpoint's {option}", restored, f"the arguments' {option}", value)


def _run_monitors_first() -> None:
    """Have CallbackHandler put a monitor before the reporters, which log what `on_log` holds when their turn comes.

    Trainer lines up its own callbacks before the user's, and gives a callback no way to the line that it stands in.
    """
    append = CallbackHandler.add_callback
    if hasattr(append, "_scao_hf_reorders"):
        return

    @functools.wraps(append)
    def add_callback(self: CallbackHandler, callback: Any) -> None:
        append(self, callback)
        if isinstance(self.callbacks[-1], SCAOMonitorCallback):
            self.callbacks.insert(0, self.callbacks.pop())

    add_callback._scao_hf_reorders = True  # type: ignore[attr-defined]
    CallbackHandler.add_callback = add_callback  # type: ignore[method-assign]


_run_monitors_first()
