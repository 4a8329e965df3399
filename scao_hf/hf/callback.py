"""What the curvature looks like, in the logs of a stock Trainer."""

from __future__ import annotations

import functools
import logging
from typing import Any

from transformers.trainer_callback import CallbackHandler, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from scao_hf.hf.arguments import optimizer_name, options_of, training_options, warn_overridden
from scao_hf.hf.options import OPTIMIZERS, hyperparameters, optimizer_class
from scao_hf.optim.kronecker import KroneckerOptimizer

logger = logging.getLogger(__name__)

PREFIX = "scao/"


class SCAOMonitorCallback(TrainerCallback):
    """Adds the optimizer's `diagnostics()` to every log entry that has a training loss, as `scao/rank_mean` and so on.

    Pass it to any Trainer, SFTTrainer included: `Trainer(..., callbacks=[SCAOMonitorCallback()])`. The metrics reach
    `trainer.state.log_history` and every reporter (TensorBoard shows them as `train/scao/rank_mean`). The tensors are
    read back when Trainer logs and at no other time.

    It warns when training begins if the optimizer would still be in its Adam phase when training ends, if a checkpoint
    brought other hyperparameters than the arguments ask for, and if the optimizer is not one of this package.
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


def _warn_of_a_long_adam_phase(optimizer: KroneckerOptimizer, max_steps: int) -> None:
    # A group that takes Adam throughout does so by choice.
    groups = [g for g in optimizer.param_groups if g.get("sides") != "none" and g.get("kind") != "vector"]
    adam_steps = max(map(optimizer.adam_steps, groups), default=0)
    if adam_steps >= max_steps:
        logger.warning(
            "%s is plain Adam up to step %d and training ends after %d: nothing will be preconditioned. Train longer, "
            "or lower the optimizer's own warmup_steps (in optim_args, scao_kwargs, or the scao section of a recipe; "
            "TrainingArguments.warmup_steps is the learning rate's)",
            type(optimizer).__name__,
            adam_steps,
            max_steps,
        )


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
