"""Numbers, durations and curves as a person reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

KIBI = 1024.0
COUNT_UNITS = ("", "k", "M", "B", "T")
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float) -> str:
    """`8 s`, `3m10s`, `2h05m`; `?` while nobody can know."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """`950`, `12.4 k`, `1.07 M`, `7.62 B`: three figures, thousands as words."""
    if number < 10_000:
        return f"{number:.0f}"
    unit = 0
    while number >= 999.5 and unit < len(COUNT_UNITS) - 1:
        number /= 1000.0
        unit += 1
    return f"{number:.3g} {COUNT_UNITS[unit]}"


def byte_size(number: float) -> str:
    """`512 B`, `1.5 MiB`: powers of 1024."""
    unit = 0
    while abs(number) >= KIBI and unit < len(BYTE_UNITS) - 1:
        number /= KIBI
        unit += 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {BYTE_UNITS[unit]}"


def rate(learning_rate: float) -> str:
    """`1.9e-04`, always eight characters at most, so that a line does not jump."""
    return f"{learning_rate:.1e}"


def loss(nats: float | None) -> str:
    return "-" if nats is None else f"{nats:.3f}"


def perplexity(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1e4 else f"{value:.2e}"


def bar(fraction: float, width: int, full: str, empty: str) -> str:
    filled = round(max(0.0, min(1.0, fraction)) * width)
    return full * filled + empty * (width - filled)


def sparkline(values: Sequence[float], width: int, ramp: str) -> str:
    """At most `width` characters, each the mean of an equal share of `values`, drawn by its height in `ramp`."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    cells = min(width, len(finite))
    edges = [round(index * len(finite) / cells) for index in range(cells + 1)]
    means = [sum(finite[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(ramp[min(len(ramp) - 1, int((mean - low) / span * len(ramp)))] for mean in means)
