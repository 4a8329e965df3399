"""Bytes that a run will write."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from scao_hf.finetune.planning.outcome import Disk


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
