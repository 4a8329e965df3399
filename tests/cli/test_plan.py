"""`plan` and `train --dry-run`, with the real library on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scao_hf.cli.main import main

FEW = ["data.max_samples=24", "data.test_split_size=8", "--max-steps", "4"]


def test_a_plan_is_a_table_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "-q", *FEW]) == 0
    out, err = capsys.readouterr()
    names = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert names[:9] == ["recipe", "data", "tokens", "model", "steps", "optimizer", "memory", "disk", "probe"]
    assert "few-eval" not in out
    assert "8 held-out rows make a noisy loss" in out
    assert err.splitlines()[-1].startswith("next: scao-finetune train demo ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["plan", "demo"], ["train", "demo", "--dry-run"]])
def test_a_plan_as_json_is_one_document(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "-q", "--json", *FEW]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "ok"
    assert document["info"]["total_steps"] == 4
    assert document["probe"] is None
    assert list(tmp_path.iterdir()) == []
