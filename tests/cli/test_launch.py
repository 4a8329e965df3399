"""Several processes of one training: how many, what they are told, how they end, and a real run of two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from scao_hf.cli.launch import run_together, stays_on_cpu, surroundings, wait_for, wanted_processes
from scao_hf.cli.main import main

SHORT = ["data.max_samples=24", "data.test_split_size=8", "data.sample_tokens=0", "--max-steps", "2", "use_cpu=true"]


def ending(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("visible", "gpus", "processes"), [(4, "auto", 4), (4, "2", 2), (1, "auto", 1), (0, "auto", 1)]
)
def test_a_process_is_started_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: int, gpus: str, processes: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert wanted_processes(gpus) == processes
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert wanted_processes(gpus) == 1


def test_a_single_gpu_of_several_hides_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert wanted_processes("1") == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("gpus", ["3", "0", "-1", "all"])
def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch, gpus: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(typer.BadParameter):
        wanted_processes(gpus)


def test_a_recipe_that_stays_on_the_cpu_is_not_started_for_each_gpu() -> None:
    assert stays_on_cpu("cpu-smoke", [])
    assert not stays_on_cpu("demo", [])


def test_several_gpus_are_one_call_for_each_after_one_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[list[str], int]] = []

    def run_together(command: list[str], number: int) -> int:
        started.append((command, number))
        return 6

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("scao_hf.cli.launch.run_together", run_together)
    assert main(["train", "demo", "--max-steps", "2"]) == 6
    assert started == [([sys.executable, "-m", "scao_hf", "train", "demo", "--max-steps", "2"], 2)]
    assert capsys.readouterr().err == "using 2 GPUs, a process for each; --gpus 1 for one\n"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "mine").touch()
    assert main(["train", "demo"]) == 2
    assert len(started) == 1


def test_processes_find_each_other_and_all_succeed(tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path(os.environ['RANK']).write_text(os.environ['MASTER_PORT'])"
    assert run_together([sys.executable, "-c", code], 3) == 0
    assert len({(tmp_path / str(rank)).read_text() for rank in range(3)}) == 1
    assert surroundings(1, 2, 80)["WORLD_SIZE"] == "2"


def test_the_first_failure_is_the_exit_code_and_ends_the_others() -> None:
    began = time.monotonic()
    assert wait_for([ending("import time; time.sleep(60)"), ending("raise SystemExit(5)")], grace=0.2) == 5
    assert time.monotonic() - began < 30


def test_a_failure_of_all_is_told_once_and_in_full_by_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "dmo", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "process 1: error[config.unknown-recipe]: no recipe is called `dmo`\n"


def test_two_processes_train_together_and_one_speaks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scao_hf", "train", "demo", "--json", *SHORT]
    code = f"import sys; from scao_hf.cli.launch import run_together; sys.exit(run_together({command!r}, 2))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["status"], report["steps"]) == ("ok", 2)
    assert report["final_eval_loss"] < report["initial_eval_loss"]
    facts = json.loads((tmp_path / "runs" / "demo" / "run.json").read_text(encoding="utf-8"))
    assert facts["run"]["rows_per_step"] == 16
    assert result.stderr.count("loading the model") == 1
