"""kill -9 at any moment, in a step or amid a save: the run is resumed, and ends with the same bits."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune.resuming import SETTINGS, assert_same_run

from scao_hf.finetune import checkpoints
from scao_hf.finetune.observer import Observer, RunInfo
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune

MOST_CALLS_OF_A_SAVE = 40
"""Files written, synced and moved by one save and by the removal of an old checkpoint: about 35."""


class Begun(Observer):
    """Tells another process that the work begins."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def begin(self, info: RunInfo) -> None:
        self.event.set()


class DyingIn:
    """A patch of functions that kills the process, as `kill -9` does, at one of their calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def patch(self, module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(module, name, counted)


def train(recipe: str, event: Any, dies_at_call: int | None) -> None:
    """In a process of its own: begin the run, or go on with it."""
    if dies_at_call is not None:
        import safetensors.torch
        import torch

        dying = DyingIn(dies_at_call)
        for module, name in (
            (torch, "save"),
            (safetensors.torch, "save_file"),
            (checkpoints, "sync"),
            (os, "replace"),
            (shutil, "rmtree"),
            (os, "unlink"),
        ):
            dying.patch(module, name)
    loaded = load_recipe(recipe, SETTINGS)
    begun = Path(loaded.training["output_dir"]).is_dir()
    finetune(loaded, Begun(event), resume=begun)


def run(recipe: Path, *, kill_after: float | None = None, kill_in_save: int | None = None) -> bool:
    """Train in another process and kill it; whether that came before the end.

    Args:
        recipe: whose folder holds the run.
        kill_after: seconds from when everything is loaded.
        kill_in_save: which of the calls that write and move files is the last.
    """
    fork = multiprocessing.get_context("fork")
    event = fork.Event()
    process = fork.Process(target=train, args=(str(recipe), event, kill_in_save))
    process.start()
    if kill_after is not None:
        while not event.wait(0.01) and process.is_alive():
            pass
        process.join(kill_after)
        process.kill()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), f"the run failed with {process.exitcode}"
    return process.exitcode != 0


@pytest.fixture
def expected(recipe_file: Path) -> tuple[Path, float]:
    """The run that nobody kills, and how long it takes once it is loaded."""
    folder = recipe_file.parent / "whole"
    began: list[float] = []

    class Clock(Observer):
        def begin(self, info: RunInfo) -> None:
            began.append(time.monotonic())

    finetune(load_recipe(str(recipe_file), [*SETTINGS, f"output_dir={folder}"]), Clock())
    return folder, time.monotonic() - began[0]


def test_three_kills_leave_no_trace(recipe_file: Path, expected: tuple[Path, float]) -> None:
    folder, seconds = expected
    assert run(recipe_file, kill_in_save=random.randint(15, MOST_CALLS_OF_A_SAVE))
    assert run(recipe_file, kill_after=random.uniform(0, seconds / 4))
    assert run(recipe_file, kill_in_save=random.randint(1, 15))
    assert not run(recipe_file)
    assert_same_run(recipe_file.parent / "run", folder)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(recipe_file: Path, expected: tuple[Path, float]) -> None:
    folder, seconds = expected
    directory = recipe_file.parent / "run"
    moments: list[Callable[[], bool]] = [
        lambda: run(recipe_file, kill_after=random.uniform(0, seconds)),
        lambda: run(recipe_file, kill_in_save=random.randint(1, MOST_CALLS_OF_A_SAVE)),
    ]
    kills, resumed = 0, 0
    for kill in itertools.cycle(moments):
        if kill():
            kills += 1
            continue
        resumed += resumptions(directory)
        assert_same_run(directory, folder)
        if kills >= 20:
            break
        shutil.rmtree(directory)
    print(f"{kills} kills, of which {resumed} were gone on from at a checkpoint; all runs ended with the same bits")
    assert resumed > 0


def resumptions(directory: Path) -> int:
    return len(json.loads((directory / "run.json").read_text(encoding="utf-8")).get("resumed", []))
