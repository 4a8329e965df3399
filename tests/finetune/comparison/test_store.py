"""Runs survive an interruption, and only what is whole counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from finetune.comparison.made import configure, run

from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "runs.jsonl"


def config(seed: int) -> dict[str, Any]:
    return configure("adamw", {"lr": 2e-3, "betas": [0.9, 0.95]}, seed)


def filled(path: Path, seeds: int) -> RunStore:
    store = RunStore(path)
    for seed in range(seeds):
        store.add(config(seed), run(seed=seed))
    return store


def strictly(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_comes_back_as_it_was(path: Path) -> None:
    whole = run(
        curve=((0, 5.5), (25, 2.0)), step_seconds=0.02, measures={"ranks": {"up": [[5, 1.5]]}, "diverged_at": None}
    )
    store = RunStore(path)
    store.add(config(1), whole)
    assert store.get(config(1)) == RunStore(path).get(config(1)) == whole


def test_a_run_that_diverged_is_valid_json_and_infinite_again(path: Path) -> None:
    measures = {"train_losses": [2.0, math.nan], "largest": {"norm": math.inf}}
    RunStore(path).add(config(1), run(loss=math.inf, curve=((0, 2.0), (5, math.inf)), measures=measures))
    written = strictly(path.read_text(encoding="utf-8"))["run"]
    assert written["loss"] is None
    assert written["measures"] == {"train_losses": [2.0, None], "largest": {"norm": None}}
    back = RunStore(path).get(config(1))
    assert back is not None
    assert back.loss == math.inf
    assert back.curve == ((0, 2.0), (5, math.inf))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_the_worst(loss: float) -> None:
    assert run(loss=loss).loss == math.inf


def test_a_store_gives_tuples_as_lists_before_they_were_read_again(path: Path) -> None:
    store = RunStore(path)
    store.add(config(1), run(setting={"lr": 2e-3, "betas": (0.9, 0.95)}))
    found = store.get(config(1))
    assert found is not None
    assert found.setting == {"lr": 2e-3, "betas": [0.9, 0.95]}
    assert found == RunStore(path).get(config(1))


def test_a_store_continues_where_it_was_left(path: Path) -> None:
    filled(path, 2)
    store = RunStore(path)
    assert len(store) == 2
    assert store.get(config(2)) is None
    store.add(config(2), run(seed=2))
    assert [found.seed for _, found in RunStore(path).records()] == [0, 1, 2]


def test_records_are_configurations_with_their_runs(path: Path) -> None:
    assert list(filled(path, 2).records()) == [(config(0), run(seed=0)), (config(1), run(seed=1))]


def test_a_store_without_a_file_is_empty_and_makes_none(path: Path) -> None:
    assert len(RunStore(path)) == 0
    assert not path.parent.exists()


def test_a_run_made_again_takes_the_place_of_the_first(path: Path) -> None:
    filled(path, 2).add(config(0), run(seed=0, loss=7.0))
    store = RunStore(path)
    assert [found.loss for _, found in store.records()] == [7.0, 1.0]


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_last_line_counts_for_nothing_and_gives_way_to_the_next(path: Path, cut: int) -> None:
    filled(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    store = RunStore(path)
    assert store.get(config(2)) is None
    store.add(config(2), run(seed=2))
    store.add(config(3), run(seed=3))
    assert path.read_bytes().startswith(b"".join(lines))
    assert len(RunStore(path)) == 4


def test_a_file_that_is_one_torn_line_is_begun_anew(path: Path) -> None:
    filled(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    filled(path, 1)
    assert path.read_bytes() == whole


def test_reading_a_line_that_another_process_is_writing_leaves_the_file_alone(path: Path) -> None:
    filled(path, 2)
    half_written = path.read_bytes()[:-20]
    path.write_bytes(half_written)
    assert len(RunStore(path)) == 1
    assert path.read_bytes() == half_written


@pytest.mark.parametrize("damage", ["not JSON", "", "null", "{}", "no run", "another field", "no loss", "edited"])
def test_a_broken_line_that_is_not_the_last_is_named_by_number(path: Path, damage: str) -> None:
    filled(path, 3)
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1])
    if damage == "no run":
        del record["run"]
    elif damage == "another field":
        record["run"]["colour"] = "red"
    elif damage == "no loss":
        del record["run"]["loss"]
    elif damage == "edited":
        record["config"]["setting"]["lr"] = 1.0
    lines[1] = damage if damage in {"not JSON", "", "null", "{}"} else json.dumps(record)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2, is no recorded run; delete the line"):
        RunStore(path)


def test_configurations_are_equal_whatever_the_order_of_their_keys(path: Path) -> None:
    store = RunStore(path)
    store.add({"task": {"name": "lm", "steps": 5}, "seed": 1}, run())
    assert store.get({"seed": 1, "task": {"steps": 5, "name": "lm"}}) == run()
    assert RunStore(path).get({"seed": 1, "task": {"steps": 5, "name": "lm"}}) == run()


@pytest.mark.parametrize(
    "other",
    [
        {"task": {"name": "lm", "steps": 6}, "seed": 1},
        {"task": {"name": "lm", "steps": 5}, "seed": "1"},
        {"task": {"name": "lm"}, "steps": 5, "seed": 1},
        {"task": {"name": "lm", "steps": 5}, "seed": 1, "clip": None},
    ],
)
def test_configurations_that_differ_are_different_runs(path: Path, other: dict[str, Any]) -> None:
    store = RunStore(path)
    store.add({"task": {"name": "lm", "steps": 5}, "seed": 1}, run())
    assert store.get(other) is None


@pytest.mark.parametrize("missing", ["curve", "loss", "conditions"])
def test_a_record_that_lacks_a_field_is_no_run(missing: str) -> None:
    values = replace(run(), measures={}).to_dict()
    del values[missing]
    with pytest.raises((KeyError, TypeError), match=missing):
        Run.from_dict(values)


def test_runs_under_changed_configurations_are_the_same_runs(path: Path) -> None:
    store = filled(path, 3)
    changed = store.reconfigure(lambda each: {**each, "seed": 7} if each["seed"] == 1 else each)
    assert changed == 1
    assert RunStore(path).get(config(7)) == store.get(config(7)) == run(seed=1)
    assert store.get(config(1)) is None
    assert [found.seed for _, found in RunStore(path).records()] == [0, 1, 2]


def test_two_runs_do_not_come_under_one_configuration(path: Path) -> None:
    store = filled(path, 2)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="two runs would have the same configuration"):
        store.reconfigure(lambda each: {**each, "seed": 5})
    assert path.read_bytes() == before
    assert len(store) == 2
