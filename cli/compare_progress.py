"""Progress of `compare`, on standard error: one line for every finished run, and where lines may move what goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from scao_hf.finetune.comparison.contest import Spectator
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.study import Plan
from scao_hf.finetune.comparison.tuning import RATE
from scao_hf.finetune.observer import StepMetrics

from . import figures
from .console import console_for, glyphs_of, may_move
from .invocation import Invocation
from .progress import REDRAWS_PER_SECOND, WIDEST_BAR, fitting


class CompareProgress(Spectator):
    """A context manager, because a live line has to be closed."""

    def __init__(self, invocation: Invocation, *, quiet: bool) -> None:
        self.invocation = invocation
        self.quiet = quiet
        self.console = console_for(sys.stderr)
        self.glyphs = glyphs_of(sys.stderr)
        self.told: set[str] = set()
        self.widest_name = 0
        self.run_words: list[str] = []
        self.stage_text = ""
        self.latest: StepMetrics | None = None
        self.live: Live | None = None
        if may_move(sys.stderr) and not quiet:
            self.live = Live(
                get_renderable=self.picture, console=self.console, refresh_per_second=REDRAWS_PER_SECOND, transient=True
            )

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
            if kind is None:
                self.console.print()

    def write(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, soft_wrap=True)

    def notice(self, text: str) -> None:
        # Every run reads the same recipe and the same data.
        if text not in self.told:
            self.told.add(text)
            self.write(f"note: {text}")

    def planned(self, plan: Plan, output_dir: Path) -> None:
        self.invocation.run_directory = output_dir
        self.widest_name = max(map(len, plan.spaces))
        seeds = ", ".join(map(str, plan.seeds))
        names = ", ".join(plan.spaces)
        self.write(
            f"{names}: {plan.trials} learning rates each with seed {plan.tuning_seed}, then the best with {seeds}"
        )
        self.write(f"runs are kept in {output_dir}; Ctrl-C and the same command go on from there")

    def stage(self, text: str) -> None:
        self.stage_text, self.latest = text, None

    def step(self, metrics: StepMetrics) -> None:
        self.latest = metrics

    def run_begins(self, optimizer: str, setting: Setting, seed: int, done: int, total: int) -> None:
        if not self.run_words and done:
            self.write(f"{done} of {total} runs are there already")
        self.run_words = [f"{done + 1}/{total}", optimizer, f"lr {setting[RATE]:g}", f"seed {seed}"]

    def run_ended(self, run: Run, done: int, total: int) -> None:
        diverged = run.measures["diverged_at"]
        result = f"loss {run.loss:.4f}" if diverged is None else f"diverged in step {diverged}"
        counted = f"{done:>{len(str(total))}}/{total}"
        name = f"{run.arm:<{self.widest_name}}"
        self.write(f"{counted}  {name}  lr {run.setting[RATE]:<9g} seed {run.seed}  {result}")
        self.stage_text, self.latest = "", None

    def picture(self) -> Text:
        """The run in hand in one line: which it is, and how far."""
        width, glyphs = self.console.width - 1, self.glyphs
        metrics = self.latest
        if metrics is None:
            return Text("  ".join(fitting([*self.run_words, f"{self.stage_text}{glyphs.ellipsis}"], width)))
        far = [f"{metrics.step}/{metrics.total_steps}", f"loss {metrics.loss:.3f}"]
        words = fitting([*self.run_words, *far, f"eta {figures.duration(metrics.eta_seconds)}"], width)
        room = min(WIDEST_BAR, width - sum(len(word) + 2 for word in words))
        drawn = figures.bar(metrics.step / metrics.total_steps, max(0, room), glyphs.full, glyphs.empty)
        return Text("  ".join([*words, drawn]))
