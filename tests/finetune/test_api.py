"""The functions behind the commands, as a notebook uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import scao_hf.finetune
from scao_hf.finetune import FinetuneError, load_recipe, plan, train
from scao_hf.finetune.tables import html_table


def test_every_public_name_is_there() -> None:
    assert all(getattr(scao_hf.finetune, name) is not None for name in scao_hf.finetune.__all__)
    assert dir(scao_hf.finetune) == sorted(scao_hf.finetune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = scao_hf.finetune.trian


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, scao_hf.finetune; print(*(n for n in ('torch', 'transformers', 'yaml') if n in sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []


def test_a_run_from_a_notebook_is_that_of_the_command_and_renders(recipe_file: Path) -> None:
    told = plan(str(recipe_file), "max_steps=2")
    report = train(str(recipe_file), "max_steps=2")
    assert report.steps == told.info.total_steps == 2
    assert (report.output_dir / "run.json").is_file()
    page = report._repr_html_()
    assert f"{report.final_eval_loss:.3f} after" in page
    assert "2 steps of scao" in page
    with pytest.raises(FinetuneError) as caught:
        train(str(recipe_file), "max_steps=2")
    assert caught.value.code == "config.output-exists"


def test_a_recipe_that_was_read_takes_no_more_overrides(recipe_file: Path) -> None:
    with pytest.raises(TypeError, match="give its overrides to load_recipe"):
        plan(load_recipe(str(recipe_file)), "max_steps=2")


def test_a_table_escapes_what_it_shows() -> None:
    page = html_table([("a", "<b>")], ["x & y"], "so")
    assert "&lt;b&gt;" in page
    assert "x &amp; y" in page
    assert page.startswith("<table><caption>so</caption>")
