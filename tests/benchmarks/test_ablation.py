"""SCAO with one thing changed: every arm changes something that there is, and the page tells what the runs say."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from invented_runs import ENVIRONMENT, run

from benchmarks import ablation
from benchmarks.ablation import ARMS, DEFAULT, Arm, config_of, findings, rate_arms, start, write
from benchmarks.optimizers import COMMON
from benchmarks.suite import SEEDS, Machine
from scao_hf import SCAO
from scao_hf.finetune.comparison.store import RunStore

MACHINE = Machine(None)


def filled(path: Path, arms: list[Arm], seeds: tuple[int, ...] = SEEDS) -> RunStore:
    """Each arm a tenth above the one before it, the seeds a hundredth apart."""
    store = RunStore(path / "runs.jsonl")
    for index, arm in enumerate(arms):
        for place, seed in enumerate(seeds):
            measures = {"optimizer_seconds": 0.01, "environment": ENVIRONMENT}
            store.add(config_of(MACHINE, arm, seed), run("scao", seed, 1.5 + index / 10 + place / 100, **measures))
    return store


def test_every_arm_changes_an_option_of_scao_to_another_value() -> None:
    parameters = inspect.signature(SCAO).parameters
    for arm in ARMS[1:]:
        for name, value in arm.change.items():
            assert name in parameters or name in COMMON
            usual = start().get(name, parameters[name].default if name in parameters else None)
            assert value != usual, f"{arm.name} is what SCAO does anyway"
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_the_rates_are_multiples_of_the_usual_one_and_among_them_it_is() -> None:
    rates = [{**start(), **arm.change}["lr"] / start()["lr"] for arm in rate_arms()]
    assert rates == list(ablation.FACTORS)
    assert config_of(MACHINE, rate_arms()[ablation.FACTORS.index(1.0)], 42) == config_of(MACHINE, ARMS[0], 42)


def test_a_finding_is_the_difference_from_scao_as_it_comes_on_the_same_seeds(tmp_path: Path) -> None:
    usual, changed = findings(MACHINE, filled(tmp_path, ARMS[:2]), ARMS)
    assert (usual.arm.name, usual.difference) == (DEFAULT, None)
    assert changed.difference is not None
    assert changed.difference.mean == pytest.approx(0.1)
    assert changed.difference.half_width == pytest.approx(0.0, abs=1e-9)


def test_an_arm_that_lacks_a_seed_is_left_out(tmp_path: Path) -> None:
    store = filled(tmp_path, ARMS[:2])
    store.add(config_of(MACHINE, ARMS[2], SEEDS[0]), run("scao", SEEDS[0], 1.0))
    assert [found.arm.name for found in findings(MACHINE, store, ARMS)] == [arm.name for arm in ARMS[:2]]


def test_without_scao_as_it_comes_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="python -m benchmarks ablation makes them"):
        findings(MACHINE, filled(tmp_path, ARMS[1:2]), ARMS)


def test_the_page_has_a_row_for_every_arm_with_all_its_seeds(tmp_path: Path) -> None:
    arms = [*ARMS[:3], *(arm for arm in rate_arms() if arm.change)]
    paths = write(MACHINE, filled(tmp_path, arms), tmp_path)
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert f"| {ARMS[1].name} | 1.610 ± 0.010 | +0.100 ± 0.000 | 10.0 |" in page
    assert page.count("| lr × ") == len(ablation.FACTORS)
    assert ARMS[3].name not in page
    assert f"ablation --only {ARMS[1].part} --only lr --out" in page
    assert {path.name for path in paths} == {"summary.md", "loss_by_rate.svg", "loss_by_rate.png"}
    assert all(path.exists() for path in paths)


def test_one_learning_rate_is_no_curve(tmp_path: Path) -> None:
    paths = write(MACHINE, filled(tmp_path, ARMS[:2]), tmp_path)
    assert paths == [tmp_path / "summary.md"]
    assert "learning rate" not in paths[0].read_text(encoding="utf-8")


def test_with_every_arm_there_the_command_names_no_part(tmp_path: Path) -> None:
    write(MACHINE, filled(tmp_path, [*ARMS, *(arm for arm in rate_arms() if arm.change)]), tmp_path)
    assert "`python -m benchmarks ablation --out" in (tmp_path / "summary.md").read_text(encoding="utf-8")
