"""Runs kept by the digest of their configuration, one JSON line each, so that an interrupted study continues."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scao_hf.finetune.comparison.runs import Run, digest, plain


class RunStore:
    """A file of runs. One process writes it; every line is complete before the next begins, and others may read it.

    Args:
        path: JSON lines {"key", "config", "run"}; made with its folder at the first `add`. A last line cut short by a
            crash counts for nothing: the run is made again, and takes its place.

    Raises:
        ValueError: a complete line that is no run, or whose key is not that of its configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, tuple[dict[str, Any], Run]] = {}
        self._torn_at: int | None = None
        if path.exists():
            self._read(path.read_bytes())

    def _read(self, content: bytes) -> None:
        complete, newline, torn = content.rpartition(b"\n")
        for number, line in enumerate(complete.split(b"\n") if newline else [], 1):
            try:
                record = json.loads(line)
                config, run = record["config"], Run.from_dict(record["run"])
                if record["key"] != digest(config):
                    raise ValueError("the key is not that of the configuration")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}, is no recorded run; delete the line") from error
            self._records[record["key"]] = config, run
        if torn:
            self._torn_at = len(complete) + len(newline)

    def get(self, config: Mapping[str, Any]) -> Run | None:
        """The run of a configuration, whatever the order of its keys; None if it was not made yet."""
        record = self._records.get(digest(config))
        return None if record is None else record[1]

    def add(self, config: Mapping[str, Any], run: Run) -> None:
        """Write a run down, and keep it as it would be read again."""
        record = _record(config, run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if self._torn_at is not None:
                file.truncate(self._torn_at)
                self._torn_at = None
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self._keep(record)

    def _keep(self, record: dict[str, Any]) -> None:
        self._records[record["key"]] = record["config"], Run.from_dict(record["run"])

    def reconfigure(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        """Put every run under what `change` makes of its configuration; the file is replaced at once or not at all.

        Returns:
            How many configurations changed.

        Raises:
            ValueError: two runs would have the same configuration.
        """
        before = list(self._records)
        records = [_record(change(config), run) for config, run in self.records()]
        after = [record["key"] for record in records]
        if len(set(after)) != len(after):
            raise ValueError(f"{self.path}: two runs would have the same configuration")
        beside = self.path.with_suffix(".new")
        beside.write_bytes(b"".join(map(_line, records)))
        beside.replace(self.path)
        self._records, self._torn_at = {}, None
        for record in records:
            self._keep(record)
        return sum(old != new for old, new in zip(before, after, strict=True))

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> Iterator[tuple[dict[str, Any], Run]]:
        """(configuration, run) of every line, in the order in which they were first made."""
        yield from self._records.values()


def _record(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    return {"key": digest(config), "config": plain(config), "run": run.to_dict()}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
