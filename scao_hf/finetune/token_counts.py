"""How long rows are, what a cut takes from them, and how many of their tokens the loss counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scao_hf.finetune.tokenized import TokenizedRow

BINS = 12
PERCENTILES = (50, 95, 99)
_NICE = (1, 2, 4, 5, 8)
"""First digits of a bin's width, so that its ends are numbers a person reads."""


@dataclass(frozen=True)
class Bin:
    """Rows whose length is in [low, high)."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Figures of some rows, before and after they are cut to `max_length`."""

    rows: int
    tokens: int
    """Before the cut."""
    percentiles: dict[int, int]
    """Length that so many percent of the rows do not exceed."""
    longest: int
    histogram: tuple[Bin, ...]
    max_length: int | None
    truncated_rows: int
    cut_tokens: int
    dropped_rows: int
    """Rows with no supervised token left after the cut, which are not trained on."""
    kept_tokens: int
    """After the cut, of the rows that are left."""
    supervised_tokens: int
    """Of `kept_tokens`, those that the loss counts."""
    stopping_rows: int
    """Rows left in which the loss counts a token that ends the text, so that the model learns to stop."""
    largest_id: int

    @property
    def usable_rows(self) -> int:
        return self.rows - self.dropped_rows

    @property
    def supervised_share(self) -> float:
        """Of the tokens left; 0 where nothing is left."""
        return self.supervised_tokens / self.kept_tokens if self.kept_tokens else 0.0


def count_tokens(
    rows: Sequence[TokenizedRow], stops: Collection[int], max_length: int | None, *, from_end: bool = False
) -> TokenCounts:
    """Count the tokens of at least one row.

    Args:
        stops: ids of the tokens that end a text or a turn.
        max_length: where rows are cut; None for nowhere.
        from_end: keep the ends of long rows instead of their starts.
    """
    lengths = sorted(len(row.ids) for row in rows)
    cut = [row.cut(max_length, from_end=from_end) for row in rows]
    left = [row for row in cut if row.supervised]
    return TokenCounts(
        rows=len(rows),
        tokens=sum(lengths),
        percentiles={percent: lengths[math.ceil(percent / 100 * len(lengths)) - 1] for percent in PERCENTILES},
        longest=lengths[-1],
        histogram=histogram(lengths),
        max_length=max_length,
        truncated_rows=sum(len(short.ids) < len(row.ids) for short, row in zip(cut, rows, strict=True)),
        cut_tokens=sum(len(row.ids) for row in rows) - sum(len(row.ids) for row in cut),
        dropped_rows=len(rows) - len(left),
        kept_tokens=sum(len(row.ids) for row in left),
        supervised_tokens=sum(row.supervised for row in left),
        stopping_rows=sum(_teaches_to_stop(row, stops) for row in left),
        largest_id=max((max(row.ids) for row in rows if row.ids), default=0),
    )


def _teaches_to_stop(row: TokenizedRow, stops: Collection[int]) -> bool:
    return any(trained and token in stops for token, trained in zip(row.ids[1:], row.trained[1:], strict=True))


def histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    """Counts of sorted lengths in at most `BINS` + 1 equal bins with round ends, from the shortest to the longest."""
    width = _round_width((lengths[-1] - lengths[0] + 1) / BINS)
    first, last = lengths[0] // width, lengths[-1] // width
    counts = [0] * (last - first + 1)
    for length in lengths:
        counts[length // width - first] += 1
    return tuple(Bin((first + n) * width, (first + n + 1) * width, rows) for n, rows in enumerate(counts))


def _round_width(least: float) -> int:
    """The least number of at least `least` whose only digit that is not zero is one of `_NICE`."""
    power = 1
    while True:
        for digit in _NICE:
            if digit * power >= least:
                return digit * power
        power *= 10
