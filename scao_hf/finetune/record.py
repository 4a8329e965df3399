"""What a run leaves beside its weights: run.json, metrics.jsonl and recipe.resolved.yaml."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from scao_hf._version import __version__
from scao_hf.finetune.checkpoints import STAGING, checkpoint_folders
from scao_hf.finetune.errors import ERROR_LOG, FinetuneError
from scao_hf.finetune.layout import ADAPTER, CARD, METRICS, MODEL, REPORT, RESOLVED, RUN

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes")


def check_directory(directory: Path, overwrite: bool) -> None:
    """Refuse an output directory that is in use or cannot be written, before anything is loaded.

    Raises:
        FinetuneError: config.output-exists, disk.permission.
    """
    if os.path.isfile(directory):
        raise FinetuneError("config.output-exists", f"{directory} is a file", "set training.output_dir")
    if os.path.isdir(directory) and not is_blank(directory):
        if not overwrite:
            message = f"{directory} exists and is not empty"
            goes_on = "--resume goes on with the run in it, " if has_run(directory) else ""
            hint = f"{goes_on}--overwrite replaces it, training.output_dir=NEW leaves it"
            raise FinetuneError("config.output-exists", message, hint)
        if not has_run(directory):
            message = f"{directory} is not the directory of a run (no {RUN}), so it is not overwritten"
            raise FinetuneError("config.output-exists", message, "training.output_dir=NEW")
    check_permission(directory)


def has_run(directory: Path) -> bool:
    """Whether a directory is that of a run."""
    return (directory / RUN).is_file()


def is_blank(directory: Path) -> bool:
    """Whether a directory holds nothing, or only what a run left that was killed when it had just begun."""
    return all(entry.name == _part(directory / RUN).name for entry in directory.iterdir())


def check_permission(directory: Path) -> None:
    """Refuse a directory that cannot be written or made.

    Raises:
        FinetuneError: config.output-exists, disk.permission.
    """
    # os.path, where a folder that may not be looked into is one without entries.
    existing = next(parent for parent in (directory, *directory.absolute().parents) if os.path.exists(parent))
    if not existing.is_dir():
        message = f"{directory} cannot be made a folder: {existing} is a file"
        raise FinetuneError("config.output-exists", message, "set training.output_dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FinetuneError("disk.permission", f"no permission to write {existing}", "set training.output_dir")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The run that a resumed one goes on with."""

    folder: Path
    checkpoint: Path
    step: int
    changes: Mapping[str, Any]
    """By key, the value before and the value now."""

    def metrics(self) -> str:
        """The lines of metrics.jsonl up to the step; what was measured after it, or told after the end, is left out."""
        path = self.folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return "".join(line + "\n" for line in lines if self._holds(line))

    def _holds(self, line: str) -> bool:
        try:
            measured = json.loads(line)
        except ValueError:  # The process was killed while it wrote the line.
            return False
        return measured.get("step", 0) <= self.step and measured.get("moment") != "after"

    def facts(self, now: str) -> dict[str, Any]:
        """When the run began, and each time that it went on."""
        path = self.folder / RUN
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        resumed = {"from": str(self.checkpoint), "step": self.step, "at": now, "changes": dict(self.changes)}
        return {"started": record.get("started", now), "resumed": [*record.get("resumed", []), resumed]}


class RunRecord:
    """The files of one run. `finish` or `fail` is always called, so that run.json says how the run ended.

    Args:
        directory: the run's output directory; created, and emptied of an earlier run's files unless it goes on.
        facts: what is known before the first step; plain values.
        resolved: the text of recipe.resolved.yaml.
        writes: False on every process but the first.
        earlier: the run that this one goes on with, and up to which step; None for a run from the start.
    """

    def __init__(
        self,
        directory: Path,
        facts: Mapping[str, Any],
        resolved: str,
        writes: bool = True,
        earlier: Earlier | None = None,
    ) -> None:
        self.directory = directory
        self.writes = writes
        self.facts: dict[str, Any] = {"status": "running", "exit_code": None, "started": _now(), **facts}
        self.facts |= {"versions": versions(), "hardware": hardware()}
        self.facts["recipe_sha256"] = sha256(resolved.encode()).hexdigest()
        if earlier is not None:
            self.facts |= earlier.facts(self.facts["started"])
        if writes:
            measured = "" if earlier is None else earlier.metrics()
            if earlier is None or earlier.folder.resolve() != directory.resolve():
                _clear(directory)
            (directory / ERROR_LOG).unlink(missing_ok=True)
            directory.mkdir(parents=True, exist_ok=True)
            # First, since it marks the directory as that of a run, which may be resumed or overwritten.
            self._write_facts()
            _write(directory / RESOLVED, resolved)
            _write(directory / METRICS, measured)

    def metrics(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one JSON line; a value that is not finite becomes null, which is JSON."""
        if not self.writes:
            return
        line = json.dumps({"event": event, **{key: _finite(value) for key, value in values.items()}})
        with (self.directory / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take more facts into run.json, with the next writing of it."""
        self.facts |= facts

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write that the run is finished, and its report."""
        self._close("finished", 0, {"report": {key: _finite(value) for key, value in report.items()}})

    def fail(self, error: BaseException) -> None:
        """Write why the run ended early."""
        if isinstance(error, FinetuneError):
            told = error.to_dict()
            status = "interrupted" if told["status"] == "interrupted" else "failed"
            self._close(status, error.exit_code, {"error": told})
        else:
            told = {"code": "internal", "message": f"{type(error).__name__}: {error}"}
            self._close("failed", 1, {"error": told})

    def _close(self, status: str, exit_code: int, more: Mapping[str, Any]) -> None:
        self.facts |= {"status": status, "exit_code": exit_code, "ended": _now(), **more}
        self._write_facts()

    def _write_facts(self) -> None:
        if self.writes:
            _write(self.directory / RUN, json.dumps(self.facts, indent=2, default=str) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it stands on."""
    found = {"python": platform.python_version(), "scao_hf": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What the run runs on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def heavy_folders(directory: Path) -> list[Path]:
    """The folders with weights, checkpoints and figures of a run; empty where there is no run."""
    named = [directory / name for name in (ADAPTER, MODEL, REPORT, STAGING)]
    return [*filter(Path.is_dir, named), *checkpoint_folders(directory)]


def _clear(directory: Path) -> None:
    """Remove the files of an earlier run, and nothing else; its run.json will be replaced."""
    for name in (METRICS, RESOLVED, ERROR_LOG, CARD):
        (directory / name).unlink(missing_ok=True)
    for folder in heavy_folders(directory):
        shutil.rmtree(folder)


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader sees the old or the new one, whole."""
    temporary = _part(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
