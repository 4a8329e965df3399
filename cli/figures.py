"""Numbers, durations and curves as a person reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from scao_hf.finetune.units import byte_size, count, duration

__all__ = ["bar", "byte_size", "count", "duration", "loss", "perplexity", "rate", "sparkline"]


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
