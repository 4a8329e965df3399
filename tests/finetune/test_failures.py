"""Which exceptions get an answer, and which are left to be told as the bugs they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from scao_hf.finetune.failures import translated
from scao_hf.hf.backends import UnsupportedBackendError


def raised_while_handling(first: Exception, second: Exception, *, cause: Exception | None = None) -> Exception:
    """`second` as it arrives when it was raised in the handler of `first`."""
    try:
        try:
            raise first
        except type(first):
            if cause is None:
                raise second  # noqa: B904 (the implicit context is what is tested)
            raise second from cause
    except type(second) as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'bitsandbytes'"),
        ImportError("Using this needs the package flash_attn, which is not installed"),
    ],
)
def test_a_missing_package_is_named(error: Exception, tmp_path: Path) -> None:
    known = translated(error, tmp_path)
    assert known is not None
    assert (known.code, known.message) == ("extra.missing", str(error))


def test_a_missing_package_is_named_as_the_cause_of_another_error(tmp_path: Path) -> None:
    missing = ModuleNotFoundError("No module named 'bitsandbytes'")
    known = translated(raised_while_handling(missing, RuntimeError("no backend"), cause=missing), tmp_path)
    assert known is not None
    assert known.code == "extra.missing"


def test_a_name_that_a_module_does_not_have_is_not_a_missing_package(tmp_path: Path) -> None:
    assert translated(ImportError("cannot import name 'f' from 'm' (m.py)"), tmp_path) is None


def test_a_bug_met_while_an_optional_import_was_handled_keeps_its_own_name(tmp_path: Path) -> None:
    bug = raised_while_handling(ModuleNotFoundError("No module named 'triton'"), KeyError("loss"))
    assert translated(bug, tmp_path) is None


def test_sharding_by_the_launcher_is_an_error_of_the_setup(tmp_path: Path) -> None:
    known = translated(UnsupportedBackendError("scao", "FSDP (ACCELERATE_USE_FSDP is set)"), tmp_path)
    assert known is not None
    assert (known.code, known.exit_code) == ("config.sharding", 2)
    assert known.message.startswith("optim='scao' cannot train with FSDP (ACCELERATE_USE_FSDP is set): ")


def test_memory_that_ran_out_is_recognised_below_what_it_led_to(tmp_path: Path) -> None:
    error = raised_while_handling(MemoryError(), ValueError("while cleaning up"))
    known = translated(error, tmp_path)
    assert known is not None
    assert known.code == "memory.out"
