"""Rows: five formats from five kinds of file, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scao_hf.finetune.config import DataSection
from scao_hf.finetune.data import Rows, Template, prepare_rows
from scao_hf.finetune.errors import FinetuneError

MASKING = Template(exists=True, masks_assistant=True)
PLAIN = Template(exists=True, masks_assistant=False)
NONE = Template(exists=False, masks_assistant=False)

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def prepare(path: Path | str, template: Template = MASKING, **options: Any) -> Rows:
    return prepare_rows(DataSection(path=str(path), **options), seed=0, template=template)


def refusal(path: Path | str, template: Template = MASKING, **options: Any) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        prepare(path, template, **options)
    return caught.value


@pytest.mark.parametrize(
    ("row", "row_format", "loss_on", "prepared"),
    [
        ({"text": "a b"}, "text", "all", {"text": "a b"}),
        (
            {"prompt": "p", "completion": "c", "id": 3},
            "prompt_completion",
            "completion",
            {"prompt": "p", "completion": "c"},
        ),
        (
            {"instruction": "do", "input": "x", "output": "y"},
            "alpaca",
            "completion",
            {
                "prompt": [{"role": "user", "content": "do\n\nx"}],
                "completion": [{"role": "assistant", "content": "y"}],
            },
        ),
        ({"messages": CHAT}, "messages", "assistant", {"messages": CHAT}),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "sharegpt",
            "assistant",
            {"messages": CHAT},
        ),
        (
            {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            "sharegpt",
            "assistant",
            {"messages": [{"role": "system", "content": "S"}, *CHAT]},
        ),
    ],
)
def test_a_format_is_recognised_by_its_columns(
    rows_file: Callable[..., Path], row: dict[str, Any], row_format: str, loss_on: str, prepared: dict[str, Any]
) -> None:
    rows = prepare(rows_file([row]))
    assert (rows.format, rows.loss_on, rows.train) == (row_format, loss_on, [prepared])


def test_a_chat_without_assistant_marks_teaches_its_last_reply(rows_file: Callable[..., Path]) -> None:
    rows = prepare(rows_file([{"messages": [*CHAT, *CHAT]}]), PLAIN)
    assert rows.loss_on == "completion"
    assert rows.train == [{"prompt": [*CHAT, CHAT[0]], "completion": [CHAT[1]]}]
    assert len(rows.notices) == 1


def test_alpaca_rows_become_the_published_text_without_a_chat_template(rows_file: Callable[..., Path]) -> None:
    [row] = prepare(rows_file([{"instruction": "Say hi.", "output": "hi"}]), NONE).train
    assert row["completion"] == "hi"
    assert row["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay hi.\n\n### Response:\n"
    )


def test_a_column_mapping_renames_the_datas_columns(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"question": "q", "answer": "a"}])
    assert prepare(path, column_mapping={"prompt": "question", "completion": "answer"}).train == [
        {"prompt": "q", "completion": "a"}
    ]


def test_json_csv_parquet_and_txt_files_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": 'one, "two"'}, {"text": "drei üß"}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "c.csv").write_text('text\n"one, ""two"""\ndrei üß\n', encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text('one, "two"\n\n\n\ndrei üß\n', encoding="utf-8")
    for name in ("a.json", "b.json", "c.csv", "d.parquet", "e.txt"):
        assert prepare(tmp_path / name).train == rows, name


def test_a_directory_gives_the_rows_of_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"text": "second"}\n', encoding="utf-8")
    (folder / "a.jsonl").write_text('{"text": "first"}\n', encoding="utf-8")
    (folder / "notes.md").write_text("not data", encoding="utf-8")
    assert [row["text"] for row in prepare(folder).train] == ["first", "second"]


def test_held_out_rows_are_chosen_by_the_seed_and_shared_with_no_training_row(texts: Path) -> None:
    def split(seed: int) -> Rows:
        return prepare_rows(DataSection(path=str(texts), test_split_size=0.25), seed=seed, template=NONE)

    first, same, other = split(1), split(1), split(2)
    assert first.evaluation == same.evaluation
    assert first.evaluation != other.evaluation
    assert (len(first.train), len(first.evaluation)) == (18, 6)
    assert not {row["text"] for row in first.train} & {row["text"] for row in first.evaluation}
    assert first.funnel == {"read": 24, "parsed": 24, "formatted": 24, "for training": 18}


