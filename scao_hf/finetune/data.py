"""From the `data` section to the two row sets of a run, in the columns that TRL reads."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scao_hf.finetune import formats
from scao_hf.finetune.chats import BadRow, EmptyRow
from scao_hf.finetune.config import DataSection
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.file_readers import Row
from scao_hf.finetune.sources import Table, first_rows, local_path, open_source, read_table
from scao_hf.finetune.streaming import PEEKED, RowStream

_PLACES_SHOWN = 3


@dataclass(frozen=True)
class Template:
    """What the tokenizer's chat template can do."""

    exists: bool
    masks_assistant: bool
    """Whether it marks what the assistant says, or TRL knows a version of it that does."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a run trains on and what it is judged by."""

    train: list[dict[str, Any]]
    """With a stream, the first rows of it."""
    evaluation: list[dict[str, Any]]
    """Empty if the recipe holds out no rows."""
    format: str
    loss_on: str
    conversational: bool
    funnel: dict[str, int]
    """Rows left after each stage, in order; empty for a stream, which nobody has counted."""
    fingerprint: str
    notices: tuple[str, ...]
    columns: tuple[str, ...]
    """The data's own columns, before any mapping."""
    places: tuple[str, ...]
    """Where each row of `train` was read."""
    stream: RowStream | None = None
    """Set for `data.streaming`."""

    def training_set(self, seed: int) -> Any:
        """What a trainer takes: a `Dataset`, or an `IterableDataset` shuffled by the seed for a stream."""
        return as_dataset(self.train) if self.stream is None else self.stream.dataset(seed)

    def evaluation_set(self) -> Any:
        """The held-out rows as a `Dataset`; None if there are none."""
        return as_dataset(self.evaluation) if self.evaluation else None


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    """Converted rows as a `Dataset`; messages that call tools keep exactly the keys they have."""
    from datasets import Dataset

    # Arrow gives every message the keys of all messages, with null where it had none. That is slow to avoid, and only
    # tool calls and their arguments need it. Where datasets has no such option, TRL itself takes the nulls out.
    ragged = (
        any(_has_tools(row) for row in rows) and "on_mixed_types" in inspect.signature(Dataset.from_list).parameters
    )
    return Dataset.from_list(rows, on_mixed_types="use_json") if ragged else Dataset.from_list(rows)


def _has_tools(row: dict[str, Any]) -> bool:
    turns = [turn for value in row.values() if isinstance(value, list) for turn in value]
    return "tools" in row or any(turn.keys() != {"role", "content"} for turn in turns)


def prepare_rows(data: DataSection, seed: int, template: Template) -> Rows:
    """Read, check, convert and split the rows; of a stream, only the first are read.

    Args:
        data: the section; `path` is set.
        seed: decides which rows `test_split_size` holds out.
        template: what the tokenizer's chat template can do.

    Raises:
        FinetuneError: kind "data" for what is wrong with the rows; model.no-chat-template.
    """
    assert data.path is not None
    if data.streaming:
        return _streamed_rows(data, template)
    table = read_table(data.path, data.name, data.split, data.max_samples)
    convert = _converter(table, data, template)
    train, funnel = convert(table)
    held_out, fingerprint = _evaluation_rows(data, convert)
    if data.test_split_size is not None:
        train, held_out = _split(train, data.test_split_size, seed, data.path)
        funnel |= {"for training": len(train)}
    return convert.rows(table, train, held_out, funnel=funnel, fingerprint=table.fingerprint + fingerprint)


def _streamed_rows(data: DataSection, template: Template) -> Rows:
    """The first rows of a stream, by which everything is judged, and the stream of those that are trained on."""
    assert data.path is not None
    source = open_source(data.path, data.name, data.split, streaming=True)
    count = int(data.test_split_size or 0)
    peeked = first_rows(source, min(count + PEEKED, data.max_samples or count + PEEKED))
    convert = _converter(peeked, data, template)
    head, _ = convert(peeked)
    held_out, fingerprint = _evaluation_rows(data, convert)
    if count >= len(head):
        message = f"data.test_split_size={count} holds out all {len(head)} usable rows at the start of {data.path}"
        raise FinetuneError("data.nothing-left", message, "hold out fewer")
    held_out = head[:count] if count else held_out
    stream = RowStream(source.rows, convert.one, skipped=count, max_rows=data.max_samples)
    return convert.rows(
        peeked, head[count:], held_out, funnel={}, fingerprint=source.fingerprint + fingerprint, stream=stream
    )


