"""Rows that are read while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scao_hf.finetune.config import DataSection
from scao_hf.finetune.data import Rows, Template, prepare_rows
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.preview import preview
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune

TEXTS = [{"text": f"row {number}"} for number in range(200)]


def streamed(path: Path, **options: Any) -> Rows:
    return prepare_rows(DataSection(path=str(path), streaming=True, **options), 0, Template(True, True))


def test_a_stream_gives_every_row_but_those_held_out_at_its_start(rows_file: Callable[..., Path]) -> None:
    rows = streamed(rows_file([*TEXTS, {"text": ""}]), test_split_size=5)
    assert rows.evaluation == TEXTS[:5]
    assert rows.stream is not None
    assert list(rows.stream) == list(rows.stream) == TEXTS[5:]
    assert len(rows.train) == 100
    drawn = list(rows.training_set(seed=1))
    assert drawn != TEXTS[5:]
    assert sorted(row["text"] for row in drawn) == sorted(row["text"] for row in TEXTS[5:])
    assert list(rows.training_set(seed=1)) == drawn


def test_max_samples_ends_a_stream(rows_file: Callable[..., Path]) -> None:
    rows = streamed(rows_file(TEXTS), max_samples=150)
    assert rows.stream is not None
    assert list(rows.stream) == TEXTS[:150]


def test_only_the_start_of_a_stream_is_read_before_the_run(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in TEXTS)
    path.write_text(good + '{"text": 5}\n{"text": \n', encoding="utf-8")
    rows = streamed(path)
    assert rows.stream is not None
    with pytest.raises(FinetuneError) as caught:
        list(rows.stream)
    assert (caught.value.code, caught.value.message) == (
        "data.wrong-type",
        f"{path}:201: column 'text' must be text, got 5 (int)",
    )
    skipping = streamed(path, skip_bad_rows=True).stream
    assert skipping is not None
    with pytest.raises(FinetuneError, match=r"late\.jsonl:202:10: invalid JSON"):
        list(skipping)


def test_a_run_trains_on_a_stream(recipe_file: Path) -> None:
    report = finetune(load_recipe(str(recipe_file), ["data.streaming=true"]))
    assert report.steps == 3
    assert report.final_eval_loss is not None
    assert report.final_eval_loss < (report.initial_eval_loss or 0.0)
    run = json.loads((report.output_dir / "run.json").read_text(encoding="utf-8"))
    assert run["run"]["train_rows"] is None
    assert run["run"]["epochs"] is None


def test_an_error_in_a_streamed_row_ends_the_run_with_its_place(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in TEXTS)
    path.write_text(good + '{"text": 5}\n', encoding="utf-8")
    given = ["data.streaming=true", f"data.path={path}", "training.max_steps=100"]
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), given))
    assert caught.value.code == "data.wrong-type"
    assert f"{path}:201" in caught.value.message


def test_a_stream_is_previewed_from_its_start(recipe_file: Path) -> None:
    found = preview(load_recipe(str(recipe_file), ["data.streaming=true"]), rows=10)
    assert (found.training_rows, found.counts.rows, found.eval_rows) == (None, 10, 4)
    assert found.samples[0].place.endswith(":5")


def test_a_dataset_of_the_hub_is_streamed_by_the_hubs_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, name: str | None, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.append((path, name, split, streaming))
        return datasets.IterableDataset.from_generator(lambda: iter(TEXTS))

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = prepare_rows(DataSection(path="some/dataset", streaming=True), 0, Template(True, True))
    assert asked == [("some/dataset", None, "train", True)]
    assert rows.stream is not None
    assert list(rows.stream) == TEXTS
    assert rows.places[0] == "some/dataset row 1"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.max_steps=-1", "`training.max_steps` must be set"),
        ("data.test_split_size=0.1", "must be a number of rows with data.streaming, got the fraction 0.1"),
        ("data.packing=true", "rows that are streamed cannot be packed"),
    ],
)
def test_what_a_stream_cannot_do_is_said_when_the_recipe_is_read(recipe_file: Path, override: str, words: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(str(recipe_file), ["data.streaming=true", override])
    assert (caught.value.code, caught.value.exit_code) == ("config.invalid-value", 2)
    assert words in caught.value.message