def test_an_eval_file_is_read_in_the_same_format(rows_file: Callable[..., Path]) -> None:
    train, held_out = rows_file([{"text": "a"}], "a.jsonl"), rows_file([{"text": "b"}], "b.jsonl")
    assert prepare(train, eval_path=str(held_out)).evaluation == [{"text": "b"}]


def test_max_samples_reads_from_the_start(texts: Path) -> None:
    assert len(prepare(texts, max_samples=5).train) == 5


def test_empty_rows_are_left_out_counted_and_noticed(rows_file: Callable[..., Path]) -> None:
    rows = prepare(rows_file([{"text": "a"}, {"text": "  "}, {"text": None}]), NONE)
    assert len(rows.train) == 1
    assert rows.funnel == {"read": 3, "parsed": 3, "formatted": 1}
    assert "2 of 3 rows left out" in rows.notices[0]


def test_malformed_json_lines_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"\n', encoding="utf-8")
    error = refusal(path)
    assert (error.code, error.exit_code) == ("data.malformed", 3)
    assert str(error.location) == f"{path}:2:13"
    assert error.message == "invalid JSON (Expecting ',' delimiter)"
    assert error.location is not None
    assert '{"text": "b"' in str(error.location.excerpt())


@pytest.mark.parametrize(
    ("name", "content", "place", "words"),
    [
        ("x.jsonl", '"words"\n', ":1:1", "a row must be a JSON object, got text"),
        ("x.json", '[{"text": "a"},\n {"text": }]', ":2:11", "invalid JSON"),
        ("x.json", "[1, 2]", "", "must hold a list of JSON objects"),
        ("x.csv", "text,id\na,1\nb\n", ":3:1", "the row has 1 fields, the header has 2"),
        ("x.csv", "text,id\na,1,9\n", ":2:1", "the row has 3 fields, the header has 2"),
        ("x.csv", 'text\n"open\n', ":", "invalid CSV"),
        (
            "x.csv",
            "prompt;completion\na;b\n",
            ":1:7",
            "the columns are parted by semicolons, and those of a .csv file by",
        ),
        ("x.csv", "prompt\tcompletion\na\tb\n", ":1:7", "the columns are parted by tabs"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(
    tmp_path: Path, name: str, content: str, place: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    error = refusal(path)
    assert (error.code, error.exit_code) == ("data.malformed", 3)
    assert words in error.message
    assert place in str(error.location or "")


def test_bytes_that_are_not_utf8_or_parquet_are_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert "is not UTF-8 text: byte 0xff" in refusal(tmp_path / "x.jsonl").message
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    assert refusal(tmp_path / "x.parquet").code == "data.malformed"


def test_what_spreadsheets_and_other_systems_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "MARKED.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    (tmp_path / "Lines.Csv").write_bytes(b'\xef\xbb\xbftext,id\r\n"a\r\nb",1\r\n')
    assert prepare(tmp_path / "MARKED.JSONL").train == [{"text": "a"}, {"text": "b"}]
    assert prepare(tmp_path / "Lines.Csv").train == [{"text": "a\r\nb"}]
    (tmp_path / "Lines.Csv").unlink()
    assert prepare(tmp_path).train == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("method", ["stat", "open"])
def test_data_that_may_not_be_read_are_named(texts: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def refuse(path: Path, *_args: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    error = refusal(texts)
    assert (error.code, error.exit_code) == ("data.unreadable", 3)
    assert error.message == f"no permission to read {texts}"


def test_a_missing_file_is_refused_with_the_nearest_name(texts: Path) -> None:
    error = refusal(texts.with_name("row.jsonl"))
    assert (error.code, error.exit_code) == ("data.missing-file", 3)
    assert error.message == f"no such file: {texts.with_name('row.jsonl')}"
    assert error.hint == f"did you mean {texts}?"


def test_a_missing_column_is_refused_with_the_mapping_to_type(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"question": "q", "answer": "a"}])
    error = refusal(path)
    assert (error.code, error.exit_code) == ("data.missing-column", 3)
    assert error.message == f"no format fits the columns of {path}: question, answer"
    assert error.hint == "data.column_mapping='{prompt: question, completion: answer}'"
    stated = refusal(path, format="text")
    assert stated.message == f"format text needs text; {path} has question, answer"
    assert stated.hint == "data.column_mapping='{text: COLUMN}'"


def test_a_mapping_to_a_column_that_is_not_there_is_refused(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"question": "q", "answer": "a"}])
    assert "'text' from 'body'" in refusal(path, column_mapping={"text": "body"}).message
    assert "'promt', which is no column" in refusal(path, column_mapping={"promt": "question"}).message


def test_a_value_of_the_wrong_type_is_named_with_its_row(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"text": "a"}, {"text": 5}, {"text": [1]}])
    error = refusal(path, NONE)
    assert (error.code, error.exit_code) == ("data.wrong-type", 3)
    assert error.message == (
        f"{path}:2: column 'text' must be text, got 5 (int); the column holds 1 str, 1 int, 1 list ({path}:2, {path}:3)"
    )
    assert error.hint == "mend or remove these rows, or leave them out: data.skip_bad_rows=true"


