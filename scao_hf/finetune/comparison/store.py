"""Runs kept by the digest of their configuration, one JSON line each, so that an interrupted study continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scao_hf.finetune.comparison.runs import Run, digest


class RunStore:
    """A file of runs. One process writes it; every line is complete before the next begins.

    Args:
        path: JSON lines {"key", "config", "run"}; made with its folder at the first `add`. A last line cut short by a
            crash is dropped, and the run is made again.

    Raises:
        ValueError: a line, not the last, that is no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read(path.read_bytes())

    def _read(self, content: bytes) -> None:
        complete, _, torn = content.rpartition(b"\n")
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                self._lines[record["key"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}, is no recorded run; delete the line") from error
        if torn:
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def get(self, config: Mapping[str, Any]) -> Run | None:
        record = self._lines.get(digest(config))
        return None if record is None else Run.from_dict(record["run"])

    def add(self, config: Mapping[str, Any], run: Run) -> None:
        key = digest(config)
        record = {"key": key, "config": dict(config), "run": run.to_dict()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[key] = record

    def __len__(self) -> int:
        return len(self._lines)

    def records(self) -> Iterator[tuple[dict[str, Any], Run]]:
        """(configuration, run) of every line, in the order in which they were first made."""
        for record in self._lines.values():
            yield record["config"], Run.from_dict(record["run"])
