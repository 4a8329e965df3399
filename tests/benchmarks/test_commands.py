"""The command line of the suite, where no other test goes through it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.suite import Study


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
