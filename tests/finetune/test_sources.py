"""Where rows come from: splits of directories, datasets saved by `datasets`, and names that are nearly right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.sources import open_source, read_table


def texts_of(path: Path, split: str = "train") -> list[str]:
    return [row.values["text"] for row in read_table(str(path), None, split, None).rows]


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


@pytest.mark.parametrize("names", [("train.jsonl", "test.jsonl"), ("train/a.jsonl", "test/a.jsonl")])
def test_files_and_folders_named_after_splits_are_kept_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path / names[0], "seen")
    write(tmp_path / names[1], "held out")
    (tmp_path / "README.md").write_text("not data", encoding="utf-8")
    assert texts_of(tmp_path) == ["seen"]
    assert texts_of(tmp_path, "test") == ["held out"]
    with pytest.raises(FinetuneError) as caught:
        texts_of(tmp_path, "validation")
    assert (caught.value.code, caught.value.exit_code) == ("data.split", 3)
    assert "has no split 'validation'; its files make train, test" in caught.value.message


def test_a_directory_that_datasets_wrote_is_read_as_rows_not_as_its_files(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "one")
    assert texts_of(tmp_path / "one") == ["a", "b"]
    both = {split: datasets.Dataset.from_list([{"text": split}]) for split in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    assert texts_of(tmp_path / "two", "test") == ["test"]
    with pytest.raises(FinetuneError, match="it holds train, test"):
        texts_of(tmp_path / "two", "dev")


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    with pytest.raises(FinetuneError) as caught:
        texts_of(tmp_path)
    assert caught.value.code == "data.missing-file"


def test_a_file_one_folder_away_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "chats.jsonl", "a")
    with pytest.raises(FinetuneError) as caught:
        open_source("./chats.jsonl", None, "train")
    assert (caught.value.message, caught.value.hint) == ("no such file: chats.jsonl", "did you mean data/chats.jsonl?")


def test_the_mark_under_a_malformed_place_lies_within_the_excerpt_of_a_long_line(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "' + "x" * 5000 + '" "id": 1}\n', encoding="utf-8")
    with pytest.raises(FinetuneError) as caught:
        texts_of(path)
    assert caught.value.location is not None
    assert caught.value.location.column == 5013
    *_, line, mark = str(caught.value.location.excerpt()).splitlines()
    assert line[mark.index("^") :].startswith('"id": 1}')
    assert len(line) < 120


def test_a_streamed_source_is_told_from_another_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "a")
    first = open_source(str(path), None, "train", streaming=True).fingerprint
    write(path, "a", "b")
    assert open_source(str(path), None, "train", streaming=True).fingerprint != first
