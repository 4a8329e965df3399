"""The trained weights on disk: adapter or model, tokenizer and model card, complete or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from scao_hf.finetune.config import Recipe


def save_weights(model: Any, tokenizer: Any, card: str, target: Path) -> None:
    """Write a folder beside its place and move it there when it is whole; a failure leaves no part of it.

    Args:
        model: a model or a PEFT model, with `save_pretrained`.
        tokenizer: with `save_pretrained`.
        card: the text of its README.md.
        target: the folder to be; must not exist.
    """
    part = target.with_name(f".{target.name}.part")
    # Left over from a process that was killed.
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(card, encoding="utf-8")
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def model_card(recipe: Recipe, base: str, folder: str, steps: int) -> str:
    """A model card for the hub: what it was made from, and how to load it.

    Args:
        recipe: of the run.
        base: directory or hub id of the model that was trained.
        folder: name of the folder that the card will lie in.
        steps: optimizer steps taken.
    """
    library = "peft" if recipe.lora is not None else "transformers"
    loader = "AutoPeftModelForCausalLM" if recipe.lora is not None else "AutoModelForCausalLM"
    return (
        f"---\nbase_model: {base}\nlibrary_name: {library}\n---\n\n"
        f"# {recipe.name}\n\n"
        f"The {folder} of a run of scao-finetune: {base} trained on {recipe.data.path} for "
        f"{steps} steps with {recipe.training['optim']}.\n\n"
        f"    from {library} import {loader}\n\n"
        f'    model = {loader}.from_pretrained("{folder}")\n'
    )
