"""`check`, `schema` and `recipes measure`, over files in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scao_hf.cli.main import main

OLD = "data: {path: rows.jsonl}\ntraining:\n  warmup_ratio: 0.03\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD, encoding="utf-8")
    return path


def test_a_good_recipe_is_ok_and_a_wrong_one_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("training:\n  learing_rate: 1\n", encoding="utf-8")
    assert main(["check", "demo", "bad.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "demo: ok\n"
    assert "error[config.unknown-key]: unknown key `training.learing_rate`" in err
    assert "--> bad.yaml:2:3" in err


def test_old_names_pass_unless_strict_and_are_fixed_on_request(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "old.yaml"]) == 0
    assert "training.warmup_ratio is called training.warmup_steps now" in capsys.readouterr().out
    assert main(["check", "old.yaml", "--strict"]) == 2
    assert "--fix" in capsys.readouterr().err
    assert main(["check", "old.yaml", "--strict", "--fix"]) == 0
    assert capsys.readouterr().out == "old.yaml:3:3: warmup_ratio is warmup_steps now\nold.yaml: ok\n"
    assert old.read_text(encoding="utf-8") == OLD.replace("warmup_ratio", "warmup_steps")


def test_the_verdicts_as_json_are_one_document(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "old.yaml", "missing", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "error"
    assert [len(recipe["problems"]) for recipe in document["recipes"]] == [0, 1]
    assert len(document["recipes"][0]["notices"]) == 1


def test_the_schema_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "learning_rate" in printed["properties"]["training"]["properties"]
    assert main(["schema", "-o", "recipe.schema.json"]) == 0
    assert json.loads((tmp_path / "recipe.schema.json").read_text(encoding="utf-8")) == printed


def test_a_recipe_is_measured_by_running_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "cpu-smoke"]) == 0
    assert main(["recipes", "measure", "cpu-smoke.yaml", "-q", "training.max_steps=2", "data.sample_tokens=0"]) == 0
    out = capsys.readouterr().out
    assert "steps 2" in out
    assert "settings: training.max_steps=2 data.sample_tokens=0" in Path("cpu-smoke.yaml").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu-smoke.yaml"]
