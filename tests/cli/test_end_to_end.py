"""The program with its real library, offline and with an empty cache: a short demo, a Ctrl-C, and the whole demo."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

SHORT = [
    "training.max_steps=3",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=2",
    "data.max_samples=24",
    "data.test_split_size=8",
    "data.sample_tokens=8",
]


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "empty"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "scao_hf", *arguments],
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_short_demo_trains_evaluates_saves_and_is_replaced_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo" / "adapter").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "run.json").write_text("{}", encoding="utf-8")
    process = start(["demo", "--json", *SHORT], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert (report["status"], report["steps"], report["is_adapter"]) == ("ok", 3, True)
    assert math.isclose(report["initial_perplexity"], math.exp(report["initial_eval_loss"]), rel_tol=1e-9)
    assert [line.split()[0] for line in err.splitlines() if line.startswith("step=")] == [
        "step=1/3",
        "step=2/3",
        "step=3/3",
    ]
    assert "Warning" not in err
    assert "it/s]" not in err
    run = tmp_path / "runs" / "demo"
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) >= 3
    assert (run / "adapter" / "adapter_config.json").is_file()


def test_ctrl_c_during_training_ends_with_130_after_a_whole_step_and_a_checkpoint(tmp_path: Path) -> None:
    process = start(["demo", *SHORT, "training.max_steps=500"], tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step=2/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == ""
    told, advice = err.splitlines()[-2:]
    assert told.startswith("interrupted: stopped by SIGINT after step ")
    assert advice.startswith("   = help: to go on: scao-finetune train demo ")
    checkpoint = tmp_path / told.rpartition("saved ")[2]
    assert (checkpoint / "optimizer.pt").is_file()
    assert json.loads((tmp_path / "runs" / "demo" / "run.json").read_text(encoding="utf-8"))["exit_code"] == 130


def test_a_malformed_row_is_named_by_file_and_line_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "whole"}\n{"text": \n', encoding="utf-8")
    process = start(["train", "demo", "-d", "rows.jsonl", "-q"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert out == ""
    assert err.startswith("error[data.")
    assert "rows.jsonl:2" in err
    assert not (tmp_path / "runs").exists()


def test_the_demo_as_it_is_shipped_lowers_the_held_out_loss(tmp_path: Path) -> None:
    process = start(["demo", "--json", "-q"], tmp_path)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["final_eval_loss"] < report["initial_eval_loss"] - 0.5
    assert report["sample_before"] != report["sample_after"]
