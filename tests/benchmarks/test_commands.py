"""The command line of the suite, where no other test goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.suite import STUDIES, Study


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What runs are asked for; none is made."""
    asked: list[dict[str, Any]] = []

    class Made(Exception):
        pass

    def run_once(study: Study, machine: Any, optimizer: str, setting: dict[str, Any], seed: int) -> None:
        asked.append(setting)
        raise Made

    monkeypatch.setattr(Study, "run_once", run_once)
    return asked


def test_overrides_are_json_and_reach_the_run(settings: list[dict[str, Any]]) -> None:
    CliRunner().invoke(app, ["run", "quick", "scao", "lr=0.004", "betas=[0.9, 0.99]", "k_max=16"])
    assert settings == [{"lr": 0.004, "auxiliary": 1.0, "betas": [0.9, 0.99], "weight_decay": 0.1, "k_max": 16}]


@pytest.mark.parametrize("override", ["lr", "lr=", "lr=fast"])
def test_an_override_that_is_no_json_is_named(settings: list[dict[str, Any]], override: str) -> None:
    result = CliRunner().invoke(app, ["run", "quick", "scao", override])
    assert isinstance(result.exception, ValueError)
    assert f"'{override}' is not KEY=JSON, such as lr=0.004" in str(result.exception)
    assert settings == []


@pytest.mark.parametrize(("device", "reuse"), [("cpu", False), ("cuda", True)])
def test_studies_that_are_named_together_share_one_pool(
    device: str, reuse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Study, "job", lambda study, machine, store, tell: (study.options, store.path, machine.device))
    monkeypatch.setattr("scao_hf.finetune.comparison.study.run_studies", lambda *given: asked.append(given))
    names = ["lora-gsm8k-r8-short", "lora-gsm8k-r16"]
    flags = ["--device", device, "--workers", "8", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["study", *names, *flags])
    assert result.exception is None
    jobs = {name: (STUDIES[name].options, tmp_path / name / "runs.jsonl", device) for name in names}
    assert asked == [(jobs, 8, reuse)]
