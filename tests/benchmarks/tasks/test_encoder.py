"""The encoder task: what it trains on, and that transformers' Trainer takes the steps a plain loop would."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import adamw, sgd
from torch import nn

from benchmarks.suite import STUDIES, Machine, configuration, make_run
from benchmarks.tasks.encoder import START, Classification, run, windows
from benchmarks.tasks.texts import to_bytes
from benchmarks.training import Build, Outcome, Schedule, digest_of
from scao_hf.finetune.comparison.protocol import CONDITIONS

CPU = torch.device("cpu")
SEED = 3
SMALL: dict[str, Any] = {
    "steps": 4,
    "rows": 4,
    "length": 8,
    "width": 8,
    "layers": 1,
    "heads": 2,
    "evaluate_every": 2,
    "evaluation_windows": 12,
    "curve_windows": 4,
    "schedule": Schedule(warmup_steps=2, start=0.5),
}
ALPHABETS = ("abcd", "efgh", "ijkl", "mnop")
"""Of the four texts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local texts, each with an alphabet of its own."""
    root = tmp_path_factory.mktemp("texts")
    for name in ("wikitext2", "tinyshakespeare", "gsm8k"):
        (root / name).mkdir()
    wikitext, shakespeare, question, answer = (50 * letters for letters in ALPHABETS)
    for part in ("test", "valid"):
        (root / "wikitext2" / f"{part}.txt").write_text(wikitext, encoding="utf-8")
    (root / "tinyshakespeare" / "input.txt").write_text(shakespeare, encoding="utf-8")
    for part in ("train", "test"):
        row = json.dumps({"question": question, "answer": answer})
        (root / "gsm8k" / f"{part}.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def task(folder: Path) -> Classification:
    return Classification(folder, **SMALL)


def trained(task: Classification, build: Build = adamw, seed: int = SEED, **more: Any) -> Outcome:
    return run(task, build, seed, CPU, **more)


@pytest.fixture(scope="module")
def outcome(task: Classification) -> Outcome:
    return trained(task)


# Data


def test_a_window_is_a_place_of_the_text_that_its_label_names() -> None:
    sources = [to_bytes("abcdefgh"), to_bytes("ijklmnopqrst")]
    tokens, labels = next(windows(sources, rows=50, length=4, seed=0))
    assert set(labels.tolist()) == {0, 1}
    assert set(tokens[:, 0].tolist()) == {START}
    for row, label in zip(tokens[:, 1:].tolist(), labels.tolist(), strict=True):
        assert bytes(row) in bytes(sources[label].tolist())


def test_a_window_may_be_the_first_and_the_last_of_its_text() -> None:
    tokens, _ = next(windows([to_bytes("abcd")], rows=50, length=3, seed=0))
    assert {bytes(row) for row in tokens[:, 1:].tolist()} == {b"abc", b"bcd"}


def test_every_class_has_its_own_text_in_training_and_evaluation(task: Classification) -> None:
    batches = [next(task.batches(SEED)), task.evaluation()]
    for tokens, labels in batches:
        for row, label in zip(tokens[:, 1:].tolist(), labels.tolist(), strict=True):
            assert set(bytes(row).decode()) <= {*ALPHABETS[label], "\n"}


# A run


def plain_run(task: Classification, build: Build, clip: float) -> tuple[list[float], nn.Module]:
    """The same training in a loop of its own: losses before every step, and the model after the last."""
    model: Any = task.model(SEED)
    optimizer = build(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step, (tokens, labels) in enumerate(itertools.islice(task.batches(SEED), task.steps)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * task.schedule.factor(step, task.steps)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
    return losses, model


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_the_trainer_takes_the_steps_of_a_plain_loop(task: Classification, clip: float) -> None:
    build = partial(sgd, lr=0.5)
    found = trained(task, build, clip=clip)
    losses, model = plain_run(task, build, clip)
    tokens, labels = task.evaluation()
    model.eval()
    with torch.no_grad():
        result: Any = model(input_ids=tokens, labels=labels)
    assert found.measures["train_losses"] == pytest.approx(losses, abs=2e-4)
    assert found.loss == pytest.approx(result.loss.item(), rel=1e-4)
    assert found.measures["accuracy"] == int((result.logits.argmax(-1) == labels).sum()) / len(labels)
    assert found.conditions["clipping"] == clip


def test_the_curve_is_of_the_first_windows_of_the_evaluation_set(task: Classification, outcome: Outcome) -> None:
    assert [step for step, _ in outcome.curve] == [0, 2, 4]
    tokens, labels = task.evaluation()
    model: Any = task.model(SEED)
    with torch.no_grad():
        start = model.eval()(input_ids=tokens[:4], labels=labels[:4]).loss.item()
    assert outcome.curve[0][1] == pytest.approx(start, rel=1e-5)


# What it tells of its conditions


def test_every_condition_that_a_comparison_needs_is_told(task: Classification, outcome: Outcome) -> None:
    assert set(CONDITIONS) <= outcome.conditions.keys()
    assert outcome.conditions["initialisation"] == digest_of(task.model(SEED).parameters())
    assert outcome.conditions["token_budget"] == 4 * 4


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "schedule": ({"schedule": Schedule(warmup_steps=1)}, {"schedule"}),
    "windows": ({"rows": 5}, {"data_order", "token_budget"}),
    "evaluation set": ({"evaluation_windows": 11}, {"evaluation_set"}),
    "steps": ({"steps": 3}, {"steps", "data_order", "token_budget"}),
}


@pytest.mark.parametrize(("changes", "conditions"), CHANGES.values(), ids=CHANGES)
def test_a_condition_changes_with_what_it_tells_of(
    task: Classification, outcome: Outcome, changes: dict[str, Any], conditions: set[str]
) -> None:
    other = trained(replace(task, **changes)).conditions
    assert {name for name in other if other[name] != outcome.conditions[name]} == conditions


def drawing(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that takes random numbers of its own, as much as it likes."""
    torch.rand(7)
    return adamw(model)


