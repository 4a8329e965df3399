"""The learning rate by a sweep: a short run whose rate grows with every step, on weights that nobody keeps."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune import settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.observer import Observer, RunInfo, Silence
from scao_hf.finetune.record import check_permission, versions
from scao_hf.finetune.results.history import Points, smoothed
from scao_hf.finetune.surroundings import passing

RECORD = "lr_find.json"
FIGURE = "lr_find"
SPAN = 0.1
"""Of the steps, those that the smoothed loss averages over."""
GIVE_UP = 1.5
"""The sweep ends where the smoothed loss is so many times the lowest one, which no rate beyond could repair."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The rates that are tried, each for one step, in equal ratios."""

    low: float
    high: float
    steps: int

    def rate(self, step: int) -> float:
        """Of a step, counted from 1."""
        return self.low * (self.high / self.low) ** ((step - 1) / (self.steps - 1))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a sweep came to."""

    info: RunInfo
    sweep: Sweep
    losses: Points
    """(learning rate, training loss of the step that used it), finite ones."""
    smooth: Points
    """The same, averaged."""
    lowest: float
    """The rate at which the smoothed loss is lowest."""
    suggestion: float | None
    """Where the smoothed loss falls fastest on its way to the lowest; None if it falls nowhere."""
    ended_at: int
    """The last step: fewer than asked for where the loss left."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "recipe": self.info.recipe,
            "model": self.info.model,
            "data": self.info.dataset,
            "optimizer": self.info.optimizer,
            "low": self.sweep.low,
            "high": self.sweep.high,
            "steps": self.sweep.steps,
            "ended_at": self.ended_at,
            "suggestion": self.suggestion,
            "lowest": self.lowest,
            "rates": [rate for rate, _ in self.losses],
            "losses": [loss for _, loss in self.losses],
            "smoothed": [loss for _, loss in self.smooth],
            "versions": versions(),
        }


def find_rate(recipe: Recipe, sweep: Sweep, observer: Observer | None = None) -> Found:
    """Run the sweep; nothing of it is kept.

    Args:
        recipe: from `load_recipe`; its learning rate and its schedule are not used, and its number of steps only to
            tell SCAO how long the run will be that the rate is for.
        sweep: the rates.
        observer: told of every stage and step.

    Raises:
        FinetuneError: as `finetune`; diverged.loss if the loss was not finite before anything could be learned from it.
        Interrupted: Ctrl-C or SIGTERM.
    """
    settings.require_complete(recipe)
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    with passing() as folder:
        from scao_hf.finetune.sweep_run import SweepRun

        info, losses = SweepRun(recipe, sweep, observer, folder).losses()
    return concluded(info, sweep, losses)


def concluded(info: RunInfo, sweep: Sweep, losses: Points) -> Found:
    """What may be read off the losses of a sweep.

    Raises:
        FinetuneError: diverged.loss for fewer losses than the smoothing spans.
    """
    span = max(3, round(SPAN * sweep.steps))
    if len(losses) < span:
        message = f"the loss left after {len(losses)} steps, at a learning rate of {sweep.rate(len(losses) + 1):.2g}"
        raise FinetuneError("diverged.loss", message, f"begin lower: --low {sweep.low / 100:g}")
    smooth = smoothed(losses, span)
    # Before that, the average is one of very few losses.
    settled = smooth[span - 1 :]
    bottom = min(range(len(settled)), key=lambda place: settled[place][1])
    slopes = [settled[place + 1][1] - settled[place][1] for place in range(bottom)]
    steepest = min(range(len(slopes)), key=slopes.__getitem__, default=None)
    return Found(
        info=info,
        sweep=sweep,
        losses=losses,
        smooth=smooth,
        lowest=settled[bottom][0],
        suggestion=None if steepest is None else settled[steepest][0],
        ended_at=len(losses),
    )


def write(found: Found, folder: Path) -> list[Path]:
    """Write lr_find.json and the figure as SVG and PNG, in the place of an earlier sweep's; returns the files."""
    from scao_hf.finetune.reporting.drawing import save
    from scao_hf.finetune.results.figures import rate_sweep

    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    record.write_text(json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    figure = rate_sweep(found.losses, found.smooth, found.suggestion, found.lowest)
    return [record, *save(figure, folder / FIGURE)]


def check_folder(folder: Path) -> None:
    """Refuse a folder with anything but an earlier sweep in it, before the sweep.

    Raises:
        FinetuneError: config.output-exists, disk.permission.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECORD).is_file())):
        message = f"{folder} exists, and is not the folder of a sweep (no {RECORD})"
        raise FinetuneError("config.output-exists", message, "give another: --output-dir NEW")
    check_permission(folder)


def left(losses: Points, steps: int) -> bool:
    """Whether the smoothed loss has risen so far above its lowest that the sweep may end."""
    span = max(3, round(SPAN * steps))
    if len(losses) <= span:
        return False
    smooth = [loss for _, loss in smoothed(losses, span)]
    return not math.isfinite(smooth[-1]) or smooth[-1] > GIVE_UP * min(smooth[span - 1 :])
