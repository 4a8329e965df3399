"""Rows from files and from the hub, each with the place it came from, so that an error can name it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from scao_hf.finetune import embedded
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.file_readers import SUFFIXES, Row, read_file, suffix_of
from scao_hf.finetune.schema import closest

EMBEDDED = "embedded:"


@dataclass(frozen=True)
class Source:
    """Where rows come from; each call of `rows` reads them from the start."""

    rows: Callable[[], Iterator[Row]]
    name: str
    """The source as the user gave it."""
    fingerprint: str
    """sha256 of the files' bytes (streamed: of their sizes and times), or the hub dataset's own fingerprint."""


@dataclass(frozen=True)
class Table:
    """Rows of one source, held in memory."""

    rows: list[Row]
    name: str
    fingerprint: str

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(itertools.chain.from_iterable(row.values for row in self.rows)))


def read_table(path: str, name: str | None, split: str, max_rows: int | None) -> Table:
    """Read a file, a directory of files, the embedded dataset or a dataset of the hub.

    Args:
        path: as in `data.path`.
        name: configuration of a hub dataset.
        split: split of a hub dataset or of a directory.
        max_rows: rows to read at most; None for all.

    Raises:
        FinetuneError: kind "data": missing-file, malformed, empty, split, not-found, offline, ...
    """
    return first_rows(open_source(path, name, split), max_rows)


def first_rows(source: Source, max_rows: int | None) -> Table:
    """The first rows of a source, or all of them.

    Raises:
        FinetuneError: data.empty, and what reading raises.
    """
    table = Table(list(itertools.islice(source.rows(), max_rows)), source.name, source.fingerprint)
    if not table.rows:
        raise FinetuneError("data.empty", f"{source.name} has no rows", "give data with at least one row")
    return table


def open_source(path: str, name: str | None, split: str, *, streaming: bool = False) -> Source:
    """Find a source without reading its rows, as far as its kind allows; see `read_table`.

    Args:
        streaming: read rows of the hub as they are asked for, and take a fingerprint without reading the files.
    """
    local = local_path(path)
    if local is None:
        return _hub_source(path, name, split, streaming)
    with _readable(local):
        return _local_source(local, path, split, streaming)


def _local_source(local: Path, path: str, split: str, streaming: bool) -> Source:
    if local.is_dir() and is_saved_dataset(local):
        return _saved_source(local, path, split)
    files = local_files(local, split)
    fingerprint = (_cheap_fingerprint if streaming else _fingerprint)(files)
    return Source(lambda: itertools.chain.from_iterable(map(read_file, files)), path, fingerprint)


def local_path(path: str) -> Path | None:
    """Where a local source lies; None for the id of a hub dataset.

    Raises:
        FinetuneError: data.missing-file if it looks like a path and nothing is there; data.unreadable.
    """
    if path.startswith(EMBEDDED):
        return _embedded_dataset(path.removeprefix(EMBEDDED))
    given = Path(os.path.expandvars(path)).expanduser()
    with _readable(given):
        if given.exists():
            return given
    if looks_like_path(path) or suffix_of(given) in SUFFIXES:
        raise _missing(given)
    return None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within it, a lack of permission is one to read the data at `path`."""
    try:
        yield
    except PermissionError as error:
        message = f"no permission to read {error.filename or path}"
        raise FinetuneError("data.unreadable", message, "change its mode") from error


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
    near = nearest_file(path)
    if near is not None:
        hint = f"did you mean {near}?"
    elif folder.is_dir():
        hint = f"the current directory is {Path.cwd()}"
    else:
        hint = f"there is no directory {folder} either; the current one is {Path.cwd()}"
    return FinetuneError("data.missing-file", f"no such file: {path}", hint)


