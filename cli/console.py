"""Where text goes and how it may look there: standard output for results, standard error for everything else.

Colour, movement and characters are three separate questions. Colour follows NO_COLOR and FORCE_COLOR, movement (a line
that rewrites itself) needs a terminal that can do it and no CI, and characters outside ASCII need a Unicode stream.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console

DUMB_TERMINALS = ("dumb", "unknown")


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """The drawing characters of a stream."""

    full: str
    empty: str
    ramp: str
    done: str
    dot: str
    dash: str
    ellipsis: str
    spinner: str


UNICODE = Glyphs(full="━", empty="─", ramp="▁▂▃▄▅▆▇█", done="✓", dot="·", dash="—", ellipsis="…", spinner="⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
ASCII = Glyphs(full="#", empty="-", ramp="_.-=*#", done="*", dot="|", dash="-", ellipsis="...", spinner="|/-\\")


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in DUMB_TERMINALS


def may_move(stream: TextIO) -> bool:
    """Whether a line of this stream may be rewritten in place."""
    return is_terminal(stream) and not os.environ.get("CI")


def may_colour(stream: TextIO) -> bool:
    """NO_COLOR wins over FORCE_COLOR, and both win over what the stream looks like."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def glyphs_of(stream: TextIO) -> Glyphs:
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").replace("_", "")
    return UNICODE if encoding.startswith("utf") else ASCII


def console_for(stream: TextIO) -> Console:
    """A console that prints text as it is: no markup, no automatic highlighting, no emoji codes."""
    colour = may_colour(stream)
    return Console(
        file=stream,
        force_terminal=colour or may_move(stream),
        no_color=not colour,
        markup=False,
        highlight=False,
        emoji=False,
    )


def tolerate_unprintable(*streams: TextIO) -> None:
    """Let a stream of a narrow encoding print model output with escapes instead of failing."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and glyphs_of(stream) is ASCII:
            reconfigure(errors="backslashreplace")


def say(text: str = "", *, style: str | None = None) -> None:
    """A line of the result, on standard output, never cropped nor wrapped."""
    console_for(sys.stdout).print(text, style=style, soft_wrap=True)


def tell(text: str = "", *, style: str | None = None) -> None:
    """A line for the person at the keyboard, on standard error, never cropped nor wrapped."""
    console_for(sys.stderr).print(text, style=style, soft_wrap=True)
