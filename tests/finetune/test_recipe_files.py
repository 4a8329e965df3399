"""What is written into recipe files, and the schema that editors read them by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scao_hf.finetune import yaml_core
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.json_schema import recipe_schema
from scao_hf.finetune.measuring import measure, with_measurement
from scao_hf.finetune.mending import mend
from scao_hf.finetune.recipes import load_recipe, recipe_names, recipe_text

jsonschema = pytest.importorskip("jsonschema")

OLD = """\
# mine
model: {model_name_or_path: a/b}
data: {path: rows.jsonl, test_split_size: 0.1}
training:
  warmup_ratio: 0.03   # of all steps
  "evaluation_strategy": steps
  overwrite_output_dir: true
  learning_rate: 2e-4
  no_cuda: true
"""

NEW = """\
# mine
model: {model_name_or_path: a/b}
data: {path: rows.jsonl, test_split_size: 0.1}
training:
  warmup_steps: 0.03   # of all steps
  "eval_strategy": steps
  learning_rate: 2e-4
  use_cpu: true
"""


def test_old_names_are_written_anew_and_nothing_else_is_touched(tmp_path: Path) -> None:
    mended = mend(OLD, "my.yaml")
    assert mended.text == NEW
    assert mended.left == ()
    assert mended.changes == (
        "my.yaml:5:3: warmup_ratio is warmup_steps now",
        "my.yaml:6:3: evaluation_strategy is eval_strategy now",
        "my.yaml:7:3: overwrite_output_dir removed",
        "my.yaml:9:3: no_cuda is use_cpu now",
    )
    path = tmp_path / "my.yaml"
    path.write_text(mended.text, encoding="utf-8")
    assert load_recipe(str(path)).notices == ()
    assert mend(NEW, "my.yaml").changes == ()


def test_what_cannot_be_mended_alone_is_left_and_told() -> None:
    text = "training: {warmup_ratio: 0.1, overwrite_output_dir: true}\n"
    mended = mend(text, "my.yaml")
    assert mended.text == "training: {warmup_steps: 0.1, overwrite_output_dir: true}\n"
    assert mended.left == (
        "my.yaml:1:31: overwrite_output_dir stands where it cannot be changed without its neighbours",
    )
    twice = mend("training:\n  warmup_ratio: 0.1\n  warmup_steps: 5\n", "my.yaml")
    assert twice.changes == ()
    assert twice.left == ("my.yaml:2:3: warmup_ratio and warmup_steps are two names of one setting",)


# The schema


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_valid_by_the_schema(name: str, validator: Any) -> None:
    validator.validate(yaml_core.read_document(recipe_text(name), name).data)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "learing_rate", 1e-4),
        ("training", "learning_rate", "2e-4"),
        ("training", "lr_scheduler_type", "cosin"),
        ("training", "max_length", 12),
        ("model", "dtype", "bf16"),
        ("data", "packing", "yes"),
        ("lora", "init_lora_weights", "loftq"),
        ("scao", "precond_frequency", 3),
        ("scao", "warmup_steps", "auto-ish"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(section: str, key: str, value: Any, validator: Any) -> None:
    recipe = {"data": {"path": "x", "test_split_size": 0.5}, "lora": {}, "training": {}}
    assert validator.is_valid(recipe)
    recipe[section] = {**recipe.get(section, {}), key: value}
    assert not validator.is_valid(recipe)


def test_the_schema_refuses_an_unknown_section_and_takes_null(validator: Any) -> None:
    assert not validator.is_valid({"modle": {}})
    assert validator.is_valid({"lora": None, "scao": None, "training": {"learning_rate": None}})


# Measurements


def test_a_measurement_is_a_line_of_the_file_and_replaces_its_like() -> None:
    text = recipe_text("lora-sft")  # which has none yet
    entry = {"device": "CPU", "steps": 80, "eval_loss": 1.83}
    once = with_measurement(text, "demo.yaml", entry)
    assert once == text.replace("measured: []\n", "measured:\n  - {device: CPU, steps: 80, eval_loss: 1.83}\n")
    other = {**entry, "settings": "optim=adamw_torch", "eval_loss": 1.87}
    both = with_measurement(with_measurement(once, "demo.yaml", other), "demo.yaml", {**entry, "eval_loss": 1.82})
    found = yaml_core.read_document(both, "demo.yaml").data["measured"]
    assert found == [other, {**entry, "eval_loss": 1.82}]
    assert both.replace(both[both.index("measured:") : both.index("\nmodel:")], "") == text.replace(
        "measured: []\n", ""
    )


def test_a_recipe_without_the_list_gets_one_before_its_sections() -> None:
    text = "schema: 1\ndescription: mine\n\nmodel: {from_scratch: true}\n"
    written = with_measurement(text, "my.yaml", {"device": "CPU"})
    assert written == "schema: 1\ndescription: mine\n\nmeasured:\n  - {device: CPU}\n\nmodel: {from_scratch: true}\n"


def test_measuring_runs_the_recipe_and_keeps_only_the_figures(recipe_file: Path) -> None:
    before = recipe_file.read_text(encoding="utf-8")
    entry = measure(recipe_file, ["training.logging_steps=2"])
    recipe = load_recipe(str(recipe_file))
    assert recipe.measured == (entry,)
    assert entry["steps"] == 3
    assert entry["settings"] == "training.logging_steps=2"
    assert entry["eval_loss"] < entry["eval_loss_before"]
    assert entry["optimizer_mib"] > 0
    assert entry["peak_gib"] > 0
    assert not (recipe_file.parent / "run").exists()
    after = recipe_file.read_text(encoding="utf-8")
    kept = [line for line in after.splitlines() if not line.startswith(("measured:", "  - {device:"))]
    assert list(filter(None, kept)) == list(filter(None, before.splitlines()))


def test_measuring_leaves_the_file_alone_where_the_run_fails(recipe_file: Path) -> None:
    before = recipe_file.read_text(encoding="utf-8")
    with pytest.raises(FinetuneError):
        measure(recipe_file, ["data.path=missing.jsonl"])
    assert recipe_file.read_text(encoding="utf-8") == before
