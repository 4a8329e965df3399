"""`train` on several GPUs: the same command once for each, in the surroundings that accelerate reads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer

from .console import tell
from .invocation import Invocation

GRACE_SECONDS = 30.0
"""For the other processes to end by themselves once one has failed; their next exchange will fail as well."""
POLL_SECONDS = 0.1


def wanted_processes(gpus: str) -> int:
    """Processes to start for `--gpus`; 1 where this is one of several already, and where one GPU or none is there.

    For a single one of several GPUs, the others are hidden from this process.

    Raises:
        typer.BadParameter: not a number and not auto, or more GPUs than there are.
    """
    if gpus != "auto" and not (gpus.isascii() and gpus.isdigit() and int(gpus) > 0):
        raise typer.BadParameter(f"{gpus!r} is neither a number of GPUs nor auto", param_hint="'--gpus'")
    if "WORLD_SIZE" in os.environ or gpus == "1":
        if gpus == "1" and "WORLD_SIZE" not in os.environ:
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
            os.environ["CUDA_VISIBLE_DEVICES"] = first
        return 1
    import torch

    visible = torch.cuda.device_count()
    if gpus == "auto":
        return max(1, visible)
    if int(gpus) > visible:
        raise typer.BadParameter(f"{gpus} GPUs are wanted, and {visible} are visible", param_hint="'--gpus'")
    return int(gpus)


def stays_on_cpu(recipe: str, overrides: Sequence[str]) -> bool:
    """Whether the recipe leaves the GPUs alone (`training.use_cpu`).

    Raises:
        FinetuneError: as `load_recipe`.
    """
    from scao_hf.finetune.recipes import load_recipe

    return bool(load_recipe(recipe, overrides).training.get("use_cpu"))


def launch(recipe: str, overrides: Sequence[str], invocation: Invocation, processes: int, *, overwrite: bool) -> int:
    """Check what can be checked once, then run this command in so many processes; returns the exit code.

    Raises:
        FinetuneError: as `finetune`, for the recipe and its output directory.
    """
    from scao_hf.finetune import settings
    from scao_hf.finetune.recipes import load_recipe
    from scao_hf.finetune.record import check_directory

    read = load_recipe(recipe, overrides)
    settings.require_complete(read)
    check_directory(settings.output_directory(read), overwrite)
    tell(f"using {processes} GPUs, a process for each; --gpus 1 for one")
    return run_together([sys.executable, "-m", "scao_hf", *invocation.arguments], processes)


def run_together(command: Sequence[str], processes: int) -> int:
    """Run `command` in so many processes that find each other; the exit code of the first that fails, else 0."""
    port = free_port()
    with passing_signals_on() as children:
        for rank in range(processes):
            children.append(subprocess.Popen(command, env={**os.environ, **surroundings(rank, processes, port)}))
        return wait_for(children)


def surroundings(rank: int, processes: int, port: int) -> Mapping[str, str]:
    """What torchrun sets for a process, and accelerate and torch read."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(number) for name, number in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(children: Sequence[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> int:
    """Wait for all; once one has failed, end those that have not ended by themselves after `grace` seconds."""
    failed, since = 0, 0.0
    while None in [child.poll() for child in children]:
        codes = [child.returncode for child in children if child.returncode]
        if codes and not failed:
            failed, since = exit_code(codes[0]), time.monotonic()
        if failed and time.monotonic() - since > grace:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(POLL_SECONDS)
    return failed or next((exit_code(child.returncode) for child in children if child.returncode), 0)


def exit_code(returned: int) -> int:
    """As a shell tells it: 128 and the signal's number for a process that a signal ended."""
    return 128 - returned if returned < 0 else returned


@contextmanager
def passing_signals_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within it, SIGTERM goes to the processes of the list; a Ctrl-C reaches them from the terminal already."""
    children: list[subprocess.Popen[bytes]] = []

    def terminate(number: int, frame: object) -> None:
        for child in children:
            child.terminate()

    before = [signal.signal(signal.SIGINT, lambda number, frame: None), signal.signal(signal.SIGTERM, terminate)]
    try:
        yield children
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
