"""docs/data-formats.md: every example on the page is read as what the page calls it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scao_hf.finetune.config import DataSection
from scao_hf.finetune.data import Template, prepare_rows
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.formats import CHATS, REQUIRED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-formats.md"
EXAMPLE = re.compile(r"### (?P<heading>.+?)\n(?:(?!\n###? ).)*?```(?P<suffix>jsonl|csv)\n(?P<rows>.*?)```", re.DOTALL)
EXAMPLES = {match["heading"]: match for match in EXAMPLE.finditer(PAGE.read_text(encoding="utf-8"))}


def written(heading: str, folder: Path) -> Path:
    example = EXAMPLES[heading]
    path = folder / f"example.{example['suffix']}"
    path.write_text(example["rows"], encoding="utf-8")
    return path


def test_every_format_has_an_example() -> None:
    assert set(EXAMPLES) == {*REQUIRED, "Preference pairs", "Answers with a verdict"}


@pytest.mark.parametrize(
    ("row_format", "template"),
    [*((name, True) for name in REQUIRED), *((name, False) for name in REQUIRED if name not in CHATS)],
)
def test_an_example_is_read_as_its_format(row_format: str, template: bool, tmp_path: Path) -> None:
    data = DataSection(path=str(written(row_format, tmp_path)))
    rows = prepare_rows(data, 0, Template(exists=template, masks_assistant=template))
    assert (rows.format, len(rows.train), rows.notices) == (row_format, 2, ())


def test_preference_pairs_are_refused_and_mapped_as_the_page_says(tmp_path: Path) -> None:
    template = Template(exists=True, masks_assistant=True)
    path = str(written("Preference pairs", tmp_path))
    with pytest.raises(FinetuneError) as caught:
        prepare_rows(DataSection(path=path), 0, template)
    assert caught.value.code == "data.preference-pairs"
    assert "data.column_mapping='{completion: chosen}'" in str(caught.value.hint)
    mapped = prepare_rows(DataSection(path=path, column_mapping={"completion": "chosen"}), 0, template)
    assert mapped.train == [{"prompt": "Is it late?", "completion": "It is ten."}]


def test_answers_with_a_verdict_are_refused_and_read_as_the_page_says(tmp_path: Path) -> None:
    template = Template(exists=True, masks_assistant=True)
    path = str(written("Answers with a verdict", tmp_path))
    with pytest.raises(FinetuneError) as caught:
        prepare_rows(DataSection(path=path), 0, template)
    assert caught.value.code == "data.unpaired-preference"
    assert len(prepare_rows(DataSection(path=path, format="prompt_completion"), 0, template).train) == 2
