"""Runs to rows: what is compared with what, and what is left out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from invented_runs import record, run, study, valley

from benchmarks.reporting.recorded import Recorded, StepTimes, recorded
from benchmarks.reporting.tables import (
    baseline_targets,
    costs,
    curve_rows,
    differences,
    final_losses,
    reaches,
    run_rows,
    search_of,
    training_area,
)
from benchmarks.suite import CONFIRMATION_SEEDS
from scao_hf.finetune.comparison.protocol import Comparison, ProtocolError, compare
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore

SEEDS = (42, 43, 44)


def untuned(**losses: tuple[float, ...]) -> Comparison:
    """Final runs with these losses on seeds 42, 43, …"""
    return compare(
        (name, [], [run(name, seed, loss) for seed, loss in zip(SEEDS, values, strict=False)])
        for name, values in losses.items()
    )


def with_curves(**curves: list[tuple[tuple[int, float], ...]]) -> Comparison:
    return compare(
        (name, [], [run(name, seed, each[-1][1], curve=each) for seed, each in zip(SEEDS, values, strict=False)])
        for name, values in curves.items()
    )


def times(**blocks: tuple[float, ...]) -> dict[str, StepTimes]:
    return {name: StepTimes(each, tuple(second / 4 for second in each)) for name, each in blocks.items()}


# Losses


def test_losses_are_ordered_by_their_mean_and_paired_with_adamw() -> None:
    rows = final_losses(untuned(adamw=(2.0, 2.1, 2.2), scao=(1.5, 1.7, 1.6)))
    assert [row.optimizer for row in rows] == ["scao", "adamw"]
    scao, adamw = rows
    assert scao.losses == (1.5, 1.7, 1.6)
    assert scao.from_baseline is not None
    # Differences −0.5, −0.4, −0.6: deviation 0.1, and t = 4.303 at two degrees of freedom.
    assert scao.from_baseline.mean == pytest.approx(-0.5)
    assert scao.from_baseline.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert adamw.from_baseline is None


def test_perplexity_is_the_mean_of_exponentials() -> None:
    (row,) = final_losses(untuned(adamw=(1.0, 3.0)))
    assert row.perplexity.mean == pytest.approx((math.e + math.e**3) / 2)


def test_a_run_that_diverged_makes_the_mean_infinite_and_comes_last() -> None:
    rows = final_losses(untuned(adamw=(2.0, math.inf, 2.0), scao=(3.0, 3.0, 3.0)))
    assert [row.optimizer for row in rows] == ["scao", "adamw"]
    assert rows[1].loss.mean == rows[1].perplexity.mean == rows[1].training_area.mean == math.inf


def test_the_area_is_the_mean_training_loss() -> None:
    assert training_area(run("adamw", 42, 1.0, train_losses=[5.0, 3.0, 1.0])) == 3.0


def test_differences_are_of_one_to_each_other() -> None:
    rows = differences(untuned(adamw=(2.0, 2.0), scao=(1.5, 1.5), muon=(1.0, 1.0)), "scao")
    assert {row.theirs: row.difference.mean for row in rows} == {"adamw": -0.5, "muon": 0.5}
    assert differences(untuned(adamw=(2.0, 2.0)), "scao") == []


def test_accuracy_is_told_where_the_task_has_one() -> None:
    runs = [run("adamw", seed, 1.0, accuracy=accuracy) for seed, accuracy in ((42, 0.5), (43, 0.75))]
    (row,) = final_losses(compare([("adamw", [], runs)]))
    assert row.accuracy is not None
    assert row.accuracy.mean == 0.625
    assert final_losses(untuned(adamw=(1.0,)))[0].accuracy is None


# Time to a target


def test_the_target_is_the_end_of_adamws_own_curve_at_the_same_seed() -> None:
    comparison = with_curves(
        adamw=[((0, 4.0), (100, 2.0)), ((0, 4.0), (100, 3.0))],
        scao=[((0, 4.0), (100, 1.0)), ((0, 4.0), (100, 1.0))],
    )
    targets = baseline_targets(comparison)
    assert targets == {42: 2.0, 43: 3.0}
    adamw, scao = reaches(comparison, targets, {})
    assert adamw.steps == (100.0, 100.0)
    # From 4 to 1 in 100 steps: 2 is reached after two thirds of them, 3 after one third.
    assert scao.steps == pytest.approx((200 / 3, 100 / 3))
    assert scao.step_ratio is not None
    assert scao.step_ratio.mean == pytest.approx(0.5)
    assert adamw.step_ratio is None
    assert scao.mean_seconds is None


def test_seconds_are_steps_times_the_mean_interleaved_step() -> None:
    comparison = with_curves(adamw=[((0, 4.0), (100, 2.0))], scao=[((0, 4.0), (100, 0.0))])
    adamw, scao = reaches(comparison, {42: 2.0}, times(adamw=(0.1, 0.3), scao=(0.4, 0.6)))
    assert adamw.mean_seconds is not None
    assert scao.mean_seconds is not None
    assert scao.second_ratio is not None
    assert adamw.mean_seconds.mean == pytest.approx(100 * 0.2)
    assert scao.mean_seconds.mean == pytest.approx(50 * 0.5)
    assert scao.second_ratio.mean == pytest.approx(25 / 20)


def test_a_target_missed_on_one_seed_has_no_mean() -> None:
    comparison = with_curves(adamw=[((0, 4.0), (100, 2.0))] * 2, scao=[((0, 4.0), (100, 1.0)), ((0, 4.0), (100, 2.5))])
    _, scao = reaches(comparison, {42: 2.0, 43: 2.0}, times(adamw=(1.0,), scao=(1.0,)))
    assert scao.steps[1] is None
    assert scao.mean_steps is scao.step_ratio is scao.mean_seconds is scao.second_ratio is None


def test_a_target_that_adamw_meets_before_its_first_step_has_no_ratio() -> None:
    comparison = with_curves(adamw=[((0, 2.0), (100, 1.0))], scao=[((0, 3.0), (100, 1.0))])
    _, scao = reaches(comparison, {42: 2.0}, {})
    assert scao.steps == (50.0,)
    assert scao.step_ratio is None


def test_there_is_no_target_without_a_finite_adamw() -> None:
    assert baseline_targets(untuned(scao=(1.0,))) is None
    assert baseline_targets(untuned(adamw=(1.0, math.inf))) is None


# Costs


def test_costs_are_ratios_to_the_block_beside() -> None:
    adamw, scao = costs(untuned(adamw=(2.0,), scao=(2.0,)), times(adamw=(0.1, 0.2), scao=(0.2, 0.3)))
    assert scao.step_ratio is not None
    assert scao.step_ratio.mean == pytest.approx((2.0 + 1.5) / 2)
    assert scao.share == pytest.approx(0.25)
    assert scao.targets_per_second == pytest.approx(40 / 0.25)  # 4000 targets in 100 steps, 0.25 s each
    assert (adamw.state_ratio, scao.state_ratio) == (1.0, 1.25)
    assert scao.peak_bytes == 100_000_042


def test_costs_without_timing_have_no_times() -> None:
    (adamw,) = costs(untuned(adamw=(2.0,)), {})
    assert adamw.step_seconds is adamw.share is adamw.targets_per_second is None
    assert adamw.state_bytes == 8_000_000


# Runs found again


LOSSES = valley({"adamw": 4e-3, "scao": 8e-3, "muon": 2e-2}, {"adamw": 2.0, "scao": 1.6, "muon": 1.7})


def read(folder: Path, *optimizers: str) -> Recorded:
    return recorded("invented", study(*optimizers), folder)


def test_a_study_is_found_again_without_training(tmp_path: Path) -> None:
    made = record(tmp_path / "runs.jsonl", study("adamw", "scao"), LOSSES)
    found = read(tmp_path, "adamw", "scao")
    assert found.comparison == made
    assert found.left_out == {}
    assert found.outside is None
    assert found.timing is None


def test_competitors_that_are_incomplete_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw", "scao", "muon"), LOSSES)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [
        line
        for line in lines
        if not (line["config"]["optimizer"] == "scao" and line["config"]["seed"] == 44)
        and not (line["config"]["optimizer"] == "muon" and line["run"]["setting"]["auxiliary"] == 0.4)
    ]
    assert len(kept) == len(lines) - 2
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    found = read(tmp_path, "adamw", "scao", "muon", "soap")
    assert found.comparison is not None
    assert list(found.comparison.entries) == ["adamw"]
    assert found.left_out == {
        "scao": "4 of 4 trials and 2 of 3 final runs",
        "muon": "3 of 4 trials and 0 of 3 final runs",
        "soap": "no runs",
    }


def test_the_last_version_in_the_store_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw"), LOSSES, version="code 1")
    record(path, study("adamw"), lambda *run: LOSSES(*run) - 1, version="code 2")
    found = read(tmp_path, "adamw")
    assert found.comparison is not None
    assert found.comparison.entries["adamw"].losses == pytest.approx([1.02, 1.03, 1.04])
    assert search_of("adamw", found.found["adamw"]).version == "code 2"


def test_an_ablation_in_the_same_store_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    made = record(path, study("adamw"), LOSSES)
    store = RunStore(path)
    config, last = list(store.records())[-1]
    store.add({**config, "clip": 0.1}, replace(last, loss=0.0))
    assert read(tmp_path, "adamw").comparison == made


def test_optimizers_beside_the_studys_own_are_found(tmp_path: Path) -> None:
    record(tmp_path / "runs.jsonl", study("adamw", "scao"), LOSSES)
    found = read(tmp_path, "adamw")
    assert found.extras == ("scao",)
    assert found.comparison is not None
    assert list(found.comparison.entries) == ["adamw", "scao"]


def test_an_optimizer_with_its_own_schedule_stands_apart(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw"), LOSSES)
    losses = valley({"schedulefree": 4e-3}, {"schedulefree": 1.0})
    record(path, study("schedulefree"), losses, conditions={"schedule": "its own"})
    found = read(tmp_path, "adamw", "schedulefree")
    assert found.comparison is not None
    assert found.outside is not None
    assert list(found.comparison.entries) == ["adamw"]
    assert list(found.outside.entries) == ["schedulefree"]


def test_an_optimum_on_the_edge_is_left_out_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw"), LOSSES)
    with pytest.raises(ProtocolError):
        record(path, study("scao"), lambda optimizer, setting, seed: -math.log(setting["lr"]))
    found = read(tmp_path, "adamw", "scao")
    assert "the smallest or the largest tried" in found.left_out["scao"]
    assert found.comparison is not None
    assert list(found.comparison.entries) == ["adamw"]


def test_an_optimizer_all_of_whose_trials_diverged_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="finite"):
        record(tmp_path / "runs.jsonl", study("adamw"), lambda *run: math.inf)
    found = read(tmp_path, "adamw")
    assert found.left_out == {"adamw": "every trial diverged"}
    assert found.comparison is None


def test_runs_made_under_different_conditions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw"), LOSSES, conditions={"clipping": 1.0})
    record(path, study("scao"), LOSSES, conditions={"clipping": 0.5})
    with pytest.raises(ProtocolError, match=r"^invented: different clipping"):
        read(tmp_path, "adamw", "scao")


def test_a_study_without_trials_and_with_one_seed_is_found(tmp_path: Path) -> None:
    plain = study("adamw", "scao", trials=0, seeds=(42,))
    made = record(tmp_path / "runs.jsonl", plain, LOSSES)
    assert recorded("invented", plain, tmp_path).comparison == made


def test_the_search_tells_every_value_and_what_diverged(tmp_path: Path) -> None:
    def losses(optimizer: str, setting: Setting, seed: int) -> float:
        return math.inf if setting["lr"] > 7e-3 else LOSSES(optimizer, setting, seed)

    record(tmp_path / "runs.jsonl", study("adamw"), losses)
    search = search_of("adamw", read(tmp_path, "adamw").found["adamw"])
    assert search.tried["lr"] == [2e-3, 4e-3, 8e-3]
    assert search.tried["auxiliary"] == [0.5, 1.0]
    assert search.chosen["lr"] == 4e-3
    assert (search.trials, search.diverged) == (4, 1)
    assert search.best_loss == pytest.approx(2.01)  # the tuning seed is 1


def test_confirmed_trials_are_found_again_and_choose(tmp_path: Path) -> None:
    def losses(optimizer: str, setting: Setting, seed: int) -> float:
        unlucky = seed in CONFIRMATION_SEEDS and setting["auxiliary"] == 1.0  # what the search on seed 1 does not see
        return LOSSES(optimizer, setting, seed) + 0.05 * (setting["auxiliary"] == 0.5) + unlucky

    confirmed = study("adamw", confirmations=2)
    made = record(tmp_path / "runs.jsonl", confirmed, losses)
    found = recorded("invented", confirmed, tmp_path)
    assert found.comparison == made
    search = search_of("adamw", found.found["adamw"])
    assert search.trials == 4 + 2 * len(CONFIRMATION_SEEDS)
    assert search.chosen["auxiliary"] == 0.5
    assert search.best_loss == pytest.approx(2.05 + (0.01 + 0.02 + 0.03 + 0.04) / 4)


def test_every_run_is_a_row_and_every_final_curve_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, study("adamw", "scao"), LOSSES)
    found = read(tmp_path, "adamw", "scao").found
    rows, keys = run_rows(found), {json.loads(line)["key"] for line in path.read_text().splitlines()}
    assert {row["key"] for row in rows} == keys
    assert [row["purpose"] for row in rows if row["optimizer"] == "scao"] == ["trial"] * 4 + ["final"] * 3
    assert rows[0]["optimizer_ms"] == 250.0
    assert rows[0]["perplexity"] == math.exp(rows[0]["loss"])
    points = curve_rows(found)
    assert len(points) == 2 * 3 * 2
    assert {point["seed"] for point in points} == set(SEEDS)


def test_a_run_that_diverged_is_a_row_with_an_infinite_loss(tmp_path: Path) -> None:
    diverged: Run = run("adamw", 42, math.inf)
    assert diverged.measures["diverged_at"] == 50
    record(tmp_path / "runs.jsonl", study("adamw", trials=0, seeds=(42,)), lambda *run: math.inf)
    (row,) = run_rows(recorded("invented", study("adamw", trials=0, seeds=(42,)), tmp_path).found)
    assert (row["loss"], row["perplexity"], row["diverged_at"]) == (math.inf, math.inf, 50)
