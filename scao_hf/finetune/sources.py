"""Rows from files and from the hub, each with the place it came from, so that an error can name it.

Rows are held in memory: fine-tuning sets fit, and every error can then name a row.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from scao_hf.finetune import embedded
from scao_hf.finetune.errors import FinetuneError, Location
from scao_hf.finetune.schema import closest

EMBEDDED = "embedded:"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Row:
    """One row as it was read."""

    values: dict[str, Any]
    place: str
    """"data.jsonl:12" for a line, "data.parquet row 12" otherwise; rows and lines count from one."""


@dataclass(frozen=True)
class Table:
    """The rows of one source."""

    rows: list[Row]
    name: str
    """The source as the user gave it."""
    fingerprint: str
    """sha256 of the files' bytes, or the hub dataset's own fingerprint."""

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(itertools.chain.from_iterable(row.values for row in self.rows)))


def read_table(path: str, name: str | None, split: str, max_rows: int | None) -> Table:
    """Read a file, a directory of files, the embedded dataset or a dataset of the hub.

    Args:
        path: as in `data.path`.
        name: configuration of a hub dataset.
        split: split of a hub dataset; files have none.
        max_rows: rows to read at most; None for all.

    Raises:
        FinetuneError: kind "data": missing-file, malformed, empty, not-found, offline, ...
    """
    local = local_path(path)
    if local is None:
        table = _read_hub(path, name, split, max_rows)
    else:
        files = _files_of(local)
        rows = list(itertools.islice(itertools.chain.from_iterable(map(_read_file, files)), max_rows))
        table = Table(rows, path, _fingerprint(files))
    if not table.rows:
        raise FinetuneError("data.empty", f"{path} has no rows", "give data with at least one row")
    return table


def local_path(path: str) -> Path | None:
    """Where a local source lies; None for the id of a hub dataset.

    Raises:
        FinetuneError: data.missing-file if it looks like a path and nothing is there.
    """
    if path.startswith(EMBEDDED):
        return _embedded_dataset(path.removeprefix(EMBEDDED))
    given = Path(os.path.expandvars(path)).expanduser()
    if given.exists():
        return given
    if looks_like_path(path) or given.suffix in SUFFIXES:
        raise _missing(given)
    return None


def looks_like_path(text: str) -> bool:
    """Whether a name cannot be a hub id: those have at most one slash and do not start with `.`, `/` or `~`."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _embedded_dataset(name: str) -> Path:
    if name != embedded.DATASET_NAME:
        message = f"no dataset {name!r} comes with this package"
        raise FinetuneError("data.missing-file", message, f"write {EMBEDDED}{embedded.DATASET_NAME}")
    return embedded.dataset_path()


def _missing(path: Path) -> FinetuneError:
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = closest(path.name, names)
    if near is not None:
        hint = f"did you mean {folder / near}?"
    elif folder.is_dir():
        hint = f"the current directory is {Path.cwd()}"
    else:
        hint = f"there is no directory {folder} either; the current one is {Path.cwd()}"
    return FinetuneError("data.missing-file", f"no such file: {path}", hint)


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in _READERS:
            message = f"{path} is not of a kind that can be read"
            raise FinetuneError("data.unknown-kind", message, f"give one of {', '.join(SUFFIXES)}")
        return [path]
    files = sorted(entry for entry in path.iterdir() if entry.suffix in _READERS)
    if not files:
        message = f"the directory {path} holds none of {', '.join(SUFFIXES)}"
        raise FinetuneError("data.missing-file", message, "give a file, or a directory of such files")
    return files


def _read_file(path: Path) -> Iterator[Row]:
    try:
        yield from _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise FinetuneError("data.malformed", message, "convert it to UTF-8") from error
    except PermissionError as error:
        raise FinetuneError("data.unreadable", f"no permission to read {path}", "change the file's mode") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(_json_object(line.rstrip("\n"), path, number), f"{path}:{number}")


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        place = Location(str(path), number, error.colno, line[:200])
        hint = "each line of a .jsonl file is one JSON object"
        raise FinetuneError("data.malformed", f"invalid JSON ({error.msg})", hint, place) from error
    if not isinstance(value, dict):
        place = Location(str(path), number, 1, line[:200])
        hint = 'write {"text": ...} or another format\'s columns'
        raise FinetuneError("data.malformed", f"a row must be a JSON object, got {_kind(value)}", hint, place)
    return value


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
        place = Location(str(path), error.lineno, error.colno, text.splitlines()[error.lineno - 1][:200])
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
            for row in reader:
                _check_csv_row(row, path, reader.line_num)
                yield Row(row, f"{path}:{reader.line_num}")
        except csv.Error as error:
            place = Location(str(path), reader.line_num)
            raise FinetuneError("data.malformed", f"invalid CSV ({error})", "check the quotes", place) from error


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
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise FinetuneError("data.malformed", f"{path} is not a parquet file: {error}", "write it again") from error
    yield from (Row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1))


def _read_text(path: Path) -> Iterator[Row]:
    """Paragraphs: pieces between empty lines, each a row."""
    paragraphs = (piece.strip() for piece in path.read_text(encoding="utf-8-sig").split("\n\n"))
    kept = (piece for piece in paragraphs if piece)
    yield from (Row({"text": piece}, f"{path} paragraph {number}") for number, piece in enumerate(kept, start=1))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def _fingerprint(files: Sequence[Path]) -> str:
    digest = sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _read_hub(path: str, name: str | None, split: str, max_rows: int | None) -> Table:
    import datasets

    try:
        dataset = datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError) as error:
        raise _hub_error(path, name, split, error) from error
    if not isinstance(dataset, datasets.Dataset):
        raise FinetuneError("data.not-found", f"{path} has no plain split {split!r}", "set data.split")
    count = len(dataset) if max_rows is None else min(max_rows, len(dataset))
    rows = [Row(dict(values), f"{path} row {number}") for number, values in enumerate(dataset.select(range(count)), 1)]
    return Table(rows, path, f"datasets:{dataset._fingerprint}")


def _hub_error(path: str, name: str | None, split: str, error: Exception) -> FinetuneError:
    """What went wrong with a hub dataset, from the messages of `datasets`, whose classes are less exact."""
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        message = f"{path} has no configuration {name!r}" if name else f"{path} has several configurations"
        return FinetuneError("data.configuration", f"{message}: {text.splitlines()[0]}", "set data.name")
    if "nknown split" in text or "Bad split" in text:
        return FinetuneError("data.split", f"{path} has no split {split!r}: {text.splitlines()[0]}", "set data.split")
    if _is_offline() or "reach" in text or isinstance(error, ConnectionError):
        message = f"the dataset {path} is not in the cache and the hub cannot be reached"
        return FinetuneError("data.offline", message, "go online once, or give a local file as data.path")
    message = f"no dataset {path} on the hub, and no such file here"
    return FinetuneError("data.not-found", message, f"check the name; the current directory is {Path.cwd()}")


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")
