"""From raw question and answer rows to a chat, by the commands of the README; and every --json as one document."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from scao_hf.cli.app import app
from scao_hf.cli.main import main

ROWS = [
    {
        "question": f"Ann has {n} apples and buys {n} more. How many has she?",
        "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}",
    }
    for n in range(2, 34)
]
CHATS = "data.column_mapping={instruction: question, output: answer}"
SHORT = [
    "data.max_length=256",
    "training.gradient_accumulation_steps=1",
    "training.eval_strategy=no",
    "data.test_split_size=8",
    "data.sample_tokens=0",
    "training.max_steps=2",
]
TRAIN = ["train", "lora-sft", "--model", "tiny-llama", "--data", "gsm8k.jsonl", CHATS, *SHORT]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the rows and the run that was made of them."""
    folder = tmp_path_factory.mktemp("gsm8k")
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TRAIN, "-q", "--output-dir", "run"]) == 0
    return folder


def test_raw_rows_become_a_model_that_replies(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    record = json.loads((trained / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["data"]["conversational"]) == ("finished", True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Bob has 3 pears and buys 3 more. How many has he?\n"))
    assert main(["chat", "run", "--max-new-tokens", "24"]) == 0
    assert capsys.readouterr().out.strip()


COMMANDS: dict[str, tuple[list[str], int]] = {
    "train": ([*TRAIN, "--output-dir", "run"], 2),  # The folder is in use.
    "plan": (["plan", *TRAIN[1:]], 0),
    "preview": (["preview", *TRAIN[1:], "-n", "1"], 0),
    "demo": (["demo", "training.learning_rate=-1"], 2),
    "compare": (["compare", "demo", "--optim", "scao", "--optim", "scao"], 2),
    "lr-find": (["lr-find", *TRAIN[1:7], *SHORT[:4], "training.per_device_train_batch_size=1", "--steps", "20"], 0),
    "check": (["check", "demo", "cpu-smoke"], 0),
    "doctor": (["doctor"], 0),
    "recipes list": (["recipes", "list"], 0),
    "recipes measure": (["recipes", "measure", "nowhere.yaml"], 2),
    "runs list": (["runs", "list", "."], 0),
    "runs show": (["runs", "show", "run"], 0),
    "runs diff": (["runs", "diff", "run", "run"], 0),
    "report": (["report", "run"], 0),
    "eval": (["eval", "run"], 0),
    "generate": (["generate", "run", "-p", "How many?", "--max-new-tokens", "4"], 0),
    "chat": (["chat", "run", "--max-new-tokens", "4"], 0),
    "merge": (["merge", "run", "-o", "merged"], 0),
    "push": (["push", "run", "a name/that the hub does not take"], 2),
}


def commands_with_a_document() -> set[str]:
    found = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        named = {name: command} if inner is None else {f"{name} {each}": one for each, one in inner.items()}
        found |= {name for name, one in named.items() for option in one.params if "--json" in option.opts}
    return found


def test_every_command_with_a_document_is_tried_here() -> None:
    assert set(COMMANDS) == commands_with_a_document()


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_one_document(
    name: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many?\n"))
    arguments, exit_code = COMMANDS[name]
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == exit_code, err
    document: Any = json.loads(out)
    if exit_code:
        assert (document["status"], document["exit_code"]) == ("error", exit_code)
        assert document["message"] in err
