"""TRL's SFTTrainer with the guards of a run: finite numbers, whole checkpoints, one definition of the held-out loss."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from scao_hf.finetune import checkpoints
from scao_hf.finetune.diverging import all_finite, origin_of_gradient, origin_of_loss
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.evaluate import Evaluation, negative_log_likelihoods
from scao_hf.finetune.ledger import Ledger, NothingLeft

_PREPARED = ("input_ids", "labels", "completion_mask", "assistant_masks", "seq_lengths")
"""Columns of a tokenized row; which of them there are depends on TRL's release."""


class Stopwatch:
    """Seconds of training: evaluation and saving stop it."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        return self._sum + (0.0 if self._started is None else time.perf_counter() - self._started)

    def add(self, seconds: float) -> None:
        """Count seconds of an earlier process as well."""
        self._sum += seconds

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._sum, self._started = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not counting what happens inside, if it was running."""
        running = self._started is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


class GuardedTrainer(SFTTrainer):
    """An SFTTrainer that stops at the first number that is not finite, before it reaches the weights.

    `on_evaluated` is called with each `Evaluation` and its seconds.
    """

    on_evaluated: Callable[[Evaluation, float], None] | None = None
    checkpoint_facts: Mapping[str, Any] = MappingProxyType({})
    """What each checkpoint notes of the run that it belongs to; plain values."""
    evaluating: bool = False
    """Whether the held-out rows are being worked on."""
    updating: bool = False
    """Whether an optimizer step has begun and not ended, so that the weights may be between two steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch = Stopwatch()
        self.ledger = Ledger(self)
        self._run_directory: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(self.ledger)
        self.add_callback(_FiniteGradients(self))
        self.accelerator.clip_grad_norm_ = self._clip_checked(self.accelerator.clip_grad_norm_)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(str(self.args.output_dir))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint`, a run whose steps are all made loads its state and makes none."""
        try:
            return super().train(*args, **kwargs)
        except NothingLeft:
            return self._end_training()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Releases of transformers before 5 take the batch size of the checkpoint, whatever the arguments say now.
        if not self.args.auto_find_batch_size:
            kwargs["batch_size"] = self.args.train_batch_size
        return super()._inner_training_loop(*args, **kwargs)

    def _end_training(self) -> None:
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False

    def stopped_early(self) -> bool:
        """Whether the held-out loss has not improved for as long as `training.early_stopping_patience` allows."""
        stoppers = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in stoppers)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        value = float(loss)
        if not math.isfinite(value):
            self.diverged("diverged.loss", f"the loss became {value}", lambda: self._origin_of_loss(inputs))
        self.ledger.add(value)
        return loss

    def _origin_of_loss(self, inputs: Any) -> str:
        with self.compute_loss_context_manager():
            return origin_of_loss(self.accelerator.unwrap_model(self.model), self._prepare_inputs(inputs))

    def _clip_checked(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """Clipping that looks at the gradients first: one that is not finite makes all others so."""

        def checked(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            self.check_gradients()
            return clip(parameters, *args, **kwargs)

        return checked

    def check_gradients(self) -> None:
        """Stop the run if a gradient is not finite."""
        # Under fp16 an overflow is ordinary: the gradient scaler skips that step and lowers its scale.
        if self.accelerator.scaler is not None:
            return
        model = self.accelerator.unwrap_model(self.model)
        if not all_finite(weight.grad for weight in model.parameters() if weight.grad is not None):
            self.diverged("diverged.gradient", "the gradient is not finite", lambda: origin_of_gradient(model))

    def diverged(self, code: str, what: str, origin: Callable[[], str]) -> None:
        """Called where a number is not finite, before it reaches the weights; ends the run.

        Args:
            code: of the error.
            what: is not finite, as the start of a sentence.
            origin: tells where in the model it began; only called if that is to be told.
        """
        step = self.state.global_step + 1
        hint = "lower training.learning_rate, or set training.max_grad_norm; float16 often needs bfloat16 or float32"
        raise FinetuneError(code, f"{what} in step {step} of {self.state.max_steps} ({origin()})", hint)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss per supervised token over all held-out rows, logged as `eval_loss` and `eval_perplexity`."""
        began = time.perf_counter()
        self.evaluating = True
        with self.stopwatch.paused():
            result = self.held_out_loss()
            self.evaluating = False
            seconds = time.perf_counter() - began
            if not math.isfinite(result.loss):
                message = f"the held-out loss is {result.loss} after step {self.state.global_step}"
                hint = "lower training.learning_rate, or check the model's weights"
                raise FinetuneError("diverged.loss", message, hint)
            metrics = {"loss": result.loss, "perplexity": result.perplexity, "runtime": seconds}
            named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            if self.state.global_step > 0:
                self._log_evaluation(named)
            if self.on_evaluated is not None:
                self.on_evaluated(result, seconds)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def _log_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Log while the model is in evaluation mode, by which TRL tells whose running averages to report and reset."""
        assert self.model is not None
        was_training = self.model.training
        self.model.eval()
        try:
            self.log(dict(metrics))
        finally:
            self.model.train(was_training)

    def held_out_loss(self) -> Evaluation:
        """Evaluate the model on the held-out rows, each process on its share of the batches."""
        model = self.accelerator.unwrap_model(self.model)
        sums = negative_log_likelihoods(model, self._held_out_batches(), autocast=self._autocast_dtype())
        both = torch.tensor([sum(part) for part in zip(*sums, strict=True)] or [0.0, 0.0], dtype=torch.float64)
        total, tokens = self.accelerator.reduce(both.to(_float64_device(self.args.device)), "sum").tolist()
        return Evaluation(total / tokens, int(tokens))

    def _held_out_batches(self) -> Iterator[Mapping[str, Any]]:
        rows: Any = self.eval_dataset
        rows = rows.select_columns([name for name in _PREPARED if name in rows.column_names])
        size = self.args.per_device_eval_batch_size
        starts = range(0, len(rows), size)[self.args.process_index :: self.args.world_size]
        for start in starts:
            yield self.data_collator([rows[index] for index in range(start, min(start + size, len(rows)))])

    def _autocast_dtype(self) -> torch.dtype | None:
        if self.args.bf16:
            return torch.bfloat16
        return torch.float16 if self.args.fp16 else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the loss is the mean over all steps since the last log, some of which may lie before a resumption."""
        if math.isfinite(logs.get("loss", math.nan)):
            logs["loss"] = self.ledger.close_window(self.state.global_step)
        super().log(logs, start_time)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._run_directory is None else str(self._run_directory)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, whole or not at all, and none that is already there."""
        folder = self._checkpoint_folder()
        if checkpoints.is_complete(folder):
            return
        with self.stopwatch.paused():
            self._save_aside(model, trial, folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                limit = self.args.save_total_limit
                checkpoints.keep_latest(self.folder, limit, [] if best is None else [Path(best)])

    def _save_aside(self, model: Any, trial: Any, folder: Path) -> None:
        staging = self.folder / checkpoints.STAGING
        self._run_directory = staging
        try:
            super()._save_checkpoint(model, trial)
            self._name_best(staging / folder.name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(staging / folder.name, folder, self.state.global_step, self.checkpoint_facts)
        finally:
            self._run_directory = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _name_best(self, part: Path) -> None:
        """Write the place of the best checkpoint again: Trainer took the folder of the moment for it."""
        best = self.state.best_model_checkpoint
        if best is not None and self.args.should_save:
            self.state.best_model_checkpoint = str(self.folder / Path(best).name)
            self.state.save_to_json(str(part / TRAINER_STATE_NAME))

    def _checkpoint_folder(self) -> Path:
        return checkpoints.checkpoint_path(self.folder, self.state.global_step)

    def save_resumable(self) -> Path | None:
        """Save the state after the last whole step; None if there was none or the weights are not those of a step."""
        assert self.model is not None
        if self.state.global_step == 0 or self.updating or not all_finite(self.model.parameters()):
            return None
        self.ledger.rewind()
        weights_alone, self.args.save_only_model = self.args.save_only_model, False
        try:
            self._save_checkpoint(self.model, None)
        finally:
            self.args.save_only_model = weights_alone
        return self._checkpoint_folder()


class _FiniteGradients(TrainerCallback):
    """Runs the stopwatch, and looks at gradients that are not clipped before the optimizer's step."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.stopwatch.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.stopwatch.stop()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.max_grad_norm:
            self.trainer.check_gradients()
        self.trainer.updating = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.updating = False


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
