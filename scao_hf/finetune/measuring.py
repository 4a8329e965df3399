"""What a recipe takes and reaches, measured by running it and written into its own file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scao_hf._version import __version__
from scao_hf.finetune import yaml_core
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.devices import peak_bytes
from scao_hf.finetune.model import device_of
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.outcome import FinetuneReport
from scao_hf.finetune.recipes import load_recipe, recipe_text, write_text
from scao_hf.finetune.record import hardware
from scao_hf.finetune.run import finetune

KEY = "measured"
SAME = ("device", "settings")
"""Two measurements that agree in these are of the same thing, and the newer one counts."""


def measure(file: Path, overrides: Sequence[str] = (), observer: Observer | None = None) -> dict[str, Any]:
    """Run the recipe in `file` in a folder that is removed, and write its measurement there.

    Args:
        file: a recipe; its comments and layout stay as they are.
        overrides: settings of the run, which the measurement names.
        observer: told of the run.

    Returns:
        The measurement as it was written.

    Raises:
        FinetuneError: as `finetune`; disk.write.
    """
    with tempfile.TemporaryDirectory(prefix="scao-finetune-") as folder:
        recipe = load_recipe(str(file), [*overrides, *_aside(folder)])
        report = finetune(recipe, observer)
    entry = measurement(recipe, report, overrides)
    write_text(file, with_measurement(recipe_text(str(file)), str(file), entry))
    return entry


def _aside(folder: str) -> list[str]:
    return [f"training.output_dir={json.dumps(str(Path(folder, 'run')))}", "training.report_to=none"]


def measurement(recipe: Recipe, report: FinetuneReport, overrides: Sequence[str]) -> dict[str, Any]:
    """A run in a few figures, rounded to what another run would confirm."""
    device = device_of(bool(recipe.training.get("use_cpu")))
    entry: dict[str, Any] = {"device": _device_name(device)}
    if overrides:
        entry["settings"] = " ".join(overrides)
    entry |= {
        "steps": report.steps,
        "seconds": round(report.train_seconds, 1),
        "tokens_per_second": round(report.tokens / max(report.train_seconds, 1e-9)),
        "peak_gib": round(peak_bytes(device) / 2**30, 2),
        "optimizer_mib": round(report.optimizer_state_bytes / 2**20, 2),
    }
    if report.initial_eval_loss is not None and report.final_eval_loss is not None:
        entry |= {"eval_loss_before": round(report.initial_eval_loss, 3), "eval_loss": round(report.final_eval_loss, 3)}
    versions = {"scao_hf": __version__, "torch": str(torch.__version__)}
    return entry | versions | {"date": datetime.now(UTC).date().isoformat()}


def with_measurement(text: str, source: str, entry: Mapping[str, Any]) -> str:
    """The recipe's text with the entry in its list `measured`, a line each; nothing else is touched."""
    document = yaml_core.read_document(text, source)
    held = [one for one in document.data.get(KEY) or [] if not _same(one, entry)]
    lines = text.splitlines(keepends=True)
    block = f"{KEY}:\n" + "".join(f"  - {_line(one)}\n" for one in [*held, entry])
    place = document.keys.get((KEY,))
    if place is None:
        first = min(
            (one.line for key, one in document.keys.items() if key[0] not in ("schema", "description")), default=1
        )
        return "".join([*lines[: first - 1], block, "\n", *lines[first - 1 :]])
    start = place.line - 1
    end = start + 1
    while end < len(lines) and lines[end][:1] in (" ", "-", "]"):
        end += 1
    return "".join([*lines[:start], block, *lines[end:]])


def _same(one: Any, other: Mapping[str, Any]) -> bool:
    return isinstance(one, Mapping) and all(one.get(key) == other.get(key) for key in SAME)


def _line(entry: Mapping[str, Any]) -> str:
    return yaml_core.write_line(dict(entry))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    found = hardware()
    return f"CPU, {found['threads']} of {found['cpus']} cores"
