"""One run of the program: parse, call, and turn whatever was raised into text and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from scao_hf.finetune.errors import Interrupted

from .app import PROGRAM, app
from .console import console_for, tell, tolerate_unprintable
from .documents import print_document
from .failures import foreseen, print_failure, unforeseen
from .invocation import Invocation, process_number

INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name and return its exit code; no `Exception` leaves."""
    tolerate_unprintable(sys.stdout, sys.stderr)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    invocation = Invocation(arguments=tuple(arguments), json="--json" in options, debug="--debug" in options)
    try:
        returned = typer.main.get_command(app).main(
            args=list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=invocation
        )
        sys.stdout.flush()
    except BrokenPipeError:
        return after_broken_pipe()
    except (Exception, KeyboardInterrupt) as error:
        return report(error, invocation)
    # Typer answers a Ctrl-C outside training itself and hands back its exit code; a command returns None, 0 or 1.
    return report(KeyboardInterrupt(), invocation) if returned == INTERRUPTED else int(returned or 0)


def report(error: BaseException, invocation: Invocation) -> int:
    """Tell the error on standard error, and under --json as the one document of standard output as well."""
    failure = foreseen(error)
    if failure is None and invocation.debug:
        traceback.print_exception(error)
    if failure is None:
        failure = unforeseen(error, invocation.run_directory, debug=invocation.debug)
    if process_number() > 0:
        if not isinstance(failure, Interrupted):  # All processes stop together, and the first one tells of it.
            tell(f"process {process_number()}: error[{failure.code}]: {failure.message}")
        return failure.exit_code
    print_failure(failure, console_for(sys.stderr))
    if invocation.json:
        print_document(failure.to_dict())
    return failure.exit_code


def after_broken_pipe() -> int:
    """The reader of our output went away (`| head`): nothing more can be told, and the flush at exit must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
