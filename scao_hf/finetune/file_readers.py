"""One reader for each kind of file; each yields rows with their place and says where a file is malformed."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.errors import FinetuneError, Location

_EXCERPT = 100
"""Characters of a long line that are shown around the place of an error."""


@dataclass(frozen=True)
class Row:
    """One row as it was read."""

    values: dict[str, Any]
    place: str
    """"data.jsonl:12" for a line, "data.parquet row 12" otherwise; rows and lines count from one."""


def suffix_of(path: Path) -> str:
    """By which a file's kind is known, whatever its case."""
    return path.suffix.lower()


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file whose suffix is one of `SUFFIXES`, read as they are asked for where its kind allows.

    Raises:
        FinetuneError: data.malformed with the place, data.unreadable.
    """
    try:
        yield from _READERS[suffix_of(path)](path)
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise FinetuneError("data.malformed", message, "convert it to UTF-8") from error
    except PermissionError as error:
        raise FinetuneError("data.unreadable", f"no permission to read {path}", "change its mode") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(_json_object(line.rstrip("\n"), path, number), f"{path}:{number}")


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        place = _place(path, number, error.colno, line)
        hint = "each line of a .jsonl file is one JSON object"
        raise FinetuneError("data.malformed", f"invalid JSON ({error.msg})", hint, place) from error
    if not isinstance(value, dict):
        place = _place(path, number, 1, line)
        hint = 'write {"text": ...} or another format\'s columns'
        raise FinetuneError("data.malformed", f"a row must be a JSON object, got {_kind(value)}", hint, place)
    return value


def _place(path: Path, number: int, column: int, line: str) -> Location:
    """A place in a file with as much of its line as a screen shows."""
    start = max(0, column - 1 - _EXCERPT // 2) if len(line) > _EXCERPT else 0
    return Location(str(path), number, column, line[start : start + _EXCERPT], offset=start)


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # One object a line: JSON lines under another name.
            yield from _read_jsonl(path)
            return
        place = _place(path, error.lineno, error.colno, (text.splitlines() or [""])[error.lineno - 1])
        raise FinetuneError("data.malformed", f"invalid JSON ({error.msg})", "mend the file", place) from error
    rows = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        message = f"{path} must hold a list of JSON objects, got {_kind(value)}"
        raise FinetuneError("data.malformed", message, 'write [{"text": ...}, ...]')
    yield from (Row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1))


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            _check_csv_header(reader.fieldnames or (), path)
            for row in reader:
                _check_csv_row(row, path, reader.line_num)
                yield Row(row, f"{path}:{reader.line_num}")
        except csv.Error as error:
            place = Location(str(path), reader.line_num)
            raise FinetuneError("data.malformed", f"invalid CSV ({error})", "check the quotes", place) from error


def _check_csv_header(names: Sequence[str], path: Path) -> None:
    """Refuse a header whose only name is several, parted by something else than commas."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and separator in names[0]:
            message = f"the columns are parted by {name}, and those of a .csv file by commas"
            place = Location(str(path), 1, names[0].index(separator) + 1, names[0])
            raise FinetuneError("data.malformed", message, "write it again with commas", place)


def _check_csv_row(row: dict[Any, Any], path: Path, line: int) -> None:
    columns = len([name for name in row if name is not None])
    found = columns + len(row.get(None, ())) - sum(value is None for value in row.values())
    if found != columns:
        message = f"the row has {found} fields, the header has {columns}"
        raise FinetuneError("data.malformed", message, "quote fields that hold commas", Location(str(path), line))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches())
            rows = itertools.chain.from_iterable(batches)
            yield from (Row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1))
    except pyarrow.ArrowInvalid as error:
        raise FinetuneError("data.malformed", f"{path} is not a parquet file: {error}", "write it again") from error


def _read_text(path: Path) -> Iterator[Row]:
    """Paragraphs: pieces between empty lines, each a row."""
    paragraphs = (piece.strip() for piece in path.read_text(encoding="utf-8-sig").split("\n\n"))
    kept = (piece for piece in paragraphs if piece)
    yield from (Row({"text": piece}, f"{path} paragraph {number}") for number, piece in enumerate(kept, start=1))


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}

SUFFIXES = tuple(_READERS)
