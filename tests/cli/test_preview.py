"""`scao-finetune preview`: colours, brackets, JSON, exit codes, over the model inside the package."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from scao_hf.cli.main import main
from scao_hf.cli.preview_text import print_preview

from scao_hf.finetune.preview import Preview, Sample, Span, Token
from scao_hf.finetune.token_counts import Bin, TokenCounts

COUNTS = TokenCounts(
    rows=3,
    tokens=60,
    percentiles={50: 10, 95: 40, 99: 40},
    longest=40,
    histogram=(Bin(10, 20, 2), Bin(20, 30, 0), Bin(30, 40, 0), Bin(40, 50, 1)),
    max_length=32,
    truncated_rows=1,
    cut_tokens=8,
    dropped_rows=0,
    kept_tokens=52,
    supervised_tokens=13,
    stopping_rows=2,
    largest_id=9,
)
SAMPLE = Sample(
    place="chats.jsonl:1",
    spans=(Span("Why?\x1b", "read", 2), Span(" So.", "trained", 1), Span("...", "cut", 1)),
    tokens=(Token(5, "Why", "read"), Token(6, "?\x1b", "read"), Token(7, " So.", "trained"), Token(8, "...", "cut")),
)
PREVIEW = Preview(
    recipe="mine",
    tokenizer="some/model",
    dataset="chats.jsonl",
    columns=("messages",),
    format="messages",
    detected=True,
    loss_on="assistant",
    funnel={"read": 4, "parsed": 4, "formatted": 3},
    training_rows=3,
    eval_rows=1,
    packing="bfd",
    counts=COUNTS,
    samples=(SAMPLE,),
    notices=("something",),
    problem=None,
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Where? ", "completion": "There."}\n' * 3, encoding="utf-8")
    return path


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", **options: bool) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    print_preview(PREVIEW, **{"tokens": False, "full": False, "plain": False, **options})
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_without_colours_trained_text_and_what_is_cut_stand_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    told = printed(monkeypatch)
    assert "Why?\\x1b⟦ So.⟧⟪...⟫" in told
    assert "⟦trained⟧ · ⟪cut off by data.max_length⟫" in told
    assert "\x1b" not in told


def test_a_stream_that_is_not_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    told = printed(monkeypatch, "cp1252")
    assert "Why?\\x1b[[ So.]]{{...}}" in told
    assert "read 4 -> parsed 4 -> formatted 3" in told
    assert told.isascii()


def test_colours_tell_what_is_trained_unless_plain_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m So.\x1b[0m" in printed(monkeypatch)
    assert "⟦ So.⟧" in printed(monkeypatch, plain=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦ So.⟧" in printed(monkeypatch)


def test_the_figures_of_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = " ".join(printed(monkeypatch).split())
    for words in (
        "chats.jsonl · format messages, recognised by its columns (messages)",
        "read 4 → parsed 4 → formatted 3 · 3 to train on, 1 held out",
        "by the tokenizer of some/model · 60 tokens in 3 rows · median 10, p95 40, p99 40, longest 40",
        "data.max_length=32 cuts 1 of 3 rows and 8 of 60 tokens",
        "bfd: whole rows side by side, each seeing itself alone",
        "on assistant turns: 25.0% of the tokens are trained · 2 of 3 rows teach where to stop",
        "note: something",
        "chats.jsonl:1: 4 tokens, 1 trained, 1 cut off",
    ):
        assert words in lines


def test_the_histogram_marks_the_lengths_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    told = printed(monkeypatch)
    assert "  10-19  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 2\n" in told
    assert [line.split()[-1] for line in told.splitlines() if line.startswith("  ") and "-" in line[:7]] == [
        "2",
        "0",
        "max_length",
        "max_length",
    ]


def test_tokens_are_listed_with_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.split(maxsplit=3) for line in printed(monkeypatch, tokens=True).splitlines()[-4:]]
    assert lines == [
        ["0", "5", "read", "'Why'"],
        ["1", "6", "read", "'?\\x1b'"],
        ["2", "7", "trained", "' So.'"],
        ["3", "8", "cut", "'...'"],
    ]


def test_data_alone_are_shown_in_bytes_with_the_command_to_train_on_them(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "--data", "rows.jsonl", "-n", "1", "data.format=prompt_completion"]) == 0
    out, err = capsys.readouterr()
    assert "Where? ⟦There.<|im_end|>⟧" in out
    assert "as data.format says" in out
    assert err.endswith("next: scao-finetune train lora-sft -m MODEL -d rows.jsonl data.format=prompt_completion\n")


def test_json_is_one_document_with_every_token(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "demo", "-d", "rows.jsonl", "data.test_split_size=1", "-n", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["format"], document["problem"]) == ("ok", "prompt_completion", None)
    assert "".join(token["text"] for token in document["samples"][0]["tokens"]) == "Where? There.<|im_end|>"
    assert document["counts"]["supervised_share"] == pytest.approx(7 / 14)


def test_rows_that_train_would_refuse_are_shown_and_exit_with_3(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["preview", "demo", "-d", "rows.jsonl", "data.test_split_size=null", "max_length=4"]
    assert main(arguments) == 3
    out, err = capsys.readouterr()
    assert "Wher⟪e? There.<|im_end|>⟫" in out
    assert "error[data.nothing-left]" in err
    assert main([*arguments, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["problem"]["code"] == "data.nothing-left"


def test_neither_recipe_nor_data_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview"]) == 2
    assert "give a recipe, or data to look at: --data FILE" in capsys.readouterr().err


def test_an_error_in_the_file_is_the_same_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"\n', encoding="utf-8")
    assert main(["preview", "-d", "bad.jsonl"]) == 3
    err = capsys.readouterr().err
    assert err.endswith(
        "error[data.malformed]: invalid JSON (Expecting ',' delimiter)\n"
        "  --> bad.jsonl:2:13\n"
        "   |\n"
        ' 2 | {"text": "b"\n'
        "   |             ^\n"
        "   = help: each line of a .jsonl file is one JSON object\n"
    )
