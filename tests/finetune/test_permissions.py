"""Folders that cannot be written or read are named before anything is loaded, by what would do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.failures import translated
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.record import check_directory
from scao_hf.finetune.run import finetune


def refusal(recipe_file: Path, *overrides: str) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), overrides))
    return caught.value


def test_a_folder_inside_a_file_is_refused(recipe_file: Path) -> None:
    error = refusal(recipe_file, f"output_dir={recipe_file}/run")
    assert (error.code, error.exit_code) == ("config.output-exists", 2)
    assert error.message == f"{recipe_file}/run cannot be made a folder: {recipe_file} is a file"


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses root nothing, so that its answers to anyone else are given here."""
    locked, stat = tmp_path / "locked", os.stat
    locked.mkdir()

    def refusing(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{locked}{os.sep}"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)
    with pytest.raises(FinetuneError) as caught:
        check_directory(locked / "run", overwrite=False)
    assert (caught.value.code, caught.value.exit_code) == ("disk.permission", 7)
    assert caught.value.message == f"no permission to write {locked}"


def test_a_model_that_may_not_be_read_is_named(
    recipe_file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def refusing(path: Path) -> bool:
        if path.parent == tiny_model:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refusing)
    error = refusal(recipe_file)
    assert (error.code, error.exit_code) == ("model.unreadable", 4)
    assert error.message == f"no permission to read {tiny_model}"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("run/run.json", "no permission to write {}", "set training.output_dir"),
        ("weights.safetensors", "no permission for {}", "change its mode"),
    ],
)
def test_only_a_file_of_the_run_is_helped_by_another_folder(tmp_path: Path, name: str, message: str, hint: str) -> None:
    error = translated(PermissionError(13, "Permission denied", str(tmp_path / name)), tmp_path / "run")
    assert error is not None
    assert (error.code, error.message, error.hint) == ("disk.permission", message.format(tmp_path / name), hint)
