"""The texts that the tasks train on, as bytes: from the Hugging Face hub, or from a folder of local files.

The folder is laid out as

    wikitext2/test.txt  wikitext2/valid.txt      WikiText-2 (Merity et al. 2016, arXiv:1609.07843), CC BY-SA
    tinyshakespeare/input.txt                    tiny Shakespeare, public domain
    gsm8k/train.jsonl  gsm8k/test.jsonl          GSM8K (Cobbe et al. 2021, arXiv:2110.14168), MIT
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
SHAKESPEARE = "karpathy/tiny_shakespeare"
GSM8K = ("openai/gsm8k", "main")

ORIGINS = {
    ("wikitext", "hub"): "WikiText-2 raw, train and validation",
    (
        "wikitext",
        "local",
    ): "WikiText-2: trained on test.txt and the first half of valid.txt, validated on the rest",
    ("shakespeare", "hub"): "tiny Shakespeare: trained on the first 90%, validated on the rest",
    ("shakespeare", "local"): "tiny Shakespeare: trained on the first 90%, validated on the rest",
    ("gsm8k", "hub"): "GSM8K: trained on train, validated on test",
    ("gsm8k", "local"): "GSM8K: trained on train, validated on test",
}
"""A sentence for each text, from the hub or from a folder."""


class Text(NamedTuple):
    """A text in two parts, each a (length,) uint8 tensor, and a sentence on where they come from."""

    training: Tensor
    validation: Tensor
    origin: str


class Exchange(NamedTuple):
    """A question and the answer that is to be learnt."""

    question: str
    answer: str


class Exchanges(NamedTuple):
    training: list[Exchange]
    validation: list[Exchange]
    origin: str


def wikitext(folder: Path | None) -> Text:
    """WikiText-2: the hub's own split; locally test.txt and the first half of valid.txt, against its second half.

    Raises:
        FileNotFoundError: the folder lacks the files, named.
    """
    if folder is None:
        parts = {part: "".join(_hub_column(*WIKITEXT, split=part, column="text")) for part in ("train", "validation")}
        return Text(to_bytes(parts["train"]), to_bytes(parts["validation"]), ORIGINS["wikitext", "hub"])
    test, valid = (_read(folder / "wikitext2" / f"{part}.txt") for part in ("test", "valid"))
    half = len(valid) // 2
    return Text(torch.cat([test, valid[:half]]), valid[half:], ORIGINS["wikitext", "local"])


def shakespeare(folder: Path | None) -> Text:
    """Tiny Shakespeare, the first nine tenths for training.

    Raises:
        FileNotFoundError: the folder lacks the file, named.
    """
    if folder is None:
        text = to_bytes("".join(_hub_column(SHAKESPEARE, split="train", column="text")))
    else:
        text = _read(folder / "tinyshakespeare" / "input.txt")
    cut = len(text) * 9 // 10
    return Text(text[:cut], text[cut:], ORIGINS["shakespeare", "hub" if folder is None else "local"])


def gsm8k(folder: Path | None) -> Exchanges:
    """GSM8K's questions and worked answers, its own split.

    Raises:
        FileNotFoundError: the folder lacks the files, named.
    """
    if folder is None:
        pairs = {
            part: zip(*(_hub_column(*GSM8K, split=part, column=column) for column in Exchange._fields), strict=True)
            for part in ("train", "test")
        }
        parts = {part: [Exchange(*pair) for pair in rows] for part, rows in pairs.items()}
    else:
        parts = {part: list(_read_exchanges(folder / "gsm8k" / f"{part}.jsonl")) for part in ("train", "test")}
    return Exchanges(parts["train"], parts["test"], ORIGINS["gsm8k", "hub" if folder is None else "local"])


def to_bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; without --data-dir the texts come from the Hugging Face hub")
    return path.read_bytes()


def _read(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(_content(path)), dtype=torch.uint8)


def _read_exchanges(path: Path) -> Iterator[Exchange]:
    # Lines of bytes end at a newline alone; those of text would also end at the separators that a JSON string may hold.
    for line in _content(path).splitlines():
        row: dict[str, Any] = json.loads(line)
        yield Exchange(row["question"], row["answer"])


def _hub_column(*dataset: str, split: str, column: str) -> list[str]:
    from datasets import load_dataset

    return list(load_dataset(*dataset, split=split)[column])
