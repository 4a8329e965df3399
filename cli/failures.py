"""Every way a command can fail, as a `FinetuneError`: one sentence, one exit code, one JSON object."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from scao_hf.finetune.errors import ERROR_LOG, FinetuneError, Interrupted, Location

EXIT_CODES = {
    0: "done",
    1: "internal error, or doctor found a fault",
    2: "usage or recipe",
    3: "data",
    4: "model, hub or offline",
    5: "out of memory",
    6: "the loss diverged",
    7: "disk",
    8: "an --assert of compare is false",
    130: "Ctrl-C",
    143: "SIGTERM",
}
"""Every exit code of the program and what it stands for."""

# Newer typer carries its own copy of click; these are its classes or click's, whichever typer really raises.
UsageError: Any = typer.BadParameter.__base__
ClickError: Any = UsageError.__base__

EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "transformers", "accelerate", "datasets", "peft", "trl", "yaml", "jinja2", "matplotlib", "psutil"),
        "cli",
    ),
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Extra by the package that it brings."""


class UsageFailure(FinetuneError):
    """A command line that does not parse."""

    @property
    def exit_code(self) -> int:
        return 2


def foreseen(error: BaseException) -> FinetuneError | None:
    """The failure that `error` stands for; None for an error nobody foresaw."""
    if isinstance(error, FinetuneError):
        return error
    if isinstance(error, ClickError):
        return usage_failure(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted("SIGINT", 0, None)
    if isinstance(error, ModuleNotFoundError):
        return missing_extra((error.name or "").partition(".")[0])
    if isinstance(error, PermissionError):
        return FinetuneError("disk.permission", f"no permission for {error.filename or error}", "change its mode")
    return None


def missing_extra(package: str) -> FinetuneError | None:
    """The failure for a package that an extra brings; None for any other package, whose absence is our own mistake."""
    if package not in EXTRA_OF:
        return None
    message = f"this command needs {package}, which is not installed"
    return FinetuneError("extra.missing", message, hint=f'pip install "scao-hf[{EXTRA_OF[package]}]"')


def usage_failure(error: Any) -> UsageFailure:
    context = getattr(error, "ctx", None)
    hint = None
    if context is not None:
        usage = context.get_usage().strip().replace("Usage:", "usage:", 1)
        hint = f"{usage}\n{context.command_path} --help lists what is accepted"
    return UsageFailure("usage", error.format_message(), hint=hint)


def unforeseen(error: BaseException, folder: Path | None, *, debug: bool) -> FinetuneError:
    """One line for an error nobody foresaw; its traceback goes to a file, which the hint names."""
    log = write_traceback(error, folder)
    told = "".join(traceback.format_exception_only(error)).strip().splitlines()
    hints = [] if log is None else [f"the traceback is in {log}"]
    if not debug:
        hints.append("run the command again with --debug to see it here")
    return FinetuneError("internal", told[-1], hint="\n".join(hints) or None)


def write_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """`error.log` in the run's folder when there is one, else a file of its own; None where neither can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        if folder is not None and folder.is_dir():
            log = folder / ERROR_LOG
            log.write_text(text, encoding="utf-8")
            return log
        handle, name = tempfile.mkstemp(prefix="scao-finetune-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return None
    return Path(name)


def print_failure(failure: FinetuneError, console: Console) -> None:
    """Each problem with its place and what would do; the last line of the screen is about the cause."""
    if len(failure.problems) > 1:
        console.print(heading(failure), soft_wrap=True)
        console.print()
    for number, problem in enumerate(failure.problems):
        if number:
            console.print()
        for line in [heading(problem), *place(problem.location), *advice(problem.hint)]:
            console.print(line, soft_wrap=True)


def heading(failure: FinetuneError) -> Text:
    if isinstance(failure, Interrupted):
        return Text.assemble(("interrupted", "bold yellow"), ": ", failure.message)
    return Text.assemble((f"error[{failure.code}]", "bold red"), ": ", failure.message)


def place(location: Location | None) -> list[Text]:
    if location is None:
        return []
    lines = [Text.assemble("  ", ("-->", "bold blue"), f" {location}")]
    excerpt = location.excerpt()
    if excerpt is not None:
        lines += [Text(f" {line}") for line in excerpt.splitlines()]
    return lines


def advice(hint: str | None) -> list[Text]:
    if hint is None:
        return []
    first, *more = hint.splitlines()
    return [Text.assemble("   = ", ("help", "bold"), f": {first}"), *(Text(f"           {line}") for line in more)]
