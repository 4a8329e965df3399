"""The model card of the tiny Llama: fixed text, and the figures from the record of the run that trained it."""

from __future__ import annotations

import math
from typing import Any

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# tiny-llama

A Llama of 1,023,360 parameters that reads and writes bytes: five layers of width 128, four heads, a context of 512
bytes. It is small enough to travel inside the scao-hf package, so that `scao-finetune demo` and the tests fine-tune a
model that has learned something, with no network. It writes sentences that look like grade-school arithmetic; it
knows nothing, and its answers are wrong.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from scao_hf.finetune.embedded import model_directory

    model = AutoModelForCausalLM.from_pretrained(model_directory())
    tokenizer = AutoTokenizer.from_pretrained(model_directory())

The weights are stored in float16 and load as float32. A token is one byte of UTF-8; four special tokens mark padding,
the start of a text, and the start and end of a chat turn (ChatML). Rows 260 to 263 of the embedding are unused.

## Training

Text: the questions and worked answers of GSM8K's training split (Cobbe et al. 2021, arXiv:2110.14168; MIT licence),
each once as a chat and once as prose, calculator annotations removed. Held out: the same of the first 200 problems of
its test split,
rows cut at 512 tokens.

{commands}

{figures}

## The dataset beside it

`shakespeare-dialogue.jsonl`, to fine-tune on: 1,200 exchanges of two consecutive speeches from plays of William
Shakespeare (public domain), as chat messages of at most 256 tokens. No speech stands in two rows. From the 1.1 MB
collection known as tinyshakespeare (sha256 {plays_sha256}):

    python -m scao_hf.finetune.embedded.build dialogue --source input.txt --output shakespeare-dialogue.jsonl
"""

_COMMANDS = """\
    build="python -m scao_hf.finetune.embedded.build"
    $build pretraining --source gsm8k/train.jsonl --output runs/gsm8k-train.jsonl
    $build pretraining --source gsm8k/test.jsonl --problems 200 --output runs/gsm8k-test.jsonl
    scao-finetune train tiny-llama data.path=runs/gsm8k-train.jsonl data.eval_path=runs/gsm8k-test.jsonl
    $build pack --run runs/tiny-llama --output scao_hf/finetune/embedded/tiny-llama"""

PLAYS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def model_card(figures: str) -> str:
    """The card in Markdown, with a paragraph on how the weights came out."""
    return _CARD.format(commands=_COMMANDS, figures=figures, plays_sha256=PLAYS_SHA256)


def run_figures(record: dict[str, Any]) -> str:
    """What the run printed: optimizer, steps, time and held-out loss a token, in nats and in bits.

    Args:
        record: a finished run's `run.json`.
    """
    report = record["report"]
    loss = float(report["final_eval_loss"])
    return (
        f"{report['steps']:,} steps with {report['optimizer']}, {report['tokens']:,} tokens, "
        f"{report['train_seconds'] / 60:.0f} minutes{_overrides(record)}. Held-out loss {loss:.4f} nats a token "
        f"({loss / math.log(2):.3f} bits), from {report['initial_eval_loss']:.4f} at random weights."
    )


def _overrides(record: dict[str, Any]) -> str:
    """What was given beside the two files, so that the card's command can be trusted to be the whole of it."""
    given = [text for text in record["overrides"] if not text.startswith(("data.path=", "data.eval_path="))]
    return f", and beside the files {' '.join(given)}" if given else ""
