"""How an error looks: its place with the line of the file, several at once, a hint of several lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from scao_hf.cli.failures import print_failure, unforeseen

from scao_hf.finetune.errors import FinetuneError, Location, SeveralErrors


def told(failure: FinetuneError) -> str:
    stream = io.StringIO()
    print_failure(failure, Console(file=stream, markup=False, highlight=False, width=60))
    return stream.getvalue()


UNKNOWN_KEY = FinetuneError(
    "config.unknown-key",
    "unknown key `training.learing_rate`",
    hint="did you mean `learning_rate`?",
    location=Location("my.yaml", 4, 3, text="  learing_rate: 2e-4", length=12),
)


def test_an_error_in_a_file_shows_the_line_with_a_mark_under_the_place() -> None:
    assert (
        told(UNKNOWN_KEY)
        == """\
error[config.unknown-key]: unknown key `training.learing_rate`
  --> my.yaml:4:3
   |
 4 |   learing_rate: 2e-4
   |   ^~~~~~~~~~~~
   = help: did you mean `learning_rate`?
"""
    )


def test_all_problems_of_a_recipe_are_told_together() -> None:
    second = FinetuneError("config.type", "`lora.r` is 'eight', a whole number is wanted")
    assert (
        told(SeveralErrors("2 problems in my.yaml", [UNKNOWN_KEY, second]))
        == """\
error[config.several]: 2 problems in my.yaml

error[config.unknown-key]: unknown key `training.learing_rate`
  --> my.yaml:4:3
   |
 4 |   learing_rate: 2e-4
   |   ^~~~~~~~~~~~
   = help: did you mean `learning_rate`?

error[config.type]: `lora.r` is 'eight', a whole number is wanted
"""
    )


def test_a_place_without_its_line_is_only_named() -> None:
    failure = FinetuneError("data.json", "invalid JSON", location=Location("a.jsonl", 2))
    assert told(failure) == "error[data.json]: invalid JSON\n  --> a.jsonl:2:1\n"


def test_the_lines_of_a_hint_stand_under_each_other() -> None:
    assert told(FinetuneError("memory.out", "out of memory", hint="one\ntwo")) == (
        "error[memory.out]: out of memory\n   = help: one\n           two\n"
    )


def test_a_traceback_goes_to_a_file_of_its_own_where_there_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failure = unforeseen(ValueError("odd"), None, debug=False)
    (log,) = tmp_path.glob("scao-finetune-*.log")
    assert "ValueError: odd" in log.read_text(encoding="utf-8")
    assert failure.hint is not None
    assert str(log) in failure.hint


def test_where_no_traceback_can_be_written_the_error_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    failure = unforeseen(ValueError("odd"), None, debug=False)
    assert (failure.message, failure.exit_code) == ("ValueError: odd", 1)
    assert failure.hint == "run the command again with --debug to see it here"
