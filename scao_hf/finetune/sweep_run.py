"""The run behind a sweep over learning rates: of it, only the losses are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scao_hf.finetune import settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.lr_find import Sweep, left
from scao_hf.finetune.measured_run import UnkeptRun
from scao_hf.finetune.observer import Observer, RunInfo
from scao_hf.finetune.results.history import Points
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.hf.callback import tell_total_steps

_QUIET = {
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "warmup_steps": 0,
    "report_to": "none",
}


class _Left(Exception):
    """The loss is not finite, or far above what it was."""


class SweepTrainer(GuardedTrainer):
    """A trainer whose learning rate follows a sweep, and which stops where the loss leaves."""

    sweep: Sweep
    run_steps: int
    """Of the run that the rate is for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.losses: Points = []
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        chosen: Any = self.optimizer if optimizer is None else optimizer
        sweep = self.sweep
        tell_total_steps(chosen, self.run_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            chosen, lambda taken: sweep.rate(min(taken + 1, sweep.steps)) / sweep.high
        )
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        if "loss" not in logs:
            return
        self.losses.append((self.sweep.rate(self.state.global_step), float(logs["loss"])))
        if left(self.losses, self.sweep.steps):
            raise _Left

    def diverged(self, code: str, what: str, origin: Callable[[], str]) -> None:
        raise _Left

    def save_resumable(self) -> None:
        return


class SweepRun(UnkeptRun):
    """The stages of `find_rate`, in order; `losses` goes through them."""

    trainer_class = SweepTrainer
    trainer: SweepTrainer

    def __init__(self, recipe: Recipe, sweep: Sweep, observer: Observer, output_dir: Path) -> None:
        settled = {**recipe.training, **_QUIET, "max_steps": sweep.steps, "learning_rate": sweep.high}
        super().__init__(replace(recipe, training=settled), recipe.seed, observer, output_dir)
        self.sweep, self.run_steps = sweep, recipe.training.get("max_steps", -1)

    def losses(self) -> tuple[RunInfo, Points]:
        """What was trained, and the loss of every step at its learning rate, as far as it is finite."""
        self.prepare()
        self.trainer.sweep = self.sweep
        run = copy.copy(self.trainer.args)
        run.max_steps = self.run_steps
        self.trainer.run_steps = settings.total_steps(run, self.train_rows())
        self.trainer.add_callback(self.reporter())
        self.observer.notice(f"the learning rate grows from {self.sweep.low:g} to {self.sweep.high:g}")
        with suppress(_Left):
            self.train()
        return self.info(), self.trainer.losses
