"""A run that was interrupted goes on as if it had not been, and one that cannot go on says why."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune import ddp_resume
from finetune.resuming import SETTINGS, STEPS, assert_same_run, measured, weights

from scao_hf.finetune.checkpoints import MARKER, STAGING, checkpoints_in, last_checkpoint, read_checkpoint
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.observer import Observer, StepMetrics
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import FinetuneReport, finetune


class Interrupting(Observer):
    """Sends this process a signal when a step or a later one is told, and remembers notices."""

    def __init__(self, at_step: int | None = None, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.at_step, self.number, self.times = at_step, number, times
        self.notices: list[str] = []

    def step(self, metrics: StepMetrics) -> None:
        if self.at_step is not None and metrics.step >= self.at_step:
            self.at_step = None
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


@pytest.fixture(scope="module")
def kept(write_recipe: Callable[[Path, Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of `recipe_file`, for runs that several tests look at."""
    folder = tmp_path_factory.mktemp("kept")
    rows = "".join(json.dumps({"text": f"the cat number {n} sat on the mat"}) + "\n" for n in range(24))
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    return write_recipe(folder, folder / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(kept: Path) -> FinetuneReport:
    """The run without an interruption."""
    return finetune(load_recipe(str(kept), [*SETTINGS, f"output_dir={kept.parent / 'whole'}"]))


@pytest.fixture(scope="module")
def stopped_run(kept: Path) -> tuple[Start, Path]:
    """A run that was interrupted after step 6, with its folder; not to be changed."""

    def run(*overrides: str, observer: Observer | None = None, **options: Any) -> FinetuneReport:
        return finetune(load_recipe(str(kept), [*SETTINGS, *overrides]), observer, **options)

    with pytest.raises(Interrupted):
        run(observer=Interrupting(5))
    return run, kept.parent / "run"


def stop_after(start: Start, step: int, *overrides: str) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        # A step is told after its end, so that the signal is for the next one.
        start("logging_steps=1", *overrides, observer=Interrupting(step - 1))
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


def test_a_run_is_continued_over_three_interruptions(start: Start, folder: Path, whole: FinetuneReport) -> None:
    for step in (1, 4, 8):
        with pytest.raises(Interrupted):
            start("logging_steps=1", observer=Interrupting(step), resume=folder.exists())
    start(resume=True)
    assert weights(folder) == weights(whole.output_dir)


def test_full_fine_tuning_with_another_optimizer_continues_bit_for_bit(start: Start, tmp_path: Path) -> None:
    plain = ["lora=null", "scao=null", "optim=adamw_torch"]
    # The sections that are switched off would be filled again by the settings of this module.
    settings = [setting for setting in SETTINGS if not setting.startswith(("lora.", "scao."))]
    recipe = str(tmp_path / "small.yaml")
    finetune(load_recipe(recipe, [*plain, *settings, f"output_dir={tmp_path / 'whole'}"]))
    with pytest.raises(Interrupted):
        finetune(load_recipe(recipe, [*plain, *settings]), Interrupting(5))
    finetune(load_recipe(recipe, [*plain, *settings]), resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_continue_bit_for_bit(recipe_file: Path, folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    halved = ["per_device_train_batch_size=2", "ddp_backend=gloo"]
    done = subprocess.run(
        [*launcher, ddp_resume.__file__, str(recipe_file), *SETTINGS, *halved],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, folder.parent / "whole")


def test_a_second_signal_stops_at_once_and_names_the_last_checkpoint(start: Start, folder: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        start("logging_steps=1", observer=Interrupting(5, signal.SIGTERM, times=2))
    stopped = caught.value
    assert (stopped.exit_code, stopped.checkpoint) == (143, folder / "checkpoint-3")
    assert (
        stopped.message == f"stopped at once by SIGTERM after step 5; the last checkpoint is {folder / 'checkpoint-3'}"
    )
    assert checkpoints_in(folder)[1] == []


def test_checkpoints_are_whole_and_the_oldest_are_removed(start: Start, folder: Path) -> None:
    start()
    whole, skipped = checkpoints_in(folder)
    assert ([checkpoint.step for checkpoint in whole], skipped) == ([9, STEPS], [])
    assert not (folder / STAGING).exists()
    noted = json.loads((whole[-1].path / MARKER).read_text(encoding="utf-8"))
    sizes = {path.name: path.stat().st_size for path in whole[-1].path.iterdir() if path.name != MARKER}
    assert noted["files"] == sizes


def test_a_checkpoint_has_the_metrics_of_the_optimizer_and_plain_state(whole: FinetuneReport) -> None:
    checkpoint = whole.output_dir / f"checkpoint-{STEPS}"
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [5, 10]
    assert all(entry["scao/rank_mean"] > 0 for entry in logged)
    assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]


def test_an_incomplete_checkpoint_is_skipped_with_a_word(start: Start, folder: Path, whole: FinetuneReport) -> None:
    stop_after(start, 6)
    observer = Interrupting()
    cut = Path(shutil.copytree(folder / "checkpoint-6", folder / "checkpoint-9"))
    (cut / "optimizer.pt").write_bytes(b"half")
    unmarked = Path(shutil.copytree(folder / "checkpoint-6", folder / "checkpoint-10"))
    (unmarked / MARKER).unlink()
    (folder / STAGING / "checkpoint-8").mkdir(parents=True)
    start(observer=observer, resume=True)
    size = (folder / "checkpoint-12" / "optimizer.pt").stat().st_size
    assert observer.notices[:4] == [
        f"{cut} is skipped: optimizer.pt has 4 bytes, and had {size}",
        f"{unmarked} is skipped: it has no complete.json, so that it was not written to its end",
        f"checkpoint-8 in {folder} is skipped: the run was killed while it was written",
        f"going on from {folder / 'checkpoint-6'}, step 6",
    ]
    assert weights(folder) == weights(whole.output_dir)


def test_a_run_without_a_complete_checkpoint_begins_again(start: Start, folder: Path, whole: FinetuneReport) -> None:
    stop_after(start, 2)
    (folder / "checkpoint-2" / MARKER).unlink()
    observer = Interrupting()
    start(observer=observer, resume=True)
    assert observer.notices[-1] == f"{folder} has no complete checkpoint yet: the run begins again"
    assert_same_run(folder, whole.output_dir)


def test_a_run_killed_between_its_last_checkpoint_and_its_end_makes_no_step_more(
    start: Start, folder: Path, whole: FinetuneReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scao_hf.finetune.kept_run.save_weights", fail)
        with pytest.raises(Interrupted):
            start()
    assert (folder / "checkpoint-12").is_dir()
    assert not weights(folder)
    start(resume=True)
    assert_same_run(folder, whole.output_dir)


def test_settings_that_may_change_are_told_and_take_effect(start: Start, folder: Path) -> None:
    stop_after(start, 6)
    observer = Interrupting()
    start("learning_rate=5e-3", "max_steps=14", "logging_steps=1", observer=observer, resume=True)
    noted = read_checkpoint(folder / "checkpoint-14").facts
    assert (noted["recipe"]["scao"]["warmup_steps"], noted["options"]["warmup_steps"]) == ("auto", 3)
    assert observer.notices[1:] == [
        "changed since the checkpoint: training.learning_rate: 0.01 → 0.005",
        "changed since the checkpoint: training.max_steps: 12 → 14",
    ]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["resumed"][0]["changes"]["training.learning_rate"] == [1e-2, 5e-3]
    rates = {line["step"]: line["learning_rate"] for line in measured(folder) if line["event"] == "step"}
    assert sorted(rates) == list(range(1, 15))
    # Cosine after 2 steps of warm-up: over 12 steps at first, over 14 from there on.
    expected = {step: 5e-3 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 12)) for step in range(7, 15)}
    assert {step: rates[step] for step in expected} == pytest.approx(expected)
    assert rates[6] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 3 / 10)))


