"""Ctrl-C and SIGTERM to two processes that train together: one step, one checkpoint, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scao_hf.finetune.checkpoints import checkpoints_in

TRAIN = [
    *("train", "demo", "data.max_samples=24", "data.test_split_size=8", "data.sample_tokens=0"),
    *("training.use_cpu=true", "training.ddp_backend=gloo", "training.logging_steps=1"),
]


def launcher(arguments: list[str]) -> list[str]:
    """What `--gpus 2` does on a machine with two of them."""
    command = [sys.executable, "-m", "scao_hf", *arguments]
    code = f"import sys; from scao_hf.cli.launch import run_together; sys.exit(run_together({command!r}, 2))"
    return [sys.executable, "-c", code]


def torchrun(arguments: list[str]) -> list[str]:
    torch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [sys.executable, *torch, "-m", "scao_hf", *arguments]


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def like_a_terminal(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def like_a_scheduler(process: subprocess.Popen[str]) -> None:
    process.terminate()


Launcher = Callable[[list[str]], list[str]]


def stop_after_two_steps(
    launch: Launcher, stop: Callable[[subprocess.Popen[str]], None], folder: Path
) -> tuple[int, str]:
    """The exit code and what was told of a run that is stopped while its third step or a later one is made."""
    process = start(launch([*TRAIN, "training.max_steps=2000"]), folder)
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if line.startswith("step=2/"):
            stop(process)
            break
    _, rest = process.communicate(timeout=300)
    return process.returncode, told + rest


def assert_stopped_by(name: str, exit_code: int, told: str, run: Path) -> int:
    """One whole checkpoint of all processes at the step that was told, which is returned."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["exit_code"]) == ("interrupted", exit_code), told
    whole, skipped = checkpoints_in(run)
    assert skipped == []
    [checkpoint] = whole
    assert 2 <= checkpoint.step < 2000
    assert {path.name for path in checkpoint.path.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert told.count(f"stopped by {name} after step {checkpoint.step}; saved ") == 1, told
    return checkpoint.step


def test_ctrl_c_stops_two_processes_after_the_same_step_with_one_checkpoint(tmp_path: Path) -> None:
    exit_code, told = stop_after_two_steps(launcher, like_a_terminal, tmp_path)
    assert exit_code == 130, told
    assert_stopped_by("SIGINT", 130, told, tmp_path / "runs" / "demo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "stop", "name", "code"),
    [
        (launcher, like_a_scheduler, "SIGTERM", 143),
        (torchrun, like_a_terminal, "SIGINT", 130),
        (torchrun, like_a_scheduler, "SIGTERM", 143),
    ],
)
def test_a_run_of_two_processes_that_was_stopped_goes_on(
    launch: Launcher, stop: Callable[[subprocess.Popen[str]], None], name: str, code: int, tmp_path: Path
) -> None:
    exit_code, told = stop_after_two_steps(launch, stop, tmp_path)
    assert exit_code == (code if launch is launcher else 1), told  # torchrun has an exit code of its own.
    step = assert_stopped_by(name, code, told, tmp_path / "runs" / "demo")
    resumed = start(launch([*TRAIN, f"training.max_steps={step + 2}", "--resume", "--json"]), tmp_path)
    out, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, told
    assert json.loads(out)["steps"] == step + 2
