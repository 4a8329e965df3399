"""A run that was interrupted goes on as if it had not been, and one that cannot go on says why."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune.resuming import SETTINGS, STEPS, assert_same_run, measured, weights

from scao_hf.finetune.checkpoints import MARKER, STAGING, checkpoints_in, last_checkpoint, read_checkpoint
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.observer import Observer, StepMetrics
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import FinetuneReport, finetune


class Interrupting(Observer):
    """Sends this process a signal when a step is told, and remembers notices."""

    def __init__(self, at_step: int | None = None, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.at_step, self.number, self.times = at_step, number, times
        self.notices: list[str] = []

    def step(self, metrics: StepMetrics) -> None:
        if self.at_step is not None and metrics.step >= self.at_step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def notice(self, text: str) -> None:
        self.notices.append(text)


Start = Callable[..., FinetuneReport]


@pytest.fixture
def start(recipe_file: Path) -> Start:
    """Runs the recipe with dropout over three epochs; options are those of `finetune`."""

    def run(*overrides: str, observer: Observer | None = None, **options: Any) -> FinetuneReport:
        return finetune(load_recipe(str(recipe_file), [*SETTINGS, *overrides]), observer, **options)

    return run


@pytest.fixture
def folder(recipe_file: Path) -> Path:
    return recipe_file.parent / "run"


@pytest.fixture
def whole(start: Start, tmp_path: Path) -> FinetuneReport:
    """The same run without an interruption, elsewhere."""
    return start(f"output_dir={tmp_path / 'whole'}")


def stop_after(start: Start, step: int, *overrides: str) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        start("logging_steps=1", *overrides, observer=Interrupting(step))
    return caught.value


def refusal(start: Start, *overrides: str, **options: Any) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        start(*overrides, **{"resume": True, **options})
    return caught.value


def test_an_interrupted_run_continues_bit_for_bit(start: Start, folder: Path, whole: FinetuneReport) -> None:
    with pytest.raises(Interrupted) as caught:
        start(observer=Interrupting(5))
    stopped = caught.value
    assert (stopped.step, stopped.checkpoint) == (6, folder / "checkpoint-6")
    report = start(resume=True)
    assert_same_run(folder, whole.output_dir)
    told = ("train_loss", "tokens", "initial_eval_loss", "final_eval_loss", "sample_before", "sample_after", "epochs")
    assert {key: getattr(report, key) for key in told} == {key: getattr(whole, key) for key in told}
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished"
    assert [(entry["step"], entry["changes"]) for entry in record["resumed"]] == [(6, {})]
