"""An adapter merged into its base, and the proof that the folder of the result writes what the two of them wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scao_hf.finetune.embedded import dataset_path
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.model import context_length
from scao_hf.finetune.record import check_permission
from scao_hf.finetune.results import weights
from scao_hf.finetune.results.card import model_card
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.saving import save_weights

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error of the merged logits, relative to their spread, by the dtype that they are computed in."""
SENTENCES = 4
LONGEST = 128
"""Tokens of each text that the logits are compared on."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model on disk, and how far it is from base and adapter."""

    output_dir: Path
    dtype: str
    error: float
    """Root mean square of the difference of all logits over the standard deviation of those of base and adapter."""
    tolerance: float
    agreement: float
    """Share of positions at which both have the same likeliest token."""
    tokens: int
    """Positions compared."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"output_dir": str(self.output_dir)}


def merge(
    run: RunFolder, out: Path, dtype: str | None = None, stage: Callable[[str], None] = lambda text: None
) -> Merged:
    """Merge the adapter of a run into its base, save the model, load it again, and compare it with the two.

    Args:
        run: with an adapter; LoRA in all forms that PEFT can merge.
        out: the folder to be; must be empty or not exist.
        dtype: of the merged weights; by default those of the base.
        stage: told what is going on.

    Raises:
        FinetuneError: config.nothing-to-merge, config.quantized-merge, config.output-exists or disk.permission, before
            anything is loaded; model.merge-differs, and then nothing is left in `out`.
    """
    _check(run, out)
    recipe = weights.stored_recipe(run, dtype)
    if recipe.quantization is not None:
        raise _quantized(run)
    device = weights.device_for(recipe)
    stage("loading base and adapter")
    tokenizer = weights.load_tokenizer(run)
    model = weights.load_trained(run, recipe, device)
    batches = _tokenized(_texts(run), tokenizer, context_length(model.config))
    expected = logits(model, batches)
    stage("merging")
    model = model.merge_and_unload(safe_merge=True)
    precision = next(model.parameters()).dtype
    unproven = out.with_name(f".{out.name}.unproven")
    shutil.rmtree(unproven, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage("saving")
    try:
        save_weights(model, tokenizer, model_card(run, out.name, adapter=False), unproven)
        stage("loading the merged model, and comparing it")
        merged = _compared(unproven, out, expected, batches, precision, device)
        os.replace(unproven, out)
    finally:
        shutil.rmtree(unproven, ignore_errors=True)
    return merged


def _check(run: RunFolder, out: Path) -> None:
    folder = run.weights
    run.require_finished()
    if not run.is_adapter:
        message = f"the run in {run.path} trained the model itself: there is no adapter to merge"
        raise FinetuneError("config.nothing-to-merge", message, f"the whole model is {folder}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FinetuneError("config.output-exists", f"{out} exists and is not empty", "give --out another folder")
    check_permission(out)


def _quantized(run: RunFolder) -> FinetuneError:
    message = (
        "the adapter was trained over quantized weights, which lose more when it is rounded into them than it changed"
    )
    hint = f"use base and adapter as they are: scao-finetune generate {run.path}; peft loads {run.weights}"
    return FinetuneError("config.quantized-merge", message, hint)


def _texts(run: RunFolder) -> list[str]:
    """Text that people wrote: the sample of the run, and dialogue that comes with this package."""
    report = run.report
    own = [report["sample_prompt"] + " " + (report["sample_after"] or "")] if report.get("sample_prompt") else []
    with dataset_path().open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(SENTENCES), strict=False)]
    return own + [" ".join(turn["content"] for turn in row["messages"]) for row in rows]


def _tokenized(texts: Sequence[str], tokenizer: Any, context: int | None) -> list[torch.Tensor]:
    longest = LONGEST if context is None else min(LONGEST, context)
    return [torch.tensor([tokenizer(text)["input_ids"][:longest]]) for text in texts]


@torch.no_grad()
def logits(model: Any, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Float32 logits (length, vocabulary) of each row of token ids (1, length), on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=ids.to(device), use_cache=False).logits[0].float().cpu() for ids in batches]


def _compared(
    folder: Path,
    out: Path,
    expected: Sequence[torch.Tensor],
    batches: Sequence[torch.Tensor],
    precision: torch.dtype,
    device: torch.device,
) -> Merged:
    from transformers import AutoModelForCausalLM

    saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=precision)
    before, after = torch.cat(list(expected)), torch.cat(logits(saved.to(device).eval(), batches))
    error = float((after - before).square().mean().sqrt() / before.std())
    tolerance = TOLERANCES[precision]
    if not error <= tolerance:
        message = (
            f"the merged model is not what base and adapter are: its logits differ by {error:.2g} of their spread on "
            f"{len(before)} tokens, and {tolerance:g} is allowed in {_name(precision)}"
        )
        raise FinetuneError("model.merge-differs", message, "--dtype float32, or use base and adapter as they are")
    return Merged(
        output_dir=out,
        dtype=_name(precision),
        error=error,
        tolerance=tolerance,
        agreement=float((after.argmax(-1) == before.argmax(-1)).float().mean()),
        tokens=len(before),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
