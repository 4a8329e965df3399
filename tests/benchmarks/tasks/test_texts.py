"""Texts from a folder and, through a stand-in, from the hub; and the batches that are drawn of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.tasks import texts
from benchmarks.tasks.lm import LanguageModelling, windows
from benchmarks.tasks.texts import Exchange


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def told(text: Tensor) -> str:
    assert text.dtype == torch.uint8
    return bytes(text.tolist()).decode()


def test_local_wikitext_trains_on_the_test_file_and_half_of_the_other(tmp_path: Path) -> None:
    write(tmp_path, "wikitext2/test.txt", "abcd")
    text = texts.wikitext(write(tmp_path, "wikitext2/valid.txt", "012345678"))
    assert (told(text.training), told(text.validation)) == ("abcd0123", "45678")


def test_local_shakespeare_trains_on_nine_tenths(tmp_path: Path) -> None:
    text = texts.shakespeare(write(tmp_path, "tinyshakespeare/input.txt", "0123456789abcde"))
    assert (told(text.training), told(text.validation)) == ("0123456789abc", "de")


def test_texts_are_bytes_whatever_their_letters(tmp_path: Path) -> None:
    text = texts.shakespeare(write(tmp_path, "tinyshakespeare/input.txt", "é" * 10))
    assert text.training.tolist() == [0xC3, 0xA9] * 9


# JSON may hold line separators of other alphabets as they are.
ROWS = [Exchange("What is 2 + 2?", "4"), Exchange("One\u2028two\u0085three\x7f?", "a\nb — ü")]


def exchanges(folder: Path, **parts: list[Exchange]) -> Path:
    for part, rows in parts.items():
        lines = [json.dumps({**row._asdict(), "source": "x"}, ensure_ascii=False) for row in rows]
        write(folder, f"gsm8k/{part}.jsonl", "".join(f"{line}\n" for line in lines))
    return folder


def test_local_exercises_are_the_lines_of_their_files(tmp_path: Path) -> None:
    found = texts.gsm8k(exchanges(tmp_path, train=ROWS, test=ROWS[:1]))
    assert found.training == ROWS
    assert found.validation == ROWS[:1]


@pytest.mark.parametrize(
    ("text", "present", "missing"),
    [
        (texts.wikitext, [], "test.txt"),
        (texts.wikitext, ["wikitext2/test.txt"], "valid.txt"),
        (texts.shakespeare, [], "input.txt"),
        (texts.gsm8k, [], "train.jsonl"),
        (texts.gsm8k, ["gsm8k/train.jsonl"], "test.jsonl"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, text: object, present: list[str], missing: str) -> None:
    for name in present:
        write(tmp_path, name, '{"question": "?", "answer": "!"}\n')
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing; without --data-dir"):
        text(tmp_path)  # type: ignore[operator]


def test_the_hub_gives_the_split_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_hub_column", lambda *dataset, split, column: [f"{split} ", f"{column}\n"])
    wikitext, shakespeare, gsm8k = texts.wikitext(None), texts.shakespeare(None), texts.gsm8k(None)
    assert (told(wikitext.training), told(wikitext.validation)) == ("train text\n", "validation text\n")
    assert told(shakespeare.training) + told(shakespeare.validation) == "train text\n"
    assert gsm8k.training == [Exchange("train ", "train "), Exchange("question\n", "answer\n")]
    assert gsm8k.validation == [Exchange("test ", "test "), Exchange("question\n", "answer\n")]


def test_origins_are_sentences_for_every_text_from_either_place(tmp_path: Path) -> None:
    write(tmp_path, "wikitext2/test.txt", "a")
    folder = exchanges(write(tmp_path, "wikitext2/valid.txt", "b"), train=ROWS, test=ROWS)
    write(tmp_path, "tinyshakespeare/input.txt", "c")
    origins = {text(folder).origin for text in (texts.wikitext, texts.shakespeare, texts.gsm8k)}
    assert len(origins) == 3
    assert origins <= set(texts.ORIGINS.values())


COUNTING = torch.arange(256, dtype=torch.uint8)


def test_labels_are_the_bytes_that_follow() -> None:
    batch = next(windows(COUNTING, rows=5, length=7, seed=0))
    assert batch.tokens.shape == batch.labels.shape == (5, 7)
    assert batch.tokens.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels, batch.tokens + 1)
    assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])


def test_windows_depend_on_their_seed_alone() -> None:
    torch.manual_seed(1)
    first = windows(COUNTING, 4, 8, seed=3)
    drawn = [next(first).tokens for _ in range(3)]
    torch.manual_seed(2)
    second, other = windows(COUNTING, 4, 8, seed=3), windows(COUNTING, 4, 8, seed=4)
    assert all(torch.equal(tokens, next(second).tokens) for tokens in drawn)
    assert not torch.equal(drawn[0], next(other).tokens)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.fixture
def task(tmp_path: Path) -> LanguageModelling:
    write(tmp_path, "wikitext2/test.txt", bytes(range(100)))
    write(tmp_path, "wikitext2/valid.txt", bytes([*range(100, 120), *range(200, 250)]))
    return LanguageModelling(folder=tmp_path, rows=3, length=5, evaluation_batches=4)


def test_a_task_is_judged_on_bytes_that_it_does_not_train_on(task: LanguageModelling) -> None:
    evaluation = task.evaluation()
    assert len(evaluation) == 4
    judged = torch.cat([batch.labels for batch in evaluation])
    batches = task.batches(1)
    trained = torch.cat([next(batches).labels for _ in range(50)])
    assert trained.max() < 215 <= judged.min()  # the first half of valid.txt ends at 214


def test_the_evaluation_set_is_the_same_at_every_call(task: LanguageModelling) -> None:
    for one, other in zip(task.evaluation(), task.evaluation(), strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_seeds_have_batches_and_weights_of_their_own(task: LanguageModelling) -> None:
    assert not torch.equal(next(task.batches(1)).tokens, next(task.batches(2)).tokens)
    assert not torch.equal(task.model(1).tokens.weight, task.model(2).tokens.weight)
