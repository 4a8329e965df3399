"""A run up to its first step, on a model that is only shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow.compute
import torch

from scao_hf.finetune import model as models
from scao_hf.finetune import preflight, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.devices import available_bytes
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.planning import memory
from scao_hf.finetune.planning.cautions import cautions
from scao_hf.finetune.planning.disk import disk_of
from scao_hf.finetune.planning.outcome import Disk, Plan, Tokens
from scao_hf.finetune.planning.sampled import start_of_stream
from scao_hf.finetune.stages import Stages
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.hf.options import OPTIMIZERS, option_defaults


class _ShapesTrainer(GuardedTrainer):
    """A trainer of a model on the meta device, which no device can take."""

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        return


class PlannedRun(Stages):
    """The stages of a run as far as they need no weights; `plan` goes through them and counts."""

    trainer_class = _ShapesTrainer

    def __init__(self, recipe: Recipe, observer: Observer, output_dir: Any) -> None:
        super().__init__(recipe, observer, output_dir)
        self.asked = recipe
        if recipe.lora is not None:
            # Some starts decompose the weights, which are not there; the shapes are the same from any start.
            self.recipe = replace(recipe, lora={**recipe.lora, "init_lora_weights": True})

    def plan(self) -> Plan:
        self.load_inputs()
        self.load_weights()
        self.build_trainer()
        if self.recipe.quantization is not None:
            assert self.trainer.model is not None
            memory.cast_adapter(self.trainer.model)
        self.observer.stage("counting bytes")
        info, tokens = self.info(), self._tokens()
        disk = self._disk(tokens)
        # The last one, as it may change the dtype of the shapes.
        used = memory.memory_of(
            self.recipe,
            self.trainer.args,
            self.trainer.model,
            tokens.longest,
            self.device,
            available_bytes(self.device),
        )
        return Plan(
            info=info,
            tokens=tokens,
            memory=used,
            disk=disk,
            blend_steps=self._blend_steps(),
            overrides=self.recipe.overrides,
            notices=(*self.recipe.notices, *self.rows.notices),
            cautions=tuple(cautions(self.asked, info, tokens, used, disk)),
            probe=None,
        )

    def load_inputs(self) -> None:
        super().load_inputs()
        self.has_all_rows = True
        if self.rows.stream is not None:
            self.observer.stage("reading the start of the stream")
            self.rows, self.has_all_rows = start_of_stream(self.rows)

    def train_rows(self) -> int | None:
        """As a run of the recipe has them: none of a stream, whatever was read of it."""
        return None if self.recipe.data.streaming else super().train_rows()

    def load_weights(self) -> None:
        self.observer.stage("laying out the model")
        self.model = models.shapes_only(self.recipe, self.config, self.device)

    def _tokens(self) -> Tokens:
        compute = pyarrow.compute
        dataset: Any = self.trainer.train_dataset
        table = dataset.with_format("arrow")[:]
        lengths = compute.list_value_length(table.column("input_ids"))
        middle, high = compute.quantile(lengths, q=[0.5, 0.95], interpolation="higher").to_pylist()
        limit = self.recipe.data.max_length
        full = 0 if limit is None else compute.sum(compute.greater_equal(lengths, limit)).as_py() or 0
        return Tokens(
            rows=len(table),
            sampled=not self.has_all_rows,
            median=int(middle),
            percentile_95=int(high),
            longest=compute.max(lengths).as_py(),
            total=compute.sum(lengths).as_py(),
            supervised=preflight.supervised_tokens(table),
            full_rows=int(full),
        )

    def _disk(self, tokens: Tokens) -> Disk:
        rows = None if tokens.sampled else tokens.rows
        return disk_of(self.trainer.args, self.recipe, self.trainer.model, self.steps, rows, self.output_dir)

    def _blend_steps(self) -> int | None:
        name = str(self.recipe.training["optim"])
        if name not in OPTIMIZERS:
            return None
        steps = (option_defaults(name) | settings.optimizer_options(self.recipe, self.steps)).get("blend_steps")
        return None if steps is None else int(steps)