def nearest_file(path: Path) -> Path | None:
    """The file that a wrong path may have meant: one of nearly its name beside it, else of its name one folder away."""
    folder = path.parent if path.parent.is_dir() else Path()
    near = closest(path.name, _names_in(folder))
    if near is not None:
        return folder / near
    inside = (entry / path.name for name in _names_in(folder) if (entry := folder / name).is_dir())
    return next((found for found in (*inside, folder.absolute().parent / path.name) if found.is_file()), None)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a directory."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def local_files(path: Path, split: str) -> list[Path]:
    """The file, or the files of a directory that belong to a split, in order.

    Names and folders such as `train.jsonl`, `test-00000.parquet` or `test/` make splits, as on the hub; a directory
    without any such name is one split, `train`.

    Raises:
        FinetuneError: data.unknown-kind, data.missing-file, data.split.
    """
    if path.is_file():
        if suffix_of(path) not in SUFFIXES:
            message = f"{path} is not of a kind that can be read"
            raise FinetuneError("data.unknown-kind", message, f"give one of {', '.join(SUFFIXES)}")
        return [path]
    splits = splits_of(path)
    if not splits:
        message = f"the directory {path} holds none of {', '.join(SUFFIXES)}"
        raise FinetuneError("data.missing-file", message, "give a file, or a directory of such files")
    if split not in splits:
        message = f"the directory {path} has no split {split!r}; its files make {', '.join(splits)}"
        raise FinetuneError("data.split", message, "set data.split or data.eval_split to one of these")
    return splits[split]


def splits_of(folder: Path) -> dict[str, list[Path]]:
    """The files of a directory by split, by the patterns of `datasets`."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        return {}
    splits = {}
    for split, globs in patterns.items():
        found = {Path(file) for glob in globs for file in _resolved(resolve_pattern, glob, folder)}
        splits[str(split)] = sorted(folder / file.relative_to(folder.absolute()) for file in found)
    return {split: files for split, files in splits.items() if files}


def _resolved(resolve_pattern: Callable[..., list[str]], glob: str, folder: Path) -> list[Path]:
    try:
        files = map(Path, resolve_pattern(glob, str(folder.absolute())))
    except FileNotFoundError:  # One of several patterns of a split may find nothing.
        return []
    return [file for file in files if suffix_of(file) in SUFFIXES]


def _saved_source(folder: Path, path: str, split: str) -> Source:
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            message = f"{path} has no split {split!r}; it holds {', '.join(saved)}"
            raise FinetuneError("data.split", message, "set data.split or data.eval_split to one of these")
        saved = saved[split]
    return _dataset_source(saved, path)


def _dataset_source(dataset: Any, path: str) -> Source:
    def rows() -> Iterator[Row]:
        return (Row(dict(values), f"{path} row {number}") for number, values in enumerate(dataset, 1))

    return Source(rows, path, f"datasets:{dataset._fingerprint}")


def _fingerprint(files: Sequence[Path]) -> str:
    digest = sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _cheap_fingerprint(files: Sequence[Path]) -> str:
    listed = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"files:{sha256(repr(listed).encode()).hexdigest()}"


def _hub_source(path: str, name: str | None, split: str, streaming: bool) -> Source:
    import datasets

    try:
        dataset = datasets.load_dataset(path, name, split=split, **({"streaming": True} if streaming else {}))
    except (OSError, ValueError) as error:
        raise _hub_error(path, name, split, error) from error
    if isinstance(dataset, datasets.Dataset):
        return _dataset_source(dataset, path)
    if not isinstance(dataset, datasets.IterableDataset):
        raise FinetuneError("data.not-found", f"{path} has no plain split {split!r}", "set data.split")

    def rows() -> Iterator[Row]:
        return (Row(dict(values), f"{path} row {number}") for number, values in enumerate(dataset, 1))

    version = sha256(repr((path, name, split, dataset.info.version, dataset.info.features)).encode()).hexdigest()
    return Source(rows, path, f"stream:{version}")


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
    near = nearest_file(Path(path))
    message = f"no dataset {path} on the hub, and no such file here"
    hint = f"did you mean {near}?" if near else f"check the name; the current directory is {Path.cwd()}"
    return FinetuneError("data.not-found", message, hint)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
