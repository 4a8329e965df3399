"""Bytes that a run will write."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.footprint import trainable_bytes
from scao_hf.finetune.planning import memory
from scao_hf.finetune.planning.outcome import Disk
from scao_hf.finetune.units import byte_size


def disk_of(args: Any, recipe: Recipe, shapes: Any, steps: int, rows: int | None, output_dir: Path) -> Disk:
    """What a run of a model will write.

    Args:
        args: TrainingArguments of the run, with `optim_args` as it will have them.
        recipe: of the run.
        shapes: the model with its adapter, on the meta device.
        steps: of the whole run.
        rows: of a pass; None for a stream, which has no end.
        output_dir: need not exist.
    """
    saved = memory.weight_bytes(shapes, None) if recipe.lora is None else trainable_bytes(shapes)
    state = memory.optimizer_bytes(args, shapes)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return disk_use(
        args,
        steps,
        steps if rows is None else math.ceil(rows / rows_per_step),
        saved=saved,
        state=memory.adamw_bytes(shapes) if state is None else state,
        output_dir=output_dir,
    )


def shortage(disk: Disk) -> tuple[str, str] | None:
    """A sentence for a run that will not find the space for all that it writes, and what would do; None for others."""
    if disk.total <= disk.available:
        return None
    needed, free = byte_size(disk.total), byte_size(disk.available)
    message = f"checkpoints and weights take {needed} at one time, and {free} are free"
    # One more than are kept lies there while it is written.
    kept = 0 if disk.checkpoint == 0 else (disk.available - disk.saved) // disk.checkpoint - 1
    fewer = f"training.save_total_limit={kept}" if kept > 0 else "training.save_strategy=no"
    return message, f"{fewer}, or another training.output_dir"


def disk_use(args: Any, steps: int, steps_per_epoch: int, *, saved: int, state: int, output_dir: Path) -> Disk:
    """The checkpoints that will lie in `output_dir` at one time, and the weights at the end.

    Args:
        args: TrainingArguments of the run.
        steps: of the whole run.
        steps_per_epoch: optimizer steps of a pass over the rows.
        saved: bytes of the adapter or the model.
        state: bytes of the optimizer's state.
        output_dir: need not exist.
    """
    written = _checkpoints_written(args, steps, steps_per_epoch)
    limit = args.save_total_limit
    if limit is not None:
        # A new checkpoint is whole before the oldest is removed, and the best one is never the oldest.
        written = min(written, max(limit, 2 if args.load_best_model_at_end else 1) + 1)
    existing = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.is_dir())
    checkpoint = saved if args.save_only_model else saved + state
    return Disk(checkpoint=checkpoint, checkpoints=written, saved=saved, available=shutil.disk_usage(existing).free)


def _checkpoints_written(args: Any, steps: int, steps_per_epoch: int) -> int:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "steps":
        every = math.ceil(args.save_steps * steps) if args.save_steps < 1 else int(args.save_steps)
        return math.ceil(steps / max(1, every))
    return math.ceil(steps / max(1, steps_per_epoch))