def _converter(table: Table, data: DataSection, template: Template) -> _Converter:
    """The converter for a table, after its format and loss have been settled."""
    mapped = formats.map_columns(table.columns, data.column_mapping, table.name)
    row_format = formats.detect_format(mapped, data.format, table.name)
    formats.check_verdicts(mapped, data.format, [row.values for row in table.rows], table.name)
    if row_format in formats.CHATS and not template.exists:
        message = f"{table.name} has chats (format {row_format}) and the tokenizer has no chat template"
        hint = "use an instruction-tuned model, or training.chat_template_path=MODEL_OR_FILE"
        raise FinetuneError("model.no-chat-template", message, hint)
    loss_on = formats.resolve_loss(row_format, data.loss_on, template.masks_assistant)
    return _Converter(data, row_format, loss_on, template.exists)


class _Converter:
    """Converts whole tables in one format, and remembers what it left out."""

    def __init__(self, data: DataSection, row_format: str, loss_on: str, has_template: bool) -> None:
        self.data = data
        self.format = row_format
        self.loss_on = loss_on
        self.convert_columns = formats.converter(row_format, loss_on, has_template)
        self.notices: list[str] = []

    def __call__(self, table: Table) -> tuple[list[Row], dict[str, int]]:
        """The converted rows with their places, and the funnel they went through."""
        mapped = formats.map_columns(table.columns, self.data.column_mapping, table.name)
        formats.detect_format(mapped, self.format, table.name)
        bad: list[tuple[Row, BadRow]] = []
        empty: list[Row] = []
        kept: list[Row] = []
        for row in table.rows:
            try:
                kept.append(Row(self._converted(row, mapped), row.place))
            except EmptyRow:
                empty.append(row)
            except BadRow as error:
                bad.append((row, error))
        if bad and not self.data.skip_bad_rows:
            raise self._wrong_type(table, mapped, bad)
        funnel = {"read": len(table.rows), "parsed": len(table.rows) - len(bad), "formatted": len(kept)}
        self._require_uniform(kept)
        self._judge(table, funnel, [row for row, _ in bad], empty)
        return kept, funnel

    def _converted(self, row: Row, mapped: dict[str, str]) -> dict[str, Any]:
        return self.convert_columns({name: row.values.get(column) for name, column in mapped.items()})

    def one(self, row: Row) -> dict[str, Any] | None:
        """A row of a stream, converted; None for one that is left out.

        Raises:
            FinetuneError: data.wrong-type.
        """
        mapped = formats.map_columns([*row.values, *self.data.column_mapping.values()], self.data.column_mapping, "")
        try:
            return self._converted(row, mapped)
        except EmptyRow:
            return None
        except BadRow as error:
            if self.data.skip_bad_rows:
                return None
            raise FinetuneError("data.wrong-type", f"{row.place}: {error}", _SKIPPING) from error

    def _wrong_type(self, table: Table, mapped: dict[str, str], bad: Sequence[tuple[Row, BadRow]]) -> FinetuneError:
        """Every kind of value that the column at fault holds, with counts, or how many rows are like the first."""
        row, error = bad[0]
        if error.column is None:
            others = f" ({len(bad)} of {len(table.rows)} rows cannot be read)" if len(bad) > 1 else ""
        else:
            values = [one.values.get(mapped[error.column]) for one in table.rows]
            kinds = Counter(type(value).__name__ for value in values)
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            others = f"; the column holds {counts} ({_listed([one.place for one, _ in bad])})"
        return FinetuneError("data.wrong-type", f"{row.place}: {error}{others}", _SKIPPING)

    def _require_uniform(self, kept: Sequence[Row]) -> None:
        """TRL decides by the first row whether rows are chats."""
        kinds = [formats.is_conversational(row.values) for row in kept]
        if len(set(kinds)) == 2:
            odd = kept[kinds.index(not kinds[0])]
            first, second = ("messages", "text") if kinds[0] else ("text", "messages")
            message = f"{odd.place}: this row's prompt or completion is {second}, and that of {kept[0].place} {first}"
            raise FinetuneError("data.wrong-type", message, "write all rows in one form")

    def _judge(self, table: Table, funnel: dict[str, int], bad: Sequence[Row], empty: Sequence[Row]) -> None:
        if not funnel["formatted"]:
            message = f"{table.name}: {shown_funnel(funnel)}: no row has anything to learn"
            hint = f"format {self.format} needs a non-empty {formats.REQUIRED[self.format][-1]}"
            raise FinetuneError("data.nothing-left", message, hint)
        for rows, why in ((bad, "whose values are of the wrong type"), (empty, "with nothing to learn")):
            if rows:
                places = _listed([row.place for row in rows])
                self.notices.append(f"{table.name}: {len(rows)} of {len(table.rows)} rows left out, {why} ({places})")

    def rows(self, table: Table, train: Sequence[Row], held_out: Sequence[Row], **settled: Any) -> Rows:
        """The row sets with what this converter knows of them."""
        return Rows(
            train=[row.values for row in train],
            evaluation=[row.values for row in held_out],
            format=self.format,
            loss_on=self.loss_on,
            conversational=formats.is_conversational(train[0].values),
            notices=tuple(self.notices + self._loss_notice()),
            columns=tuple(table.columns),
            places=tuple(row.place for row in train),
            **settled,
        )

    def _loss_notice(self) -> list[str]:
        if self.data.loss_on == "auto" and self.format in formats.CHATS and self.loss_on == "completion":
            told = "the chat template does not mark what the assistant says"
            return [f"{told}: the loss counts the last reply of each chat"]
        return []


