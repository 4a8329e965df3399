"""What is read back from the folder of a run, and what two runs differ in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune.results import made

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.results.folder import find_runs, is_run, open_run
from scao_hf.finetune.results.history import read_history, smoothed
from scao_hf.finetune.results.listing import difference, line_of


def test_a_history_has_every_step_and_evaluation_once_and_ranks_by_layer(tmp_path: Path) -> None:
    history = read_history(made.write_run(tmp_path / "run").path)
    assert [step for step, _ in history.losses()] == list(range(1, made.STEPS + 1))
    assert history.held_out() == [(0, 3.0), (20, 2.0), (40, 1.5)]
    assert list(history.ranks) == made.LAYERS
    assert history.ranks[made.LAYERS[0]] == {step: 4.0 + step / 10 for step in range(5, 41, 5)}


def test_the_steps_that_a_resumed_run_repeats_count_as_it_made_them_last(tmp_path: Path) -> None:
    again = {**made.events()[1], "loss": 9.0}
    history = read_history(made.write_run(tmp_path / "run", metrics=[*made.events(), again]).path)
    assert history.losses()[0] == (1, 9.0)
    assert len(history.losses()) == made.STEPS


def test_a_line_cut_off_by_a_kill_is_left_out_and_one_amidst_others_is_not(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    path = run.path / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"event": "st', encoding="utf-8")
    assert len(read_history(run.path).losses()) == made.STEPS
    path.write_text('{"event": "st\n' + whole, encoding="utf-8")
    with pytest.raises(json.JSONDecodeError):
        read_history(run.path)


def test_seconds_between_two_logged_steps_are_in_proportion(tmp_path: Path) -> None:
    sparse = [event for event in made.events() if event["step"] % 10 == 0]
    history = read_history(made.write_run(tmp_path / "run", metrics=sparse).path)
    assert [history.seconds_at(step) for step in (0, 5, 10, 25, 40, 99)] == [0.0, 2.5, 5.0, 12.5, 20.0, 20.0]


def test_the_phases_cover_the_run_in_order(tmp_path: Path) -> None:
    phases = read_history(made.write_run(tmp_path / "run").path).phases()
    assert phases == [("Adam", 0.0, 10.0), ("ramp", 10.0, 19.0), ("preconditioned", 19.0, 40.0)]
    other = read_history(made.write_run(tmp_path / "other", metrics=made.events("adamw_torch")).path)
    assert (other.phases(), dict(other.ranks)) == ([], {})


def test_smoothing_keeps_a_constant_and_weighs_the_last_points_most() -> None:
    assert smoothed([(1, 2.0), (2, 2.0), (3, 2.0)], 3) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    # With a span of 3 the weights are 1/2, 1/4, ...: (1 · 1/4 + 4 · 1/2) / (3/4) = 3.
    assert smoothed([(1, 1.0), (2, 4.0)], 3) == [(1, 1.0), (2, pytest.approx(3.0))]


def test_a_run_is_found_by_its_folder_and_by_its_name_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write_run(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert open_run("mine").path == open_run("runs/mine").path == Path("runs/mine")
    assert open_run("runs/mine").name == "mine"
    assert is_run("mine")
    assert not is_run("org/model")


@pytest.mark.parametrize(
    ("name", "hint"), [("mime", "did you mean runs/mine?"), ("elsewhere", "in runs/: mine"), ("runs", "in runs/: mine")]
)
def test_a_name_that_is_no_run_tells_which_are(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write_run(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinetuneError) as caught:
        open_run(name)
    assert (caught.value.code, caught.value.exit_code, caught.value.hint) == ("config.not-a-run", 2, hint)


def test_a_broken_record_names_its_file(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    (run.path / "run.json").write_text('{"status": ', encoding="utf-8")
    with pytest.raises(FinetuneError, match=r"run\.json is not JSON") as caught:
        open_run(run.path)
    assert caught.value.code == "config.run-record"


def test_runs_are_listed_with_the_latest_first_and_as_deep_as_a_few_folders(tmp_path: Path) -> None:
    made.write_run(tmp_path / "a", {"started": "2025-01-01T00:00:00+00:00"})
    made.write_run(tmp_path / "deep" / "er" / "b", {"started": "2025-02-01T00:00:00+00:00"})
    assert [run.path.name for run in find_runs(tmp_path)] == ["b", "a"]
    assert find_runs(tmp_path / "nowhere") == []


def test_a_line_tells_how_far_a_run_came_that_did_not_end(tmp_path: Path) -> None:
    metrics = [event for event in made.events() if event["step"] <= 25]
    run = made.write_run(tmp_path / "run", {"status": "interrupted", "report": None}, metrics, weights=None)
    line = line_of(run)
    assert (line.status, line.step, line.total_steps) == ("interrupted", 25, 40)
    assert (line.eval_loss, line.seconds) == (2.0, 12.5)
    with pytest.raises(FinetuneError, match="it is interrupted") as caught:
        _ = run.weights
    assert caught.value.code == "model.no-weights"


def test_a_difference_has_the_settings_that_differ_and_all_results(tmp_path: Path) -> None:
    first = made.write_run(tmp_path / "a")
    report = {**first.report, "final_eval_loss": 1.75}
    changes = {"report": report, "versions": {**first.facts["versions"], "torch": "2.7.0"}}
    second = made.write_run(tmp_path / "b", changes, recipe={"optimizer": "adamw_torch", "rate": 0.001})
    found = difference(first, second)
    assert found.settings == {
        "training.optim": ("scao", "adamw_torch"),
        "training.learning_rate": (0.002, 0.001),
        "version of torch": ("2.6.0", "2.7.0"),
    }
    assert found.results["final_eval_loss"] == (1.5, 1.75)
    assert found.results["steps"] == (40, 40)
    assert found.same_data
    other = made.write_run(tmp_path / "c", {"data": {"fingerprint": "sha256:bb"}})
    assert not difference(first, other).same_data
