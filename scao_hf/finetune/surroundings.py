"""What is put around every run: silence, answers to what is raised, and everything left as it was found."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scao_hf.finetune.failures import answers

# TrainingArguments writes it, and in releases before 5 the next run of the process takes it for its own setting.
_MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"


@contextmanager
def surroundings(output_dir: Path) -> Iterator[None]:
    """Within it, the libraries are silent, what they raise is answered, and their settings do not outlive it."""
    from scao_hf.finetune.quiet import quiet

    with quiet(), _restored(_MIXED_PRECISION), answers(output_dir):
        yield


@contextmanager
def passing() -> Iterator[Path]:
    """`surroundings` of a run of which nothing is kept: its folder, which is removed as is its memory."""
    try:
        with tempfile.TemporaryDirectory(prefix="scao-finetune-") as name, surroundings(Path(name)):
            yield Path(name)
    finally:
        _release_memory()


@contextmanager
def no_trace(output_dir: Path) -> Iterator[None]:
    """Remove directories that Trainer made for a run that failed before it wrote anything."""
    missing = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def is_first_process() -> bool:
    """Whether this is the one process of a run that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _restored(variable: str) -> Iterator[None]:
    """Leave an environment variable as it was found."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def _release_memory() -> None:
    """Give a finished run's model back before the next one is loaded; a trainer is full of circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
