"""The folder of a run, read back: run.json, the resolved recipe and where the weights lie. Needs no library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.layout import ADAPTER, MODEL, RESOLVED, RUN
from scao_hf.finetune.schema import closest

RUNS = "runs"
"""Where recipes put their runs; a run may be named by its folder in it alone."""
LIST = "scao-finetune runs list"
_DEEPEST = 3
"""Folders below the one that is searched for runs."""


@dataclass(frozen=True)
class RunFolder:
    """A run as it stands on disk."""

    path: Path
    facts: Mapping[str, Any]
    """run.json."""

    @property
    def name(self) -> str:
        """The path as one would type it, without `runs/`."""
        parts = self.path.parts
        return str(Path(*parts[1:])) if len(parts) > 1 and parts[0] == RUNS else str(self.path)

    @property
    def status(self) -> str:
        """ "running", "finished", "failed" or "interrupted"."""
        return str(self.facts.get("status", "unknown"))

    @property
    def info(self) -> Mapping[str, Any]:
        """What was settled before the first step, as `RunInfo` names it."""
        return self.facts.get("run") or {}

    @property
    def report(self) -> Mapping[str, Any]:
        """What the run came to, as `FinetuneReport` names it; empty unless it is finished."""
        return self.facts.get("report") or {}

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter was trained, by the folder that it lies in."""
        return (self.path / ADAPTER).is_dir()

    @property
    def is_chat(self) -> bool:
        """Whether it was trained on conversations."""
        return bool((self.facts.get("data") or {}).get("conversational"))

    @property
    def weights(self) -> Path:
        """The folder of the trained adapter or model.

        Raises:
            FinetuneError: model.no-weights for a run that saved none.
        """
        found = next((self.path / name for name in (ADAPTER, MODEL) if (self.path / name).is_dir()), None)
        if found is None:
            message = f"the run in {self.path} saved neither an adapter nor a model: it is {self.status}"
            raise FinetuneError("model.no-weights", message, f"{LIST} shows the runs that are finished")
        return found

    def require_finished(self) -> None:
        """Refuse a run without results.

        Raises:
            FinetuneError: model.no-weights.
        """
        if not self.report:
            message = f"the run in {self.path} is {self.status}, so there are no results to state on a card"
            raise FinetuneError("model.no-weights", message, f"choose a run that is finished: {LIST}")

    @property
    def resolved(self) -> Path:
        """The recipe as it was run.

        Raises:
            FinetuneError: config.missing-file.
        """
        path = self.path / RESOLVED
        if not path.is_file():
            message = f"{self.path} has no {RESOLVED}, which says what was trained on what"
            raise FinetuneError("config.missing-file", message, f"copy it back, or choose another run: {LIST}")
        return path


def open_run(name: str | Path) -> RunFolder:
    """The run in a folder, or in `runs/` under that name.

    Raises:
        FinetuneError: config.not-a-run, with the run that may have been meant; config.run-record for a broken run.json.
    """
    candidates = [Path(name).expanduser(), Path(RUNS, name)]
    path = next((folder for folder in candidates if (folder / RUN).is_file()), None)
    if path is None:
        raise _not_a_run(name)
    return RunFolder(path, _facts(path))


def find_runs(folder: Path) -> list[RunFolder]:
    """All runs in a folder and a few folders below it, the latest first.

    Raises:
        FinetuneError: config.run-record for a run.json that is not JSON.
    """
    patterns = ("/".join(["*"] * depth + [RUN]) for depth in range(_DEEPEST + 1))
    found = {record.parent for pattern in patterns for record in folder.glob(pattern)}
    runs = [RunFolder(path, _facts(path)) for path in sorted(found)]
    return sorted(runs, key=lambda run: str(run.facts.get("started", "")), reverse=True)


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads((path / RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FinetuneError("config.run-record", f"{path / RUN} is not JSON: {error}", "remove the folder") from error
    if not isinstance(facts, dict):
        raise FinetuneError("config.run-record", f"{path / RUN} holds no record of a run", "remove the folder")
    return facts


def is_run(name: str | Path) -> bool:
    """Whether `open_run` would find a run of this name."""
    return any((folder / RUN).is_file() for folder in (Path(name).expanduser(), Path(RUNS, name)))


def _not_a_run(name: str | Path) -> FinetuneError:
    path = Path(name).expanduser()
    what = f"{name} is not the folder of a run (no {RUN})" if path.exists() else f"no run is called {name}"
    known = sorted(run.parent.name for run in Path(RUNS).glob(f"*/{RUN}"))
    near = closest(path.name, known)
    if near is not None and near != path.name:
        hint = f"did you mean {Path(RUNS, near)}?"
    elif known:
        hint = f"in {RUNS}/: {', '.join(known[:8])}"
    else:
        hint = f"give the folder that `train` wrote to; {LIST} FOLDER looks for runs"
    return FinetuneError("config.not-a-run", what, hint)
