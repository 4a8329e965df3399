"""From the `data` section to the two row sets of a run, in the columns that TRL reads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from scao_hf.finetune import formats
from scao_hf.finetune.config import DataSection
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.sources import Table, local_path, read_table


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
    evaluation: list[dict[str, Any]]
    """Empty if the recipe holds out no rows."""
    format: str
    loss_on: str
    conversational: bool
    funnel: dict[str, int]
    """Rows left after each stage, in order."""
    fingerprint: str
    notices: tuple[str, ...]


def prepare_rows(data: DataSection, seed: int, template: Template) -> Rows:
    """Read, check, convert and split the rows.

    Args:
        data: the section; `path` is set.
        seed: decides which rows `test_split_size` holds out.
        template: what the tokenizer's chat template can do.

    Raises:
        FinetuneError: kind "data" for what is wrong with the rows; model.no-chat-template.
    """
    assert data.path is not None
    table = read_table(data.path, data.name, data.split, data.max_samples)
    mapped = formats.map_columns(table.columns, data.column_mapping, table.name)
    row_format = formats.detect_format(mapped, data.format, table.name)
    if row_format in formats.CHATS and not template.exists:
        message = f"{table.name} has chats (format {row_format}) and the tokenizer has no chat template"
        hint = "use an instruction-tuned model, or training.chat_template_path=MODEL_OR_FILE"
        raise FinetuneError("model.no-chat-template", message, hint)
    loss_on = formats.resolve_loss(row_format, data.loss_on, template.masks_assistant)
    convert = _Converter(data, row_format, loss_on, template.exists)
    train = convert(table)
    funnel = {"read": len(table.rows), "usable": len(train)}
    held_out, fingerprint = _evaluation_rows(data, convert)
    if data.test_split_size is not None:
        train, held_out = _split(train, data.test_split_size, seed, data.path)
        funnel |= {"for training": len(train)}
    return Rows(
        train=train,
        evaluation=held_out,
        format=row_format,
        loss_on=loss_on,
        conversational=isinstance(train[0].get("prompt", train[0].get("messages")), list),
        funnel=funnel,
        fingerprint=table.fingerprint + fingerprint,
        notices=tuple(convert.notices + _loss_notice(data, row_format, loss_on)),
    )


class _Converter:
    """Converts whole tables in one format, and remembers what it left out."""

    def __init__(self, data: DataSection, row_format: str, loss_on: str, has_template: bool) -> None:
        self.mapping = data.column_mapping
        self.format = row_format
        self.convert_row = formats.converter(row_format, loss_on, has_template)
        self.notices: list[str] = []

    def __call__(self, table: Table) -> list[dict[str, Any]]:
        mapped = formats.map_columns(table.columns, self.mapping, table.name)
        formats.detect_format(mapped, self.format, table.name)
        bad: list[str] = []
        empty, kept = 0, []
        for row in table.rows:
            try:
                columns = {name: row.values.get(column) for name, column in mapped.items()}
                kept.append(self.convert_row(columns))
            except formats.EmptyRow:
                empty += 1
            except formats.BadRow as error:
                bad.append(f"{row.place}: {error}")
        self._judge(table, bad, empty, len(kept))
        return kept

    def _judge(self, table: Table, bad: list[str], empty: int, kept: int) -> None:
        if bad:
            others = f" ({len(bad)} of {len(table.rows)} rows are like this)" if len(bad) > 1 else ""
            raise FinetuneError("data.wrong-type", bad[0] + others, "mend or remove these rows")
        if not kept:
            message = f"{table.name}: read {len(table.rows)} rows, and none has anything to learn"
            hint = f"format {self.format} needs a non-empty {formats.REQUIRED[self.format][-1]}"
            raise FinetuneError("data.nothing-left", message, hint)
        if empty:
            self.notices.append(f"{table.name}: {empty} of {len(table.rows)} rows left out, with nothing to learn")


def _evaluation_rows(data: DataSection, convert: _Converter) -> tuple[list[dict[str, Any]], str]:
    path = data.eval_path or data.path
    if (data.eval_path is None and data.eval_split is None) or path is None:
        return [], ""
    if data.eval_split is not None and local_path(path) is not None:
        message = f"data.eval_split is {data.eval_split!r}, and {path} is a local file, which has no splits"
        raise FinetuneError("data.split", message, "write data.eval_path or data.test_split_size")
    table = read_table(path, data.name, data.eval_split or data.split, None)
    return convert(table), f" + {table.fingerprint}"


def _split_hint(path: str, rows: int) -> str:
    if rows == 1 and path.endswith(".txt"):
        return "a .txt file has a row for each paragraph: put empty lines between them"
    return "hold out fewer, or give more data"


def _split(
    rows: list[dict[str, Any]], size: float, seed: int, path: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold out a fraction or a number of rows, chosen by the seed; both parts keep the order of the file."""
    count = max(1, round(size * len(rows))) if size < 1 else int(size)
    if count >= len(rows):
        message = f"data.test_split_size={size:g} holds out {count} of {len(rows)} rows and leaves none to train on"
        raise FinetuneError("data.nothing-left", message, _split_hint(path, len(rows)))
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    held_out = [row for index, row in enumerate(rows) if index in chosen]
    return [row for index, row in enumerate(rows) if index not in chosen], held_out


def _loss_notice(data: DataSection, row_format: str, loss_on: str) -> list[str]:
    if data.loss_on == "auto" and row_format in formats.CHATS and loss_on == "completion":
        return ["the chat template does not mark what the assistant says: the loss counts the last reply of each chat"]
    return []
