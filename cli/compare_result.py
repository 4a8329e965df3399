"""The result of `compare`: a table, the verdicts, and what was asserted."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.box import ASCII2, SIMPLE_HEAD
from rich.table import Table

from scao_hf.finetune.comparison.outcome import Outcome
from scao_hf.finetune.comparison.report import COLUMNS, RESULTS, TABLE, remarks, table, target_text
from scao_hf.finetune.errors import FinetuneError

from .console import ASCII, console_for, glyphs_of, say
from .failures import print_failure
from .recipe_commands import shown
from .render import PIPE_WIDTH, result_width

PLAIN_SIGNS = str.maketrans({"±": "+/-", "−": "-"})


def unmet(outcome: Outcome) -> FinetuneError | None:
    """The failure that assertions stand for which do not hold."""
    unmet = [each for each in outcome.checked if not each.holds]
    if not unmet:
        return None
    told = "; ".join(f"{each.text} is false ({each.figures})" for each in unmet)
    return FinetuneError("assert.false", told)


def print_outcome(outcome: Outcome, page: Path) -> None:
    """The table, one verdict for each other optimizer, the assertions, and where the files lie."""
    facts = outcome.facts
    steps, rows = facts["total_steps"], facts["eval_rows"]
    say(printable(f"{outcome.recipe.name}: {steps} steps, judged by {rows} held-out rows"), style="bold")
    print_table(outcome)
    say(printable(target_text(outcome)))
    say()
    for difference in outcome.differences:
        say(printable(difference.sentence), style="bold")
    for remark in remarks(outcome):
        say(remark)
    for each in outcome.checked:
        say(f"{'holds' if each.holds else 'false'}: {each.text} ({each.figures})")
    say(f"\n{shown(page.absolute())} (with {TABLE} and {RESULTS}; adapters and models were not kept)")


def print_table(outcome: Outcome) -> None:
    box = ASCII2 if glyphs_of(sys.stdout) is ASCII else SIMPLE_HEAD
    grid = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for number, column in enumerate(COLUMNS):
        grid.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in table(outcome):
        grid.add_row(*map(printable, row))
    console = console_for(sys.stdout)
    # A figure that was cropped to fit would be worse than a broken line.
    console.width = max(result_width(), PIPE_WIDTH)
    console.print(grid)


def printable(text: str) -> str:
    return text.translate(PLAIN_SIGNS) if glyphs_of(sys.stdout) is ASCII else text


def print_unmet(failure: FinetuneError) -> None:
    print_failure(failure, console_for(sys.stderr))