def test_rows_of_the_wrong_type_are_left_out_and_counted_where_that_is_asked_for(
    rows_file: Callable[..., Path],
) -> None:
    path = rows_file([{"text": "a"}, {"text": 5}, {"text": ""}, {"text": [1]}])
    rows = prepare(path, NONE, skip_bad_rows=True)
    assert rows.train == [{"text": "a"}]
    assert rows.places == (f"{path}:1",)
    assert rows.funnel == {"read": 4, "parsed": 2, "formatted": 1}
    assert f"2 of 4 rows left out, whose values are of the wrong type ({path}:2, {path}:4)" in rows.notices[0]
    assert f"1 of 4 rows left out, with nothing to learn ({path}:3)" in rows.notices[1]


def test_a_prompt_of_messages_and_a_completion_of_text_make_a_chat(rows_file: Callable[..., Path]) -> None:
    rows = prepare(rows_file([{"prompt": CHAT[:1], "completion": "A"}, {"prompt": "Q", "completion": CHAT[1:]}]))
    assert rows.conversational
    assert rows.train == [{"prompt": CHAT[:1], "completion": CHAT[1:]}] * 2
    assert (
        "the tokenizer has no chat template"
        in refusal(rows_file([{"prompt": CHAT[:1], "completion": "A"}]), NONE).message
    )


def test_rows_of_text_and_rows_of_messages_are_not_mixed(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"prompt": "Q", "completion": "A"}, {"prompt": CHAT[:1], "completion": "A"}])
    error = refusal(path)
    assert error.code == "data.wrong-type"
    assert error.message == (f"{path}:2: this row's prompt or completion is messages, and that of {path}:1 text")


def test_preference_pairs_of_whole_chats_are_mapped_to_messages(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"chosen": CHAT, "rejected": CHAT}])
    assert refusal(path).hint == "to learn the chosen ones: data.column_mapping='{messages: chosen}'"
    assert prepare(path, column_mapping={"messages": "chosen"}).train == [{"messages": CHAT}]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "narrator", "content": "x"}], "message 1 has the role 'narrator'"),
        ([{"role": "user", "content": ["x"]}], "message 1 must have text as its content"),
        (["hello"], "message 1 must be an object with role and content"),
        ("hello", "column 'messages' must be a list of messages"),
    ],
)
def test_a_malformed_chat_is_named_with_its_row(rows_file: Callable[..., Path], messages: object, words: str) -> None:
    assert words in refusal(rows_file([{"messages": messages}])).message


@pytest.mark.parametrize(("name", "content"), [("e.jsonl", ""), ("e.csv", "text\n"), ("e.json", "[]"), ("e.txt", "\n")])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    error = refusal(tmp_path / name)
    assert (error.code, error.exit_code) == ("data.empty", 3)
    assert error.message == f"{tmp_path / name} has no rows"


def test_rows_with_nothing_to_learn_are_refused(rows_file: Callable[..., Path]) -> None:
    error = refusal(rows_file([{"messages": [{"role": "user", "content": "hello?"}]}]))
    assert (error.code, error.exit_code) == ("data.nothing-left", 3)
    assert "read 1 → parsed 1 → formatted 0: no row has anything to learn" in error.message


