"""The start of a stream, which stands for all of it where a run is planned."""

from __future__ import annotations

import itertools
from dataclasses import replace

from scao_hf.finetune.data import Rows

SAMPLED = 1000
"""Rows of a stream that a plan reads at most."""


def start_of_stream(rows: Rows) -> tuple[Rows, bool]:
    """Rows to plan with in the place of a stream, and whether they are all that it has.

    Args:
        rows: with a stream; what it holds out is left as it is.
    """
    assert rows.stream is not None
    read = list(itertools.islice(rows.stream, SAMPLED + 1))
    kept = read[:SAMPLED]
    return replace(rows, train=kept, stream=None, funnel={"read of the stream": len(kept)}), len(read) <= SAMPLED
