"""The look of every figure, and its way into a page or a file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe & Ito's palette without its yellow, which vanishes on white; told apart by all common kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
SIZE = (7.0, 4.2)
"""Inches; 700 pixels wide at 100 dots an inch."""
DOTS_PER_INCH = 200


def svg_text(figure: Figure) -> str:
    """The figure as an <svg> element, the same text for the same figure, to be put into HTML or into a file."""
    stream = io.StringIO()
    # Ids are hashed with the figure's name, so that two figures on one page do not share them.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": str(figure.get_label())}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    used = set(re.findall(r"#([\w.-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)


def save(figure: Figure, path: Path, dots_per_inch: float = DOTS_PER_INCH) -> list[Path]:
    """Write `path`.svg and `path`.png, without dates in them, and return both; `path` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vector, raster = path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.png")
    vector.write_text(svg_text(figure), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        figure.savefig(raster, dpi=dots_per_inch, metadata={"Software": None})
    return [vector, raster]


def rate_text(rate: float) -> str:
    """A learning rate as one would type it: `2e-4`, `1.414e-3`, `0.02`."""
    if rate >= 0.01:
        return f"{rate:.4g}"
    mantissa, _, exponent = f"{rate:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
