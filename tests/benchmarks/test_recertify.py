"""Kept runs stand for changed code only where one of them, made again, is the same to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from invented_runs import run

from benchmarks import recertify as module
from benchmarks.optimizers import ADAPTERS
from benchmarks.recertify import DifferentRunError, recertify
from benchmarks.suite import Machine
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config

MACHINE = Machine(None)
NOW = ADAPTERS["soap"].version()
OLD = ", ".join(["torch " + NOW.split(", ")[0].removeprefix("torch "), "scao_hf.optim.soap 0123456789abcdef"])


def config(optimizer: str, seed: int, steps: int = 10, version: str = OLD) -> Config:
    return {"task": {"name": "lm", "steps": steps}, "optimizer": optimizer, "version": version, "seed": seed}


def kept(optimizer: str, seed: int) -> Run:
    return run(optimizer, seed, 2.0 + seed, train_losses=[3.0, 2.0 + seed])


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "runs.jsonl")
    for seed, steps in ((1, 10), (2, 30), (3, 20)):
        store.add(config("soap", seed, steps), kept("soap", seed))
    store.add(config("muon", 1, version="another"), kept("muon", 1))
    return store


def making(monkeypatch: pytest.MonkeyPatch, made: Run) -> list[Config]:
    asked: list[Config] = []

    def make_run(machine: Machine, config: Config) -> Run:
        asked.append(config)
        return made

    monkeypatch.setattr(module, "make_run", make_run)
    return asked


def test_the_longest_run_is_made_again_and_all_of_that_optimizer_come_under_todays_version(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = making(monkeypatch, kept("soap", 2))
    assert recertify(MACHINE, store, "soap", lambda line: None) == 3
    assert asked == [config("soap", 2, 30, NOW)]
    versions = {(found["optimizer"], found["version"]) for found, _ in RunStore(store.path).records()}
    assert versions == {("soap", NOW), ("muon", "another")}
    assert RunStore(store.path).get(config("soap", 3, 20, NOW)) == kept("soap", 3)


def test_what_is_already_under_todays_version_is_left_alone(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    making(monkeypatch, kept("soap", 2))
    recertify(MACHINE, store, "soap", lambda line: None)
    before, asked = store.path.read_bytes(), making(monkeypatch, kept("soap", 2))
    assert recertify(MACHINE, store, "soap", lambda line: None) == 0
    assert asked == []
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 4.0000001},
        {"curve": ((0, 4.0), (100, 4.1))},
        {"conditions": {"data_order": "x"}},
        {"measures": {"train_losses": [3.0, 4.1]}},
    ],
    ids=["loss", "curve", "conditions", "training losses"],
)
def test_a_run_that_comes_out_otherwise_changes_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    before = store.path.read_bytes()
    making(monkeypatch, replace(kept("soap", 2), **change))  # type: ignore[arg-type]
    with pytest.raises(DifferentRunError, match="are not those of the code as it is"):
        recertify(MACHINE, store, "soap", lambda line: None)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("version", ["torch 1.0, scao_hf.optim.soap 0123456789abcdef", f"{OLD}, fixed 1", "soap 3.0"])
def test_runs_that_differ_in_more_than_our_code_must_be_made_again(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    store.add(config("soap", 9, version=version), kept("soap", 9))
    asked = making(monkeypatch, kept("soap", 2))
    with pytest.raises(ValueError, match="must be made again"):
        recertify(MACHINE, store, "soap", lambda line: None)
    assert asked == []


def test_an_optimizer_without_runs_is_named(store: RunStore) -> None:
    with pytest.raises(ValueError, match="holds no run of adamw"):
        recertify(MACHINE, store, "adamw", lambda line: None)


def test_a_task_that_does_not_name_its_steps_is_as_long_as_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    unnamed = {**config("soap", 1), "task": {"name": "lora"}}
    store.add(unnamed, kept("soap", 1))
    asked = making(monkeypatch, kept("soap", 1))
    assert recertify(MACHINE, store, "soap", lambda line: None) == 1
    assert asked == [{**unnamed, "version": NOW}]