_SKIPPING = "mend or remove these rows, or leave them out: data.skip_bad_rows=true"


def shown_funnel(funnel: dict[str, int]) -> str:
    """`read 1200 → parsed 1200 → formatted 1180`."""
    return " → ".join(f"{stage} {count}" for stage, count in funnel.items())


def _listed(places: Sequence[str]) -> str:
    more = f" and {len(places) - _PLACES_SHOWN} more" if len(places) > _PLACES_SHOWN else ""
    return ", ".join(places[:_PLACES_SHOWN]) + more


def _evaluation_rows(data: DataSection, convert: _Converter) -> tuple[list[Row], str]:
    path = data.eval_path or data.path
    if (data.eval_path is None and data.eval_split is None) or path is None:
        return [], ""
    local = local_path(path)
    if data.eval_split is not None and local is not None and local.is_file():
        message = f"data.eval_split is {data.eval_split!r}, and {path} is a single file, which has no splits"
        raise FinetuneError("data.split", message, "write data.eval_path or data.test_split_size")
    table = read_table(path, data.name, data.eval_split or data.split, None)
    return convert(table)[0], f" + {table.fingerprint}"


def _split_hint(path: str, rows: int) -> str:
    if rows == 1 and path.endswith(".txt"):
        return "a .txt file has a row for each paragraph: put empty lines between them"
    return "hold out fewer, or give more data"


def _split(rows: list[Row], size: float, seed: int, path: str) -> tuple[list[Row], list[Row]]:
    """Hold out a fraction or a number of rows, chosen by the seed; both parts keep the order of the file."""
    count = max(1, round(size * len(rows))) if size < 1 else int(size)
    if count >= len(rows):
        message = f"data.test_split_size={size:g} holds out {count} of {len(rows)} rows and leaves none to train on"
        raise FinetuneError("data.nothing-left", message, _split_hint(path, len(rows)))
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    return [row for index, row in enumerate(rows) if index not in chosen], held_out
