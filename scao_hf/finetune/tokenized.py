"""Rows as token ids with the tokens that the loss counts: TRL's own preparation, without a model and without a cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl import SFTTrainer

from scao_hf.finetune.data import as_dataset
from scao_hf.finetune.evaluate import IGNORED
from scao_hf.finetune.templates import training_template

_MASKS = ("completion_mask", "assistant_masks")
"""Columns by which releases of TRL before `labels` said what the loss counts: what every mask lets through."""


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model reads it."""

    ids: list[int]
    trained: list[bool]
    """Whether the loss counts each token."""

    def cut(self, max_length: int | None, *, from_end: bool = False) -> TokenizedRow:
        """The row as far as `data.max_length` keeps it; from its end for `training.truncation_mode: keep_end`."""
        if max_length is None or len(self.ids) <= max_length:
            return self
        kept = slice(-max_length, None) if from_end else slice(max_length)
        return TokenizedRow(self.ids[kept], self.trained[kept])

    @property
    def supervised(self) -> int:
        """Tokens that the loss counts. The first token of a row is never predicted, so it never counts."""
        return sum(self.trained[1:])


class RowTokenizer(SFTTrainer):
    """An SFTTrainer that has no model and never trains, for the rows that it would be trained on.

    Args:
        tokenizer: with the chat template of the run.
        args: from `settings.sft_arguments`.
    """

    def __init__(self, tokenizer: Any, args: Any) -> None:
        # SFTTrainer's own constructor prepares the rows as well, and needs a model for everything else that it does.
        self._tokenizer = tokenizer
        self._is_vlm = False
        self._uncut = copy.copy(args)
        self._uncut.max_length, self._uncut.packing, self._uncut.shuffle_dataset = None, False, False
        self.completion_only_loss = args.completion_only_loss
        self.chat_template = training_template(tokenizer) if args.assistant_only_loss else None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[TokenizedRow]:
        """The rows, tokenized, in their order."""
        dataset = self._prepare_dataset(as_dataset(list(rows)), self._tokenizer, self._uncut, False, None, "train")
        return [TokenizedRow(row["input_ids"], self._trained(row)) for row in dataset.with_format(None)]

    def _trained(self, row: dict[str, Any]) -> list[bool]:
        if "labels" in row:
            return [label != IGNORED for label in row["labels"]]
        wanted = {"completion_mask": self.completion_only_loss, "assistant_masks": True}
        masks = [row[name] for name in _MASKS if name in row and wanted[name]]
        return [all(bits) for bits in zip(*masks, strict=True)] if masks else [True] * len(row["input_ids"])
