"""A few real steps, to measure what a plan can only estimate."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from transformers import TrainerCallback

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.devices import Gauge
from scao_hf.finetune.footprint import state_bytes
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.planning.outcome import Plan, Probe
from scao_hf.finetune.planning.sampled import start_of_stream
from scao_hf.finetune.stages import Stages
from scao_hf.finetune.surroundings import passing
from scao_hf.hf.options import OPTIMIZERS, option_defaults

STEPS = 2
"""The first one allocates; the second is timed."""


def probe_run(recipe: Recipe, observer: Observer, planned: Plan) -> Probe:
    """Train `STEPS` steps on the longest rows and measure them; nothing is kept.

    Raises:
        FinetuneError: as `finetune`.
    """
    with passing() as folder:
        return _ProbedRun(recipe, observer, folder).probe(planned)


class _ProbedRun(Stages):
    """A run of `STEPS` steps without evaluation, checkpoints or reporters."""

    def __init__(self, recipe: Recipe, observer: Observer, output_dir: Path) -> None:
        super().__init__(recipe, observer, output_dir)
        self.recipe = _shortened(recipe, output_dir)

    def load_inputs(self) -> None:
        super().load_inputs()
        if self.rows.stream is not None:
            self.rows, _ = start_of_stream(self.rows)

    def probe(self, planned: Plan) -> Probe:
        self.load_inputs()
        gauge, watch = Gauge(self.device), _Watch(self.device)
        self.load_weights()
        self.build_trainer()
        trainer = self.trainer
        trainer.train_dataset = longest_rows(trainer.train_dataset, planned.info.rows_per_step * STEPS)
        trainer.add_callback(watch)
        self.observer.stage(f"measuring {STEPS} steps")
        trainer.train()
        tokens = trainer._total_train_tokens / STEPS
        pace = tokens / watch.seconds[-1]
        return Probe(
            steps=STEPS,
            step_seconds=watch.seconds[-1],
            tokens_per_second=pace,
            run_seconds=planned.run_tokens / pace,
            peak_bytes=gauge.peak(),
            optimizer_bytes=state_bytes(trainer.optimizer),
        )


def longest_rows(dataset: Any, number: int) -> Any:
    """The longest of the rows, so many; all where there are fewer."""
    lengths = pyarrow.compute.list_value_length(dataset.with_format("arrow")[:].column("input_ids"))
    order = pyarrow.compute.sort_indices(lengths, sort_keys=[("", "descending")])
    return dataset.select(order.to_pylist()[:number])


def _shortened(recipe: Recipe, output_dir: Path) -> Recipe:
    training = {
        **recipe.training,
        "output_dir": str(output_dir),
        "max_steps": STEPS,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
    }
    name, options = str(recipe.training["optim"]), dict(recipe.scao)
    if name in OPTIMIZERS and "warmup_steps" in option_defaults(name):
        options["warmup_steps"] = 0
    return replace(recipe, training=training, scao=options)


class _Watch(TrainerCallback):
    """Seconds of every step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self._began)

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()
