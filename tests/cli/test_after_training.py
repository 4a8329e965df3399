"""The commands over finished runs: what goes to which stream, as text and as JSON, and how they fail."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune.results import made
from scao_hf.cli import chat
from scao_hf.cli.completion import complete_run
from scao_hf.cli.main import main


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """runs/first with SCAO and, begun later, runs/second with AdamW, which was interrupted."""
    made.write_run(tmp_path / "runs" / "first")
    info = {**made.facts(tmp_path)["run"], "optimizer": "adamw_torch", "learning_rate": 0.001, "adam_steps": None}
    changes = {"status": "interrupted", "started": "2025-04-01T00:00:00+00:00", "run": info, "report": None}
    metrics = [event for event in made.events("adamw_torch") if event["step"] <= 25]
    recipe = {"optimizer": "adamw_torch", "rate": 0.001}
    made.write_run(tmp_path / "runs" / "second", changes, metrics, weights=None, recipe=recipe)
    return tmp_path / "runs"


def test_the_list_of_runs_has_a_line_for_each_with_the_latest_first(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs"]) == 0
    header, second, first = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "STATUS", "STEPS", "HELD-OUT", "OPTIMIZER", "LR", "TIME", "STARTED"]
    assert second.split()[:7] == ["second", "interrupted", "25/40", "2.000", "adamw_torch", "0.001", "12"]
    assert first.split()[:6] == ["first", "finished", "40/40", "1.500", "scao", "0.002"]


def test_the_list_of_runs_as_json_is_one_document(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--json"]) == 0
    assert [(line["name"], line["eval_loss"]) for line in json.loads(capsys.readouterr().out)] == [
        ("second", 2.0),
        ("first", 1.5),
    ]


def test_an_empty_folder_of_runs_is_a_word_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no run in runs; `scao-finetune demo` makes one\n")


def test_a_run_is_shown_with_results_and_settings(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "first"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("runs/first: finished\n")
    for told in ("3.000 before, 1.500 after", "20.09 before, 4.48 after", "k_max 16", "cosine after", "torch 2.6.0"):
        assert told in out
    assert main(["runs", "show", "second", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "interrupted"


def test_two_runs_differ_in_what_is_told_and_in_nothing_else(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "diff", "first", "second"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["training.optim", "scao", "adamw_torch"] in lines
    assert ["training.learning_rate", "0.002", "0.001"] in lines
    assert ["final_eval_loss", "1.5", "-"] in lines
    assert not any(line[:1] == ["lora.r"] for line in lines)
    assert main(["runs", "diff", "first", "second", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["training.optim"] == ["scao", "adamw_torch"]


def test_report_prints_where_the_page_is(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "second", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == "runs/second/report/report.html"
    assert Path(told["report"]).is_file()
    assert sorted(Path(figure).name for figure in told["figures"]) == [
        "losses.png", "losses.svg", "memory.png", "memory.svg", "stability.png", "stability.svg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "thrid"],
        ["generate", "thrid"],
        ["chat", "thrid"],
        ["merge", "thrid", "--out", "x"],
        ["push", "thrid", "me/x"],
        ["runs", "show", "thrid"],
    ],
)
def test_a_run_that_is_not_there_is_an_error_with_exit_code_2(
    arguments: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["code"] == "config.not-a-run"
    assert "no run is called thrid" in err


def test_a_run_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refusing)
    assert main(["report", "locked"]) == 7
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error[disk.permission]: no permission for locked/run.json",
        "   = help: change its mode",
    ]


def test_a_model_without_data_cannot_be_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "org/model"]) == 2
    assert "org/model is not a run, so give the data to evaluate on" in capsys.readouterr().err


def test_rates_that_do_not_grow_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lr-find", "demo", "--low", "1", "--high", "0.1"]) == 2
    assert "got 1 to 0.1" in capsys.readouterr().err


def test_runs_are_completed_by_name_and_by_folder(runs: Path) -> None:
    assert complete_run("f") == ["first"]
    assert complete_run("runs/s") == ["runs/second"]


class Parrot:
    """A conversation that says everything twice, in two pieces."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.resets = 0

    def say(self, text: str, told: Any = None) -> str:
        self.heard.append(text)
        for piece in (text, f" {text}"):
            if told is not None:
                told(piece)
        return f"{text} {text}"

    def reset(self) -> None:
        self.resets += 1


def test_a_person_who_breaks_an_answer_off_goes_on_talking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Parrot):
        def say(self, text: str, told: Any = None) -> str:
            if text == "long":
                raise KeyboardInterrupt
            return super().say(text, told)

    lines = iter(["long", "hello"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    parrot = Interrupted()
    chat.talk(parrot, aloud=True)  # type: ignore[arg-type]
    assert parrot.heard == ["hello"]
    assert capsys.readouterr().out == "model> \nmodel> hello hello\n\n"


def test_in_a_pipe_every_line_is_a_turn_and_the_answers_alone_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n/reset\nthere\x1b\n/exit\nnever\n"))
    parrot = Parrot()
    chat.talk(parrot, aloud=True)  # type: ignore[arg-type]
    assert (parrot.heard, parrot.resets) == (["hello", "there\x1b"], 1)
    out, err = capsys.readouterr()
    # What a terminal would obey is printed as an escape.
    assert (out, err) == ("hello hello\nthere\\x1b there\\x1b\n", "")
