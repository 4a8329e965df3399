"""The trained weights on disk: adapter or model, tokenizer and model card, complete or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


def save_weights(model: Any, tokenizer: Any, card: str, target: Path) -> None:
    """Write a folder beside its place and move it there when it is whole; a failure leaves what was there before.

    Args:
        model: a model or a PEFT model, with `save_pretrained`.
        tokenizer: with `save_pretrained`.
        card: the text of its README.md.
        target: the folder to be; an earlier one is replaced.
    """
    part, earlier = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old")
    # Left over from a process that was killed.
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            os.replace(target, earlier)
        os.replace(part, target)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