def test_preference_pairs_are_refused_with_a_way_out(rows_file: Callable[..., Path]) -> None:
    path = rows_file([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert refusal(path).code == "data.preference-pairs"
    assert prepare(path, column_mapping={"completion": "chosen"}).train == [{"prompt": "p", "completion": "a"}]


@pytest.mark.parametrize("labels", [[True, False, False], ["True", "False", "false"]])
def test_answers_that_were_judged_are_refused_if_there_are_bad_ones(
    rows_file: Callable[..., Path], labels: list[Any]
) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in labels]
    path = rows_file(rows)
    error = refusal(path)
    assert (error.code, error.exit_code) == ("data.unpaired-preference", 3)
    assert error.message == (
        f"{path} has answers with a verdict (prompt, completion, label: 1 true, 2 false), and this tool learns every "
        "answer"
    )
    assert error.hint is not None
    assert len(prepare(path, format="prompt_completion").train) == 3
    assert len(prepare(rows_file(rows[:1], "good.jsonl")).train) == 1


@pytest.mark.parametrize("labels", [[0, 1], ["joy", "grief"], [True, None]])
def test_labels_that_are_no_verdicts_are_not_read(rows_file: Callable[..., Path], labels: list[Any]) -> None:
    rows = rows_file([{"prompt": "p", "completion": "c", "label": label} for label in labels])
    assert prepare(rows).train == [{"prompt": "p", "completion": "c"}] * 2


def test_tokenized_rows_are_refused(rows_file: Callable[..., Path]) -> None:
    assert refusal(rows_file([{"input_ids": [1, 2]}])).code == "data.tokenized"


def test_a_chat_needs_a_template(chats: Path) -> None:
    error = refusal(chats, NONE)
    assert (error.code, error.exit_code) == ("model.no-chat-template", 4)


@pytest.mark.parametrize(
    ("row", "loss_on", "template", "code", "hint"),
    [
        ({"text": "a"}, "completion", NONE, "data.loss-on", "data.loss_on=all"),
        ({"prompt": "p", "completion": "c"}, "assistant", NONE, "data.loss-on", "data.loss_on=completion"),
        (
            {"messages": CHAT},
            "assistant",
            PLAIN,
            "model.template-without-mask",
            "data.loss_on=completion learns the last reply; or training.chat_template_path=FILE.jinja, a template with "
            "{% generation %} and {% endgeneration %} around the assistant's words",
        ),
    ],
)
def test_a_loss_that_the_rows_do_not_support_is_refused(
    rows_file: Callable[..., Path], row: dict[str, Any], loss_on: str, template: Template, code: str, hint: str
) -> None:
    error = refusal(rows_file([row]), template, loss_on=loss_on)
    assert (error.code, error.hint) == (code, hint)


def test_a_split_that_leaves_no_training_row_is_refused(texts: Path) -> None:
    error = refusal(texts, test_split_size=24)
    assert (error.code, error.hint) == ("data.nothing-left", "hold out fewer, or give more data")


def test_a_text_file_without_empty_lines_is_one_row_and_the_refusal_to_split_it_says_so(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\nthree\n", encoding="utf-8")
    error = refusal(lines, test_split_size=0.5)
    assert error.hint == "a .txt file has a row for each paragraph: put empty lines between them"


def test_splits_of_a_local_file_are_refused(texts: Path) -> None:
    assert refusal(texts, eval_split="test").code == "data.split"


def test_a_dataset_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_args: object, **_options: object) -> None:
        raise ConnectionError("Couldn't reach 'some/dataset' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    error = refusal("some/dataset")
    assert (error.code, error.exit_code) == ("data.offline", 3)
    assert error.message == "the dataset some/dataset is not in the cache and the hub cannot be reached"


def test_a_name_that_is_neither_on_the_hub_nor_here_suggests_a_file(
    rows_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unknown(*_args: object, **_options: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'rows' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    monkeypatch.setattr("scao_hf.finetune.sources._is_offline", lambda: False)
    monkeypatch.chdir(rows_file([{"text": "a"}], "rows1.jsonl").parent)
    error = refusal("rows.json1")
    assert (error.code, error.hint) == ("data.not-found", "did you mean rows1.jsonl?")


def test_rows_of_a_hub_dataset_are_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"text": f"{split} {number}"} for number in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = prepare("some/dataset", name="main", eval_split="test", max_samples=2)
    assert asked == [("some/dataset", "main", "train"), ("some/dataset", "main", "test")]
    assert [row["text"] for row in rows.train] == ["train 0", "train 1"]
    assert [row["text"] for row in rows.evaluation] == ["test 0", "test 1", "test 2"]
