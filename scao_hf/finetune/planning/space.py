"""Whether the disk holds what a run will write, before any weight is loaded."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig

from scao_hf.finetune import model, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.inputs import Inputs
from scao_hf.finetune.planning import memory
from scao_hf.finetune.planning.disk import disk_of, shortage
from scao_hf.finetune.planning.outcome import Disk
from scao_hf.finetune.planning.shapes import adapted
from scao_hf.finetune.record import heavy_folders
from scao_hf.finetune.units import byte_size


def check_space(recipe: Recipe, inputs: Inputs, output_dir: Path) -> list[str]:
    """Refuse a run of which not even the first checkpoint and the trained weights will find space.

    Returns:
        A sentence if they will, and not all checkpoints that are to be kept.

    Raises:
        FinetuneError: disk.space.
    """
    disk = expected_use(recipe, inputs, output_dir)
    least = disk.saved + (disk.checkpoint if disk.checkpoints else 0)
    if least > disk.available:
        what = "a checkpoint and the trained weights take" if disk.checkpoints else "the trained weights take"
        message = f"{what} {byte_size(least)}, and {byte_size(disk.available)} are free for {output_dir}"
        raise FinetuneError("disk.space", message, "free some space, or training.output_dir=ELSEWHERE")
    short = shortage(disk)
    return [] if short is None else [f"{short[0]}: the run will stop when the disk is full; {short[1]} would do"]


def expected_use(recipe: Recipe, inputs: Inputs, output_dir: Path) -> Disk:
    """What a run will write, and what its disk has free once the run that lies there has made room."""
    rows = None if inputs.rows.stream is not None else len(inputs.rows.train)
    args = copy.copy(inputs.args)
    steps = settings.settle_steps(args, recipe, rows)
    disk = disk_of(args, recipe, _shapes(recipe, inputs), steps, rows, output_dir)
    return replace(disk, available=disk.available + _given_back(output_dir))


def _shapes(recipe: Recipe, inputs: Inputs) -> Any:
    """The model with its adapter, and no memory."""
    shapes: Any = model.shapes_only(recipe, inputs.config, inputs.device)
    if recipe.lora is None:
        return shapes
    shapes = adapted(shapes, LoraConfig(task_type="CAUSAL_LM", **recipe.lora))
    if recipe.quantization is not None:
        memory.cast_adapter(shapes)
    return shapes


def _given_back(output_dir: Path) -> int:
    """Bytes of an earlier run in the folder: they are removed, or are checkpoints of the run that goes on."""
    files = (path for folder in heavy_folders(output_dir) for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)
