"""Rows that are read while a run goes on, for sources that do not fit into memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from scao_hf.finetune.file_readers import Row

PEEKED = 100
"""Rows at the start of a stream by which its format is told and its first tokens are checked."""

SHUFFLED = 1000
"""Rows that are held at a time to draw the next one from."""


class RowStream:
    """Converted rows in the order of the source, read anew by each pass.

    Args:
        read: starts a pass over the source.
        convert: a row in the columns that TRL reads; None for a row to leave out.
        skipped: usable rows at the start that are held out.
        max_rows: rows read at most; None for all.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Row]],
        convert: Callable[[Row], dict[str, Any] | None],
        skipped: int,
        max_rows: int | None,
    ) -> None:
        self.read = read
        self.convert = convert
        self.skipped = skipped
        self.max_rows = max_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        converted = map(self.convert, itertools.islice(self.read(), self.max_rows))
        return itertools.islice((row for row in converted if row is not None), self.skipped, None)

    def dataset(self, seed: int) -> Any:
        """An `IterableDataset` that draws each row at random from the next `SHUFFLED` ones."""
        from datasets import IterableDataset

        return IterableDataset.from_generator(self._rows).shuffle(seed=seed, buffer_size=SHUFFLED)

    def _rows(self) -> Iterator[dict[str, Any]]:
        yield from self
