"""TRL's SFTTrainer with `scao_kwargs`; apart from `trainer`, because TRL need not be installed."""

from __future__ import annotations

from trl import SFTTrainer

from scao_hf.hf.trainer import SCAOTrainerMixin


class SCAOSFTTrainer(SCAOTrainerMixin, SFTTrainer):
    """`trl.SFTTrainer` that trains with SCAO; see `SCAOTrainerMixin`."""
