"""The stages that every run goes through, whatever is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed

from scao_hf.finetune import model, preflight, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.footprint import parameter_counts
from scao_hf.finetune.inputs import load_inputs
from scao_hf.finetune.observer import Observer, RunInfo
from scao_hf.finetune.safety import Safety
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.hf.callback import SCAOMonitorCallback
from scao_hf.hf.options import OPTIMIZERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scao_hf.finetune.data import Rows


class Stages:
    """Inputs, weights, trainer and training, in this order; each kind of run goes through them in its own way.

    Args:
        recipe: complete.
        observer: told of every stage and of what should be known.
        output_dir: where the run writes, if it does.
    """

    trainer_class: type[GuardedTrainer] = GuardedTrainer

    def __init__(self, recipe: Recipe, observer: Observer, output_dir: Path) -> None:
        self.recipe = recipe
        self.observer = observer
        self.output_dir = output_dir
        self.split_seed = recipe.seed

    def load_inputs(self) -> None:
        """Everything that can be had and checked without weights."""
        self.inputs = inputs = load_inputs(self.recipe, self.split_seed, self.observer)
        self.device, self.reference, self.config = inputs.device, inputs.reference, inputs.config
        self.tokenizer: PreTrainedTokenizerBase = inputs.tokenizer
        self.rows: Rows = inputs.rows
        self.args = inputs.args

    def load_weights(self) -> None:
        self.observer.stage("loading the model")
        self.model: PreTrainedModel = model.load_model(self.recipe, self.reference, self.config, self.device)

    def build_trainer(self) -> None:
        """The trainer with its adapter and its rows tokenized, after the checks that need them."""
        self.observer.stage("tokenizing")
        # The adapter's start is random, and older releases of TRL leave the seed to the caller.
        set_seed(self.args.seed)
        lora = None if self.recipe.lora is None else LoraConfig(task_type="CAUSAL_LM", **self.recipe.lora)
        self.trainer = self.trainer_class(
            model=self.model,
            args=self.args,
            train_dataset=self.rows.training_set(self.args.seed),
            eval_dataset=self.rows.evaluation_set(),
            processing_class=self.tokenizer,
            peft_config=lora,
            callbacks=[SCAOMonitorCallback()] if self._has_diagnostics() else None,
        )
        stopping = settings.early_stopping(self.recipe)
        if stopping is not None:
            self.trainer.add_callback(EarlyStoppingCallback(**stopping))
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)
        self.safety = Safety(self.trainer, self.recipe, self.observer.notice)
        self.funnel = dict(self.rows.funnel)
        for notice in preflight.check(self.trainer, self.recipe, self.model, self.funnel):
            self.observer.notice(notice)
        for notice in preflight.notices(self.trainer, self.recipe, self.model):
            self.observer.notice(notice)
        self.steps = settings.settle_steps(self.trainer.args, self.recipe, self.train_rows())

    def _has_diagnostics(self) -> bool:
        return str(self.recipe.training["optim"]) in OPTIMIZERS

    def train_rows(self) -> int | None:
        """Rows of a pass over the training data; None for a stream."""
        dataset: Any = self.trainer.train_dataset
        return None if self.rows.stream is not None else len(dataset)

    def train(self, checkpoint: Path | None = None) -> None:
        """Train to the end, from a checkpoint if there is one; see `Safety.train`."""
        self.observer.stage("training")
        self.safety.train(checkpoint)

    def dtype_name(self) -> str:
        return str(model.weights_dtype(self.recipe, self.device)).removeprefix("torch.")

    def info(self) -> RunInfo:
        """All that is settled once the trainer is there."""
        args, recipe = self.trainer.args, self.recipe
        rows = self.train_rows()
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        trainable, total = parameter_counts(self.trainer.model)
        passes = None if rows is None else self.steps * rows_per_step / rows
        if args.max_steps <= 0:
            passes = float(args.num_train_epochs)
        optimizer = str(recipe.training["optim"])
        return RunInfo(
            recipe=recipe.name,
            output_dir=self.output_dir,
            model=str(recipe.model.model_name_or_path),
            dataset=str(recipe.data.path),
            dataset_format=self.rows.format,
            loss_on=self.rows.loss_on,
            device=str(self.trainer.args.device),
            dtype=self.dtype_name() + (" with bfloat16 autocast" if args.bf16 else ""),
            optimizer=optimizer,
            learning_rate=args.learning_rate,
            train_rows=rows,
            eval_rows=len(self.rows.evaluation),
            rows_per_step=rows_per_step,
            total_steps=self.steps,
            epochs=passes,
            trainable_parameters=trainable,
            total_parameters=total,
            lr_warmup_steps=int(args.warmup_steps),
            adam_steps=settings.adam_steps(optimizer, settings.optimizer_options(recipe, self.steps)),
            funnel=self.funnel,
        )
