"""Checkpoints on disk: written aside, marked as complete, moved into place; only complete ones are resumed from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.layout import CHECKPOINT_PREFIX

MARKER = "complete.json"
"""Written last: what the checkpoint belongs to, and the size of each of its files."""

STAGING = ".checkpoint.part"
"""Folder in which a checkpoint is written before it takes its place."""

RESUMABLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is whole."""

    path: Path
    step: int
    facts: Mapping[str, Any]
    """What was noted when it was made: recipe, data, model, versions."""


class Incomplete(Exception):
    """A folder that cannot be resumed from; the text says why."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps its checkpoint after `step` steps."""
    return folder / f"{CHECKPOINT_PREFIX}{step}"


def publish(part: Path, target: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Mark a checkpoint as complete and move it into its place; all of it is on the disk before it gets its name.

    Args:
        part: the folder as it was written, on the same file system.
        target: the place; what lies there is not complete, and is removed.
        step: optimizer steps made.
        facts: plain values for the marker.
    """
    files = sorted(path for path in part.rglob("*") if path.is_file())
    sizes = {path.relative_to(part).as_posix(): path.stat().st_size for path in files}
    marker = part / MARKER
    marker.write_text(json.dumps({"step": step, **facts, "files": sizes}, indent=2, default=str), encoding="utf-8")
    for path in (*files, marker, *filter(Path.is_dir, part.rglob("*")), part):
        sync(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders.
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        Incomplete: it has no marker, files are missing or cut short, or it holds weights alone.
    """
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        step, files = int(marker["step"]), dict(marker["files"])
    except FileNotFoundError:
        raise Incomplete(f"it has no {MARKER}, so that it was not written to its end") from None
    except (ValueError, KeyError, TypeError):
        raise Incomplete(f"its {MARKER} is damaged") from None
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            raise Incomplete(f"{name} is missing")
        if file.stat().st_size != size:
            raise Incomplete(f"{name} has {file.stat().st_size} bytes, and had {size}")
    lacking = [name for name in RESUMABLE if name not in files]
    if lacking:
        raise Incomplete(f"it holds weights alone, without {', '.join(lacking)} (training.save_only_model)")
    return Checkpoint(path=path, step=step, facts=marker)


def is_complete(path: Path) -> bool:
    """Whether a folder holds a checkpoint that can be resumed from."""
    try:
        read_checkpoint(path)
    except Incomplete:
        return False
    return True


def checkpoint_folders(folder: Path) -> list[Path]:
    """Folders named like checkpoints, complete or not, by their steps."""
    named = [path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir() and _number(path) is not None]
    return sorted(named, key=lambda path: _number(path) or 0)


def checkpoints_in(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """The complete checkpoints of a run, by their steps, and a sentence about each folder that is not one."""
    whole, sentences = [], []
    for path in checkpoint_folders(folder):
        try:
            whole.append(read_checkpoint(path))
        except Incomplete as reason:
            sentences.append(f"{path} is skipped: {reason}")
    unfinished = [path.name for path in checkpoint_folders(folder / STAGING)]
    sentences += [f"{name} in {folder} is skipped: the run was killed while it was written" for name in unfinished]
    return whole, sentences


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint of a run."""
    whole, _ = checkpoints_in(folder)
    return whole[-1].path if whole else None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, its marker first, so that a half removed one is not taken for a whole one."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def keep_latest(folder: Path, limit: int | None, protected: Sequence[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left, but neither the latest nor a protected one.

    Args:
        folder: of the run.
        limit: `training.save_total_limit`; None or less than 1 for no limit.
        protected: checkpoints that stay, whatever the limit.
    """
    if limit is None or limit < 1:
        return
    folders = checkpoint_folders(folder)
    kept = {path.resolve() for path in [*protected, *folders[-1:]]}
    spare = [path for path in folders if path.resolve() not in kept]
    for path in spare[: max(0, len(folders) - max(limit, len(kept)))]:
        remove_checkpoint(path)


def _number(path: Path) -> int | None:
    text = path.name.removeprefix(CHECKPOINT_PREFIX)
    return int(text) if text.isdecimal() else None
