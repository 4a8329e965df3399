"""Observers of a run, on standard error: a live display where lines may move, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from scao_hf.finetune.observer import EvalMetrics, Observer, RunInfo, StepMetrics
from scao_hf.finetune.phases import phase_name

from . import figures
from .console import Glyphs, console_for, glyphs_of, may_move
from .invocation import Invocation
from .render import columns, evaluation_sentence, plan_rows

REDRAWS_PER_SECOND = 8
SPARK_CELLS = 16
WIDEST_BAR = 30


def progress_for(invocation: Invocation, *, quiet: bool) -> Progress:
    """The observer that suits standard error."""
    if quiet:
        return Progress(invocation)
    return LiveProgress(invocation) if may_move(sys.stderr) else PlainProgress(invocation)


class Progress(Observer):
    """Shows nothing, but remembers where the run lies; a context manager, because a display has to be closed."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, info: RunInfo) -> None:
        self.invocation.run_directory = info.output_dir


class PlainProgress(Progress):
    """One line an event, for pipes, logs and CI: `step=40/120 loss=1.912 lr=1.8e-04 gn=0.71 tok/s=3120 eta=3m10s`."""

    def __init__(self, invocation: Invocation) -> None:
        super().__init__(invocation)
        self.console = console_for(sys.stderr)
        self.stage_text: str | None = None

    def write(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def stage(self, text: str) -> None:
        if text != self.stage_text:
            self.write(text)
        self.stage_text = text

    def begin(self, info: RunInfo) -> None:
        super().begin(info)
        self.write("\n".join(f"{name}: {told}" for name, told in plan_rows(info, glyphs_of(sys.stderr))))

    def step(self, metrics: StepMetrics) -> None:
        self.write(plain_step(metrics))

    def evaluated(self, metrics: EvalMetrics) -> None:
        self.write(evaluation_sentence(metrics))

    def saved(self, path: Path) -> None:
        self.write(f"saved {path}")

    def notice(self, text: str) -> None:
        self.write(f"note: {text}")


def plain_step(metrics: StepMetrics) -> str:
    words = [
        f"step={metrics.step}/{metrics.total_steps}",
        f"loss={metrics.loss:.4f}",
        f"lr={figures.rate(metrics.learning_rate)}",
    ]
    if metrics.grad_norm is not None:
        words.append(f"gn={metrics.grad_norm:.2f}")
    words += [f"tok/s={metrics.tokens_per_second:.0f}", f"eta={figures.duration(metrics.eta_seconds).replace(' ', '')}"]
    if metrics.memory_bytes is not None:
        words.append(f"mem={figures.byte_size(metrics.memory_bytes).replace(' ', '')}")
    if metrics.scao:
        words += [f"phase={phase_name(metrics.scao.get('phase', 0.0))}", f"blend={metrics.scao.get('blend', 0.0):.2f}"]
        words.append(f"rank={metrics.scao.get('rank_mean', 0.0):.1f}")
    return " ".join(words)


class LiveProgress(Progress):
    """What is done stays as lines; below them one line says what is going on, redrawn in place."""

    def __init__(self, invocation: Invocation) -> None:
        super().__init__(invocation)
        self.console = console_for(sys.stderr)
        self.glyphs = glyphs_of(sys.stderr)
        self.stage_text: str | None = None
        self.stage_start = 0.0
        self.latest: StepMetrics | None = None
        self.latest_at = 0.0
        self.losses: list[float] = []
        self.live = Live(
            get_renderable=self.picture, console=self.console, refresh_per_second=REDRAWS_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was going on when an error came is part of what went wrong, and is not called done.
        mark = self.glyphs.done if kind is None else self.glyphs.dash
        self.close_stage(mark)
        self.close_training(mark)
        self.live.stop()
        if kind is None:
            self.console.print()

    def stage(self, text: str) -> None:
        if text == self.stage_text:
            return
        self.close_stage(self.glyphs.done)
        self.stage_text, self.stage_start = text, time.monotonic()

    def begin(self, info: RunInfo) -> None:
        super().begin(info)
        self.close_stage(self.glyphs.done)
        self.keep(Text(columns(plan_rows(info, self.glyphs), self.console.width)))

    def step(self, metrics: StepMetrics) -> None:
        self.stage_text = None
        self.latest, self.latest_at = metrics, time.monotonic()
        self.losses.append(metrics.loss)
        self.live.refresh()

    def evaluated(self, metrics: EvalMetrics) -> None:
        self.stage_text = None
        if metrics.moment == "after":
            self.close_training(self.glyphs.done)
        self.keep(Text(f"{self.glyphs.done} {evaluation_sentence(metrics)}"))

    def saved(self, path: Path) -> None:
        self.stage_text = None
        self.keep(Text(f"{self.glyphs.done} saved {path}", "dim"))

    def notice(self, text: str) -> None:
        self.keep(Text(f"note: {text}", "yellow"))

    def keep(self, text: Text) -> None:
        """Print a line above the moving ones; it stays."""
        # Printing redraws the moving lines as they were drawn last, so they are brought up to date first.
        self.live.refresh()
        self.console.print(text)

    def close_stage(self, mark: str) -> None:
        text, self.stage_text = self.stage_text, None
        if text is not None:
            self.keep(Text(f"{mark} {text}{passed(self.stage_start)}", "dim"))

    def close_training(self, mark: str) -> None:
        """Leave one line of the whole training behind."""
        last, self.latest = self.latest, None
        if last is None:
            return
        curve = figures.sparkline(self.losses, SPARK_CELLS, self.glyphs.ramp)
        took = figures.duration(last.elapsed_seconds)
        steps = f"{last.step}/{last.total_steps} steps in {took}"
        losses = f"training loss {self.losses[0]:.3f} {curve} {self.losses[-1]:.3f}"
        self.keep(Text(f"{mark} {steps}, {losses}"))

    def picture(self) -> Text:
        """The moving line or lines, as wide as the terminal at most."""
        lines = []
        if self.latest is not None:
            since = time.monotonic() - self.latest_at
            lines += step_lines(self.latest, since, self.losses, self.console.width, self.glyphs)
        if self.stage_text is not None:
            lines.append(self.stage_line(self.stage_text))
        return Text("\n", no_wrap=True, overflow="crop").join(lines)

    def stage_line(self, text: str) -> Text:
        seconds = time.monotonic() - self.stage_start
        turn = self.glyphs.spinner[int(seconds * REDRAWS_PER_SECOND) % len(self.glyphs.spinner)]
        return Text(f"{turn} {text} {self.glyphs.ellipsis}{passed(self.stage_start)}")


def passed(start: float) -> str:
    """How long something has been going on, once that is worth saying."""
    seconds = time.monotonic() - start
    return f"  {figures.duration(seconds)}" if seconds >= 1 else ""


def step_lines(metrics: StepMetrics, since: float, losses: list[float], width: int, glyphs: Glyphs) -> list[Text]:
    """The bar and its figures, the least important left out where the terminal is narrow; SCAO on a second line."""
    counted = f"{metrics.step}/{metrics.total_steps}"
    cells = SPARK_CELLS if width >= 100 else SPARK_CELLS // 2
    # Padded, as is the time left: a bar whose length follows its neighbours' would jump.
    curve = figures.sparkline(losses, cells, glyphs.ramp).ljust(cells)
    words = fitting(
        [
            f"loss {metrics.loss:.3f} {curve}",
            f"eta {figures.duration(max(0.0, metrics.eta_seconds - since)):<6}",
            f"lr {figures.rate(metrics.learning_rate)}",
            f"{figures.count(metrics.tokens_per_second)} tok/s",
            *([] if metrics.memory_bytes is None else [figures.byte_size(metrics.memory_bytes)]),
            *([] if metrics.grad_norm is None else [f"gn {metrics.grad_norm:.2f}"]),
        ],
        width - len(counted) - 14,
    )
    room = min(WIDEST_BAR, width - len(counted) - 2 - sum(len(word) + 2 for word in words))
    drawn = figures.bar(metrics.step / metrics.total_steps, max(0, room), glyphs.full, glyphs.empty)
    done = drawn.count(glyphs.full)
    first = Text.assemble(f" {counted} ", (drawn[:done], "green"), (drawn[done:], "dim"), "  ", "  ".join(words))
    return [first, *([Text(scao_words(metrics, width), "dim")] if metrics.scao else [])]


def fitting(words: list[str], width: int) -> list[str]:
    """The first words that fit into `width` with two blanks between them; the first one always."""
    kept: list[str] = []
    for word in words:
        if kept and sum(len(one) + 2 for one in kept) + len(word) > width:
            break
        kept.append(word)
    return kept


def scao_words(metrics: StepMetrics, width: int) -> str:
    scao = metrics.scao
    words = [f"scao: {phase_name(scao.get('phase', 0.0))}"]
    if 0 < scao.get("blend", 0.0) < 1:
        words[0] += f" ({scao['blend']:.0%})"
    # Before the first refresh there is no basis whose rank or mass could be told.
    if scao.get("rank_mean", 0.0) > 0:
        words.append(f"rank {scao['rank_mean']:.1f}")
        words += [f"mass kept {scao['mass_kept']:.0%}"] if "mass_kept" in scao else []
    words += [f"state {figures.byte_size(scao['state_bytes'])}"] if "state_bytes" in scao else []
    indent = " " * (len(f"{metrics.step}/{metrics.total_steps}") + 2)
    return indent + "  ".join(fitting(words, width - len(indent)))