def test_a_step_in_smaller_pieces_of_the_same_rows_goes_on(start: Start, folder: Path, whole: FinetuneReport) -> None:
    stop_after(start, 6)
    halved = ["per_device_train_batch_size=2", "gradient_accumulation_steps=2"]
    report = start(*halved, resume=True)
    assert report.final_eval_loss == pytest.approx(whole.final_eval_loss, rel=1e-3)
    assert report.tokens == whole.tokens


@pytest.mark.parametrize(
    ("override", "code", "told"),
    [
        ("optim=adamw_torch", "resume.changed", "the checkpoint holds the state of the other one"),
        (
            "lora.r=8",
            "resume.changed",
            "`lora.r` is 8, and was 4 in the checkpoint: the checkpoint's weights would not",
        ),
        ("lora.target_modules=[q_proj]", "resume.changed", "weights would not fit"),
        ("training.seed=1", "config.several", "the rows, or their order, would be others"),
        ("data.test_split_size=5", "resume.changed", "the rows, or their order, would be others"),
        ("per_device_train_batch_size=2", "resume.changed", "a step has 2 rows, and had 4 in"),
        ("scao.k_max=8", "resume.changed", "it is part of the optimizer's state"),
        ("weight_decay=0.5", "resume.changed", "`training.weight_decay` is 0.5, and was 0.0 in the checkpoint"),
        ("max_steps=5", "resume.too-few-steps", "has made 6 steps, and the run is to have 5"),
    ],
)
def test_what_cannot_change_is_refused_and_nothing_is_touched(
    stopped_run: tuple[Start, Path], override: str, code: str, told: str
) -> None:
    start, folder = stopped_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    error = refusal(start, override)
    codes = {problem.code for problem in error.problems}
    assert codes == ({"resume.changed"} if code == "config.several" else {code})
    assert error.exit_code == 2
    assert any(told in problem.message for problem in error.problems)
    assert all(problem.hint for problem in error.problems)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_rows_are_refused_and_the_same_rows_elsewhere_are_not(
    stopped_run: tuple[Start, Path], tmp_path: Path
) -> None:
    start, folder = stopped_run
    rows = folder.parent / "rows.jsonl"
    moved = Path(shutil.copy(rows, tmp_path / "rows.jsonl"))
    elsewhere = f"output_dir={tmp_path / 'elsewhere'}"
    assert start(f"data.path={moved}", elsewhere, resume=folder).steps == STEPS
    moved.write_text(rows.read_text(encoding="utf-8").replace("mat", "rug"), encoding="utf-8")
    error = refusal(start, f"data.path={moved}")
    assert error.code == "resume.data"
    assert error.message.startswith(f"the rows of {moved} are not those that {folder / 'checkpoint-6'} was trained on")


