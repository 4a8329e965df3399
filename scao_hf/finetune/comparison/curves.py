"""Curves of (step, loss) of several seeds, put side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Curve = Sequence[tuple[int, float]]
"""(step, loss), steps ascending."""


def aligned(curves: Sequence[Curve]) -> list[tuple[int, list[float]]]:
    """(step, the losses of all curves there) at every step that all curves have, steps ascending."""
    tables = [dict(curve) for curve in curves]
    shared = set.intersection(*map(set, tables)) if tables else set()
    return [(step, [table[step] for table in tables]) for step in sorted(shared)]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """The mean of all curves at every step that all of them have."""
    return [(step, statistics.fmean(losses)) for step, losses in aligned(curves)]
