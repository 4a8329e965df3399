"""A stand-in for the fine-tuning library, so that the command line's own behaviour is tested without torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scao_hf.finetune.observer import EvalMetrics, Observer, RunInfo, StepMetrics

PROMPT = "ROMEO: What light is this?"


def run_info(output_dir: Path, **changes: Any) -> RunInfo:
    info = RunInfo(
        recipe="demo",
        output_dir=output_dir,
        model="tiny-llama",
        dataset="embedded:shakespeare-dialogue",
        dataset_format="messages",
        loss_on="assistant",
        device="cpu",
        dtype="float32",
        optimizer="scao",
        learning_rate=2e-3,
        train_rows=812,
        eval_rows=48,
        rows_per_step=8,
        total_steps=60,
        epochs=0.591,
        trainable_parameters=61_440,
        total_parameters=1_071_360,
        lr_warmup_steps=6,
        adam_steps=10,
        funnel={"read": 900, "formatted": 880, "tokenised": 860},
    )
    return replace(info, **changes)


def step_metrics(step: int, total: int = 60, **changes: Any) -> StepMetrics:
    blend = min(1.0, max(0.0, (step - 10) / 20))
    metrics = StepMetrics(
        step=step,
        total_steps=total,
        epoch=step / 100,
        loss=2.0 + 2.5 * 0.94**step,
        learning_rate=2e-3 * (1 - step / total),
        grad_norm=0.71,
        tokens=step * 1900,
        tokens_per_second=3120.0,
        elapsed_seconds=step * 0.6,
        eta_seconds=(total - step) * 0.6,
        scao={
            "phase": 0.0 if blend == 0 else 2.0 if blend == 1 else 1.0,
            "blend": blend,
            "rank_mean": 11.25,
            "mass_kept": 0.93,
            "state_bytes": 2.5 * 1024**2,
        },
    )
    return replace(metrics, **changes)


@dataclass(frozen=True)
class Report:
    """The attributes that the command line reads of a `FinetuneReport`."""

    recipe: str = "demo"
    output_dir: Path = Path("runs/demo")
    saved_dir: Path = Path("runs/demo/adapter")
    is_adapter: bool = True
    optimizer: str = "scao"
    initial_eval_loss: float | None = 4.58
    final_eval_loss: float | None = 2.44
    initial_perplexity: float | None = 97.5144
    final_perplexity: float | None = 11.473
    train_loss: float = 2.8
    steps: int = 60
    epochs: float = 0.591
    train_seconds: float = 36.2
    tokens: int = 114_000
    trainable_parameters: int = 61_440
    total_parameters: int = 1_071_360
    optimizer_state_bytes: int = 2_621_440
    stopped_early: bool = False
    best_step: int | None = None
    best_metric: float | None = None
    best_checkpoint: Path | None = None
    sample_prompt: str | None = PROMPT
    sample_before: str | None = "There are 12 apples. 12 * 2 = 24"
    sample_after: str | None = "I pray you, sir, speak no more of it,\nfor love is sick."

    def to_dict(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in self.__dict__.items()}


@dataclass
class FakeLibrary:
    """Plays a whole run to the observer; `fails` is raised instead of the report, after the first steps."""

    report: Report = field(default_factory=Report)
    fails: BaseException | None = None
    seconds_per_step: float = 0.0
    drawing_fails: Exception | None = None
    recipe: str = ""
    overrides: list[str] = field(default_factory=list)
    overwrite: bool = False
    resume: bool | Path = False

    def load_recipe(self, name: str, overrides: Sequence[str] = ()) -> str:
        self.recipe, self.overrides = name, list(overrides)
        return name

    def finetune(
        self, recipe: str, observer: Observer, *, overwrite: bool = False, resume: bool | Path = False
    ) -> Report:
        self.overwrite, self.resume = overwrite, resume
        observer.stage("loading torch and transformers")
        observer.stage("loading the model")
        time.sleep(3 * self.seconds_per_step)
        observer.begin(run_info(self.report.output_dir))
        observer.stage("evaluating")
        time.sleep(3 * self.seconds_per_step)
        observer.evaluated(
            EvalMetrics(moment="before", step=0, loss=4.58, perplexity=97.5144, tokens=9216, seconds=1.9)
        )
        observer.notice("logging to no tracker")
        for step in range(5, 61, 5):
            time.sleep(5 * self.seconds_per_step)
            observer.step(step_metrics(step))
            if step == 15 and self.fails is not None:
                raise self.fails
            if step == 30:
                observer.evaluated(
                    EvalMetrics(moment="during", step=30, loss=3.01, perplexity=20.29, tokens=9216, seconds=1.9)
                )
        observer.stage("evaluating")
        observer.evaluated(EvalMetrics(moment="after", step=60, loss=2.44, perplexity=11.473, tokens=9216, seconds=1.9))
        observer.saved(self.report.saved_dir)
        return self.report

    def draw(self, folder: Path) -> Path:
        if self.drawing_fails is not None:
            raise self.drawing_fails
        return folder / "report" / "report.html"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """The library behind `train` and `demo`, replaced for one test."""
    fake = FakeLibrary()
    install(fake, lambda name, module: monkeypatch.setitem(sys.modules, name, module))
    return fake


def install(fake: FakeLibrary, put: Callable[[str, ModuleType], None]) -> None:
    run, recipes = ModuleType("scao_hf.finetune.run"), ModuleType("scao_hf.finetune.recipes")
    results, drawing = ModuleType("scao_hf.finetune.results"), ModuleType("scao_hf.finetune.results.report")
    drawing.draw = fake.draw  # type: ignore[attr-defined]
    results.report = drawing  # type: ignore[attr-defined]
    run.finetune = fake.finetune  # type: ignore[attr-defined]
    recipes.load_recipe = fake.load_recipe  # type: ignore[attr-defined]
    recipes.recipe_names = lambda: ["demo", "lora-sft"]  # type: ignore[attr-defined]
    put(run.__name__, run)
    put(recipes.__name__, recipes)
    put(results.__name__, results)
    put(drawing.__name__, drawing)


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder, none of the caller's wishes about terminals, and every variable put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")


@pytest.fixture
def stand_in() -> ModuleType:
    """This module, for tests that need its plans and steps; test folders are no packages, so it cannot be imported."""
    return sys.modules[__name__]
