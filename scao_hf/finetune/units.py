"""Numbers and durations as a person reads them."""

from __future__ import annotations

import math

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


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