def test_a_finished_run_is_refused_and_goes_on_when_it_is_given_more_steps(start: Start, folder: Path) -> None:
    start()
    error = refusal(start)
    assert (error.code, error.message) == ("resume.finished", f"{folder} is finished: all 12 steps are made")
    assert error.hint == "for more steps: training.max_steps=24"
    assert start("max_steps=13", resume=True).steps == 13
    evaluations = [line for line in measured(folder) if line["event"] == "evaluation"]
    assert [(line["moment"], line["step"]) for line in evaluations][:-1] == [
        ("before", 0),
        *(("during", step) for step in (4, 8, 12)),
    ]
    assert evaluations[-1]["step"] == 13


def test_nothing_to_resume_names_runs_that_can_be(stopped_run: tuple[Start, Path], tmp_path: Path) -> None:
    start, folder = stopped_run
    error = refusal(start, f"output_dir={folder.parent / 'none'}")
    assert (error.code, error.exit_code) == ("resume.nothing", 2)
    assert error.message == f"{folder.parent / 'none'} does not exist, so there is nothing to resume"
    assert error.hint is not None
    assert error.hint.split("; ")[0] == f"--resume-from {folder / 'checkpoint-6'}"
    error = refusal(start, f"output_dir={tmp_path / 'a' / 'b'}")
    assert error.hint == "leave --resume out to begin a run"


def test_an_earlier_checkpoint_is_gone_on_from_only_when_the_later_ones_may_go(start: Start, folder: Path) -> None:
    stop_after(start, 7)
    error = refusal(start, resume=folder / "checkpoint-6")
    assert error.code == "resume.later"
    assert str(folder / "checkpoint-7") in error.message
    with pytest.raises(Interrupted):
        start("logging_steps=1", resume=folder / "checkpoint-6", overwrite=True, observer=Interrupting(7))
    assert last_checkpoint(folder) == folder / "checkpoint-8"
    assert not (folder / "checkpoint-7").exists()


def test_weights_alone_cannot_be_resumed_from(start: Start, folder: Path) -> None:
    stopped = stop_after(start, 4, "save_only_model=true")
    assert stopped.checkpoint is not None
    assert read_checkpoint(stopped.checkpoint).step == 4
    error = refusal(start, resume=folder / "checkpoint-3")
    assert error.code == "resume.incomplete"
    assert "it holds weights alone" in error.message


def test_a_folder_in_use_says_that_it_can_be_resumed(stopped_run: tuple[Start, Path]) -> None:
    start, _ = stopped_run
    error = refusal(start, resume=False)
    assert error.code == "config.output-exists"
    assert (
        error.hint == "--resume goes on with the run in it, --overwrite replaces it, training.output_dir=NEW leaves it"
    )
