"""`scao-finetune doctor`: what this machine offers a run, and whether the optimizer works on it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator

from rich.text import Text

from .checks import Check, disk, hub, machine, optional_packages, required_packages, self_test, this_program
from .console import console_for, say
from .documents import print_document
from .options import AsJson

SECTIONS: dict[str, Callable[[], Iterator[Check]]] = {
    "Program": this_program,
    "Packages": required_packages,
    "Optional packages": optional_packages,
    "Machine": machine,
    "Disk": disk,
    "Hub": hub,
    "Self-test": self_test,
}
COLOURS = {"ok": "green", "note": "yellow", "fault": "bold red"}
FAULT_FOUND = 1


def doctor(as_json: AsJson = False) -> int:
    """Look at versions, device, disk and cache, and take a few SCAO steps; exit 1 if something would stop a run."""
    checks: list[Check] = []
    for section, examine in SECTIONS.items():
        if not as_json:
            say(section, style="bold")
        for check in examined(section, examine):
            checks.append(check)
            if not as_json:
                print_check(check)
    faults = sum(check.status == "fault" for check in checks)
    if as_json:
        status = "fault" if faults else "ok"
        print_document({"status": status, "faults": faults, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        say(f"\n{faults or 'no'} {'fault' if faults == 1 else 'faults'} found")
    return FAULT_FOUND if faults else 0


def examined(section: str, examine: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a section; one that breaks is itself a fault, and the next section is still looked at."""
    try:
        yield from examine()
    except Exception as error:
        yield Check(name=section, status="fault", found=f"{type(error).__name__}: {error}")


def print_check(check: Check) -> None:
    line = Text.assemble("  ", (f"{check.status:<7}", COLOURS[check.status]), f"{check.name:<16}{check.found}")
    console = console_for(sys.stdout)
    console.print(line, soft_wrap=True)
    if check.hint is not None:
        console.print(Text(" " * 25 + check.hint, "dim"), soft_wrap=True)
