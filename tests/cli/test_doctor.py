"""`doctor`: what it looks at, and that a fault is a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scao_hf.cli import checks, doctor
from scao_hf.cli.checks import Check
from scao_hf.cli.main import main


def test_doctor_finds_no_fault_where_the_tests_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["faults"]) == ("ok", 0)
    found = {check["name"]: check for check in document["checks"]}
    assert {"scao-hf", "Python", "torch", "transformers", "trl", "peft", "disk", "hub cache", "SCAO"} <= set(found)
    assert found["SCAO"]["status"] == "ok"
    assert "in 40 steps on c" in found["SCAO"]["found"]


def test_doctor_prints_a_line_a_check_and_the_advice_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def section() -> Iterator[Check]:
        yield Check(name="torch", status="ok", found="2.13.0")
        yield Check(name="wandb", status="note", found="not installed", hint="pip install wandb")

    monkeypatch.setattr(doctor, "SECTIONS", {"Packages": section})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "Packages\n"
        "  ok     torch           2.13.0\n"
        "  note   wandb           not installed\n"
        "                         pip install wandb\n"
        "\n"
        "no faults found\n"
    )


def test_a_check_that_breaks_is_a_fault_and_the_next_section_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> Iterator[Check]:
        raise ImportError("libcuda is missing")
        yield

    def fine() -> Iterator[Check]:
        yield Check(name="disk", status="ok", found="enough")

    monkeypatch.setattr(doctor, "SECTIONS", {"Machine": breaks, "Disk": fine})
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  fault  Machine         ImportError: libcuda is missing" in out
    assert "  ok     disk            enough" in out
    assert out.endswith("1 fault found\n")


@pytest.mark.parametrize(
    ("version", "status"), [("2.6.0", "ok"), ("2.13.0+cpu", "ok"), ("2.5.1", "fault"), (None, "fault")]
)
def test_a_package_is_judged_by_the_range_that_this_package_declares(
    monkeypatch: pytest.MonkeyPatch, version: str | None, status: str
) -> None:
    wanted = checks.requirements("cli")["torch"]
    monkeypatch.setattr(checks, "installed", lambda name: version)
    assert checks.package("torch", wanted).status == status


def test_the_ranges_follow_an_extra_into_the_extras_it_names() -> None:
    wanted = checks.requirements("cli")
    assert {"torch", "transformers", "accelerate", "datasets", "peft", "trl", "typer", "rich", "pyyaml"} <= set(wanted)
    assert "pytest" not in wanted
    assert "transformers" not in checks.requirements("tensorboard")


def test_the_self_test_notices_an_optimizer_that_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def zero_grad(self) -> None: ...

        def step(self) -> None: ...

        def diagnostics(self) -> dict[str, float]:
            return {"phase": 2.0, "failures": 0.0}

    monkeypatch.setattr("scao_hf.SCAO", Idle)
    (check,) = checks.self_test()
    assert check.status == "fault"


def test_an_offline_switch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [check.found for check in checks.hub() if check.name == "hub"] == ["offline"]


def test_a_nearly_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10 * 1024**2})())
    (check,) = checks.disk()
    assert check.status == "note"
    assert check.found.startswith("10.0 MiB free")
