"""`recipes list`, `show`, `copy` and the completion of recipe names, over the packaged recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scao_hf.cli.completion import complete_packaged_recipe, complete_recipe
from scao_hf.cli.main import main
from scao_hf.cli.recipe_commands import table_row

from scao_hf.finetune.recipes import RecipeSummary, recipe_names, recipe_text

NAME = recipe_names()[0]


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "list"]])
def test_the_list_has_a_line_for_every_packaged_recipe(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    assert header.split() == ["NAME", "METHOD", "WHAT"]
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == recipe_names()
    assert "scao-finetune recipes show NAME" in err


def test_the_list_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    main(["recipes", "list"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_the_list_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [recipe["name"] for recipe in document] == recipe_names()
    assert set(document[0]) == {"name", "description", "model", "data", "method", "optimizer", "measured"}


def test_a_row_says_what_has_to_be_given_and_what_was_measured() -> None:
    summary = RecipeSummary(
        name="x", description="Chat.", model=None, data=None, method="LoRA", optimizer="scao", measured=("3 min",)
    )
    assert table_row(summary) == ("x", "LoRA, scao", "Chat. (give -m MODEL and -d DATA)\n3 min")


def test_show_prints_the_recipe_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", NAME]) == 0
    assert capsys.readouterr().out == recipe_text(NAME).rstrip("\n") + "\n"


def test_an_unknown_recipe_is_a_sentence_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", NAME[:-1]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error[config.unknown-recipe]: no recipe is called `{NAME[:-1]}`\n   = help: did you mean `{NAME}`?\n"
    )


def test_copy_writes_the_recipe_here_and_says_how_to_train_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "copy", NAME]) == 0
    out, err = capsys.readouterr()
    assert out == f"{NAME}.yaml\n"
    assert err == f"next: scao-finetune train {NAME}.yaml\n"
    assert (tmp_path / f"{NAME}.yaml").read_text(encoding="utf-8") == recipe_text(NAME)


def test_copy_replaces_a_file_only_when_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("precious: true\n", encoding="utf-8")
    assert main(["recipes", "copy", NAME, "mine.yaml"]) == 2
    assert mine.read_text(encoding="utf-8") == "precious: true\n"
    assert "--force" in capsys.readouterr().err
    assert main(["recipes", "copy", NAME, "mine.yaml", "--force"]) == 0
    assert mine.read_text(encoding="utf-8") == recipe_text(NAME)


def test_completion_offers_recipes_and_the_yaml_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.yml").touch()
    (tmp_path / "own.txt").touch()
    assert complete_recipe("") == [*recipe_names(), "own.yaml"]
    assert complete_recipe("ow") == ["own.yaml"]
    assert complete_recipe("deep/o") == ["deep/other.yml"]
    assert complete_packaged_recipe(NAME[:2]) == [name for name in recipe_names() if name.startswith(NAME[:2])]


def test_a_shell_that_asks_for_completions_gets_the_recipes() -> None:
    asked = {"_SCAO_FINETUNE_COMPLETE": "complete_bash", "COMP_WORDS": "scao-finetune train ", "COMP_CWORD": "2"}
    result = subprocess.run(
        [sys.executable, "-m", "scao_hf"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.split() == recipe_names()
