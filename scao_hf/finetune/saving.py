"""The trained weights on disk: adapter or model, tokenizer and model card, complete or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.schema import CONVERTED_STARTS


class AdapterStart:
    """An adapter as it was before training, for starts that took it out of the base weights.

    PiSSA and OLoRA leave a residual in the base, so that the trained adapter does not fit the original weights. PEFT
    converts it to one that does, of twice the rank: what was trained less what it began with.
    """

    def __init__(self, model: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scao-finetune-start-")
        model.save_pretrained(self._folder.name)

    @property
    def conversion(self) -> dict[str, str]:
        """Arguments for `save_pretrained` of the trained adapter."""
        return {"path_initial_model_for_weight_conversion": self._folder.name}


def adapter_start(recipe: Recipe, model: Any) -> AdapterStart | None:
    """The start to convert from; None where the saved adapter fits the original weights as it is."""
    start = (recipe.lora or {}).get("init_lora_weights")
    return AdapterStart(model) if start in CONVERTED_STARTS else None


def save_weights(model: Any, tokenizer: Any, card: str, target: Path, start: AdapterStart | None = None) -> None:
    """Write a folder beside its place and move it there when it is whole; a failure leaves what was there before.

    Args:
        model: a model or a PEFT model, with `save_pretrained`.
        tokenizer: with `save_pretrained`.
        card: the text of its README.md.
        target: the folder to be; an earlier one is replaced.
        start: of an adapter that has to be converted.
    """
    part, earlier = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old")
    # Left over from a process that was killed.
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part, **({} if start is None else start.conversion))
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
