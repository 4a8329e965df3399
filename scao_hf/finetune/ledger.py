"""What a run remembers beyond what Trainer saves, so that a resumed one continues as if nothing had happened."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from scao_hf.finetune.checkpoints import checkpoint_path
from scao_hf.finetune.observer import EvalMetrics

if TYPE_CHECKING:
    from scao_hf.finetune.trainer import GuardedTrainer


class NothingLeft(Exception):
    """The checkpoint that was loaded is of a run whose training is over."""


class Ledger(TrainerCallback, ExportableState):
    """Losses, seconds, tokens and first evaluation of a run; Trainer keeps them in trainer_state.json.

    Trainer begins its own sums anew when it resumes, so that the first logged loss and the mean loss of a resumed run
    would be those of a few steps.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer
        self.step_loss = 0.0
        """Of the micro-batches of the step in hand."""
        self.window_loss = 0.0
        """Sum of the steps since the last log."""
        self.window_start = 0
        self.total_loss = 0.0
        self.first_evaluation: EvalMetrics | None = None
        self.last_evaluation: EvalMetrics | None = None
        self.sample_before: str | None = None
        self.learning_rate_factor = 1.0
        """What a resumed run multiplies the checkpoint's learning rates with."""
        self._tokens = 0
        self._random_state: dict[str, Any] | None = None

    def add(self, loss: float) -> None:
        """Note the loss of a micro-batch."""
        self.step_loss += loss

    def close_window(self, step: int) -> float:
        """The mean loss of the steps since the last call."""
        mean = self.window_loss / (step - self.window_start)
        self.window_loss, self.window_start = 0.0, step
        return mean

    def mean_loss(self) -> float:
        """The mean loss over all steps, those before a resumption too."""
        return self.total_loss / max(1, self.trainer.state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self.step_loss
        if args.world_size > 1:
            mean: Any = self.trainer.accelerator.reduce(torch.tensor(loss, device=args.device), "mean")
            loss = float(mean)
        self.step_loss = 0.0
        self.window_loss += loss
        self.total_loss += loss
        self._tokens = int(self.trainer._total_train_tokens)
        self._random_state = random_state(args.device)

    def rewind(self) -> None:
        """Go back to the end of the last whole step: one that failed has drawn random numbers and counted tokens."""
        self.step_loss = 0.0
        if self._random_state is not None:
            self.trainer._total_train_tokens = self._tokens
            set_random_state(self._random_state, self.trainer.args.device)

    # Saving and restoring

    def state(self) -> dict[str, Any]:
        attributes = {
            "window_loss": self.window_loss,
            "window_start": self.window_start,
            "total_loss": self.total_loss,
            "seconds": self.trainer.stopwatch.seconds,
            "tokens": int(self.trainer._total_train_tokens),
            "first_evaluation": None if self.first_evaluation is None else asdict(self.first_evaluation),
            "last_evaluation": None if self.last_evaluation is None else asdict(self.last_evaluation),
            "sample_before": self.sample_before,
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        # A resumed state brings the intervals of its checkpoint along, whatever the arguments say now.
        state.compute_steps(args, state.max_steps)
        self._restore(state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}))
        self._restore_others(state)
        self._find_best(state)
        _set_learning_rates(kwargs["optimizer"], kwargs["lr_scheduler"], self.learning_rate_factor)
        if state.global_step >= state.max_steps or self.trainer.stopped_early():
            raise NothingLeft

    def _restore(self, noted: dict[str, Any]) -> None:
        self.window_loss = noted["window_loss"]
        self.window_start = noted["window_start"]
        self.total_loss = noted["total_loss"]
        self.sample_before = noted["sample_before"]
        self.trainer.stopwatch.add(noted["seconds"])
        self.trainer._total_train_tokens = noted["tokens"]
        for name in ("first_evaluation", "last_evaluation"):
            setattr(self, name, None if noted[name] is None else EvalMetrics(**noted[name]))

    def _restore_others(self, state: Any) -> None:
        """Give early stopping its count back, and a callback that is new in this run its place among those saved."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                saved = state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
                if isinstance(callback, EarlyStoppingCallback):
                    callback.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def _find_best(self, state: Any) -> None:
        """The best checkpoint where it lies now: a folder may have been moved since."""
        if state.best_global_step:
            path = checkpoint_path(self.trainer.folder, state.best_global_step)
            state.best_model_checkpoint = str(path) if path.is_dir() else None


def _set_learning_rates(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Apply a changed learning rate, and a schedule of another length, over what the checkpoint brought along."""
    if factor != 1.0:
        for group in optimizer.param_groups:
            group["lr"] *= factor
            group["initial_lr"] *= factor
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    if isinstance(scheduler, LambdaLR):
        for group, rate, share in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = rate * share(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random number generator that training draws from."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