def nowhere(model: nn.Module) -> torch.optim.Optimizer:
    """A first step after which no loss is finite."""
    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda *_: model.classifier.weight.data.fill_(torch.nan))
    return optimizer


@pytest.mark.parametrize("build", [sgd, drawing, nowhere])
def test_conditions_are_the_same_for_every_optimizer(task: Classification, outcome: Outcome, build: Build) -> None:
    assert trained(task, build).conditions == outcome.conditions


def test_a_run_ends_before_the_step_of_a_loss_that_is_not_finite(task: Classification) -> None:
    steps = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = nowhere(model)
        optimizer.register_step_pre_hook(lambda *_: steps.append(1))
        return optimizer

    found = trained(task, build)
    assert found.loss == torch.inf
    assert found.measures["diverged_at"] == 2
    assert len(steps) == 1
    assert [step for step, _ in found.curve] == [0]


# In the suite


def test_the_suite_runs_it_and_records_what_it_records_of_other_tasks(folder: Path) -> None:
    machine = Machine(folder)
    small = {**SMALL, "schedule": {"warmup_steps": 2}}
    study = STUDIES["encoder"]
    setting = study.plan().spaces["scao"].start
    made = make_run(machine, configuration(machine, study.task, small, "scao", setting, SEED))
    assert made.measures["state_bytes"] > 0
    assert made.measures["ranks"]
    assert 0 < made.measures["optimizer_seconds"] <= made.step_seconds
    assert 0 <= made.measures["accuracy"] <= 1


def test_searches_start_at_smaller_rates_than_where_a_gpt_is_trained() -> None:
    rates = [STUDIES[name].plan().spaces["adamw"].start["lr"] for name in ("lm-1m", "encoder")]
    assert rates == [4e-3, 1e-3]


def test_a_loop_that_is_not_the_suites_own_is_not_timed(folder: Path) -> None:
    with pytest.raises(ValueError, match="encoder has a training loop of its own"):
        STUDIES["encoder"].timing(Machine(folder))
