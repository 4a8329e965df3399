"""How the rank of each layer moves, in metrics.jsonl, for the report of the run."""

from __future__ import annotations

import statistics
from typing import Any

from transformers import TrainerCallback

from scao_hf.finetune.record import RunRecord
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.hf.callback import unwrap_optimizer
from scao_hf.optim.kronecker import KroneckerOptimizer

RECORDS = 40
"""Records of a run at most; each holds a number for every layer."""
_PREFIXES = ("base_model.model.", "model.")


class LayerRecorder(TrainerCallback):
    """Notes the active columns of every preconditioned parameter at logging steps, evenly spread over the run."""

    def __init__(self, trainer: GuardedTrainer, record: RunRecord) -> None:
        self.trainer = trainer
        self.record = record
        self._due = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        optimizer = unwrap_optimizer(kwargs.get("optimizer"))
        if logs is None or "loss" not in logs or not isinstance(optimizer, KroneckerOptimizer):
            return
        if state.global_step < self._due:
            return
        self._due = state.global_step + state.max_steps / RECORDS
        with self.trainer.stopwatch.paused():
            self.record.metrics("layers", {"step": state.global_step, "ranks": layer_ranks(optimizer)})


def layer_ranks(optimizer: KroneckerOptimizer) -> dict[str, float]:
    """Active columns by layer, mean over its sides; no layer before the first refresh."""
    return {
        short_name(layer.name): round(statistics.fmean(layer.ranks), 2)
        for layer in optimizer.layer_diagnostics()
        if layer.ranks and max(layer.ranks) > 0
    }


def short_name(parameter: str) -> str:
    """`layers.0.mlp.up_proj.lora_A` for `base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight`."""
    for prefix in _PREFIXES:
        parameter = parameter.removeprefix(prefix)
    return parameter.removesuffix(".weight").removesuffix(".default")
