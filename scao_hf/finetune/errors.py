"""What may go wrong in a run, each with a stable code, one sentence, what to do about it, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXIT_CODES = {
    "config": 2,
    "resume": 2,
    "data": 3,
    "model": 4,
    "memory": 5,
    "diverged": 6,
    "disk": 7,
    "assert": 8,
}
"""Exit code by the part of an error's code before its dot; every other error exits with 1."""

ERROR_LOG = "error.log"
"""File in a run's folder for the traceback of an error that nobody foresaw."""

SIGNAL_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


@dataclass(frozen=True)
class Location:
    """A place in a text file, or an override on the command line (`file="command line"`, `line` = its number)."""

    file: str
    line: int
    column: int = 1
    text: str | None = None
    """The line itself, for an excerpt."""
    length: int = 1
    """Characters to mark from `column` on."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def excerpt(self) -> str | None:
        """The line with a mark under the place, as compilers print it; None if the line is not known."""
        if self.text is None:
            return None
        number = str(self.line)
        gutter = " " * len(number)
        mark = " " * (self.column - 1) + "^" + "~" * (self.length - 1)
        return f"{gutter} |\n{number} | {self.text}\n{gutter} | {mark}"


class FinetuneError(Exception):
    """A run that cannot go on, for a reason that its user can answer.

    Args:
        code: stable name, "kind.detail", such as "data.missing-column"; the kind decides the exit code.
        message: one sentence that says what was found and where.
        hint: what would do; where possible, the exact text to type.
        location: the place in a file that is at fault.
    """

    def __init__(self, code: str, message: str, hint: str | None = None, location: Location | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.location = location

    @property
    def exit_code(self) -> int:
        """Exit status of a process that ends with this error (`EXIT_CODES`)."""
        return EXIT_CODES.get(self.code.partition(".")[0], 1)

    @property
    def problems(self) -> tuple[FinetuneError, ...]:
        """The single errors that this one reports together; itself, unless it is a `SeveralErrors`."""
        return (self,)

    def to_dict(self) -> dict[str, Any]:
        """The error as plain values, for `--json` and `run.json`."""
        return {
            "status": "error",
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
            "location": None if self.location is None else str(self.location),
        }

    def __str__(self) -> str:
        place = "" if self.location is None else f"{self.location}: "
        return f"{place}{self.message}" + ("" if self.hint is None else f" ({self.hint})")


class SeveralErrors(FinetuneError):
    """All that is wrong with one recipe, reported together; `problems` holds the single errors."""

    def __init__(self, message: str, problems: Sequence[FinetuneError]) -> None:
        super().__init__("config.several", message)
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[FinetuneError, ...]:
        return self._problems

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"problems": [problem.to_dict() for problem in self.problems]}

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"- {problem}" for problem in self.problems)])


class Interrupted(FinetuneError):
    """The run was asked to stop, and did so after a whole step; asked twice, at once.

    Args:
        signal_name: "SIGINT" (exit code 130) or "SIGTERM" (143).
        step: whole steps made.
        checkpoint: saved on the way out, or the last one of a run that was stopped at once; None if there is none.
        at_once: whether the step in hand was given up.
        weights: what was saved of a run whose steps were all made.
    """

    def __init__(
        self,
        signal_name: str,
        step: int,
        checkpoint: Path | None,
        at_once: bool = False,
        weights: Path | None = None,
    ) -> None:
        if weights is not None:
            message = f"stopped by {signal_name} after all {step} steps; their weights are in {weights}"
        elif at_once:
            saved = "there is no checkpoint" if checkpoint is None else f"the last checkpoint is {checkpoint}"
            message = f"stopped at once by {signal_name} after step {step}; {saved}"
        else:
            saved = "nothing to save yet" if checkpoint is None else f"saved {checkpoint}"
            message = f"stopped by {signal_name} after step {step}; {saved}"
        super().__init__(f"interrupted.{signal_name.lower()}", message)
        self.signal_name = signal_name
        self.step = step
        self.checkpoint = checkpoint

    @property
    def exit_code(self) -> int:
        return SIGNAL_EXIT_CODES[self.signal_name]

    def to_dict(self) -> dict[str, Any]:
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        return super().to_dict() | {"status": "interrupted", "step": self.step, "checkpoint": checkpoint}


def raise_all(problems: Sequence[FinetuneError], what: str) -> None:
    """Raise the problems of `what` together, or the only one by itself; return if there is none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SeveralErrors(f"{len(problems)} problems in {what}", problems)
