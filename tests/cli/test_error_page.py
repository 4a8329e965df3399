"""docs/errors.md against the source: every code and exit code has a row, and no row is about nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from error_codes import codes
from scao_hf.cli.failures import EXIT_CODES, UsageFailure

from scao_hf.finetune.errors import SIGNAL_EXIT_CODES, FinetuneError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("|")]
BY_CODE = {row[0].strip("`"): row for row in ROWS if row[0].startswith("`")}


def exit_code(code: str) -> int:
    kind, _, detail = code.partition(".")
    if kind == "interrupted":
        return SIGNAL_EXIT_CODES[detail.upper()]
    return (UsageFailure if code == "usage" else FinetuneError)(code, "").exit_code


def test_every_error_of_the_source_has_a_row_and_every_row_an_error() -> None:
    interrupted = {f"interrupted.{name.lower()}" for name in SIGNAL_EXIT_CODES}
    assert sorted(BY_CODE) == sorted(codes() | interrupted)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_a_row_has_the_exit_code_of_its_error_with_cause_and_remedy(code: str) -> None:
    _, shown, cause, remedy = BY_CODE[code]
    assert int(shown) == exit_code(code)
    assert cause
    assert remedy


def test_the_exit_codes_are_those_of_the_program() -> None:
    shown = {int(row[0]): row[1] for row in ROWS if re.fullmatch(r"\d+", row[0])}
    assert shown == EXIT_CODES
