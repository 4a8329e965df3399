"""TRL's SFTTrainer with the guards of a run: finite numbers, whole checkpoints, one definition of the held-out loss."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTTrainer

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.evaluate import Evaluation, negative_log_likelihoods
from scao_hf.finetune.record import CHECKPOINT_PREFIX

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch = Stopwatch()
        super().__init__(*args, **kwargs)
        self.add_callback(_FiniteGradients(self))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self.diverged("diverged.loss", f"the loss became {float(loss)}")
        return loss

    def diverged(self, code: str, what: str) -> None:
        """Called where a number is not finite, before it reaches the weights; ends the run."""
        step = self.state.global_step + 1
        hint = "lower training.learning_rate, or set training.max_grad_norm; float16 often needs bfloat16 or float32"
        raise FinetuneError(code, f"{what} in step {step} of {self.state.max_steps}", hint)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss per supervised token over all held-out rows, logged as `eval_loss` and `eval_perplexity`."""
        began = time.perf_counter()
        with self.stopwatch.paused():
            result = self.held_out_loss()
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, whole or not at all."""
        folder = self._checkpoint_folder()
        with self.stopwatch.paused():
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _checkpoint_folder(self) -> Path:
        return Path(str(self.args.output_dir), f"{CHECKPOINT_PREFIX}{self.state.global_step}")

    def save_resumable(self) -> Path | None:
        """Save the state after the last whole step; None if there was none or the weights are not finite."""
        assert self.model is not None
        if self.state.global_step == 0 or not all_finite(self.model.parameters()):
            return None
        folder = self._checkpoint_folder()
        if not folder.is_dir():
            self._save_checkpoint(self.model, None)
        return folder


class _FiniteGradients(TrainerCallback):
    """Looks at the gradients between clipping and the optimizer's step."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.stopwatch.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.stopwatch.stop()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Under fp16 an overflow is ordinary: the gradient scaler skips that step and lowers its scale.
        if self.trainer.accelerator.scaler is not None:
            return
        gradients = [parameter.grad for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        if not all_finite(gradients):
            self.trainer.diverged("diverged.gradient", "the gradient is not finite")


def all_finite(tensors: Any) -> bool:
    """Whether no floating-point tensor holds NaN or infinity; one synchronisation for all."""
    # The maximum norm cannot overflow, as a sum of squares could.
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    norms = torch.stack([norm.float().to(floating[0].device) for norm in torch._foreach_norm(floating, float("inf"))])
    return bool(torch.isfinite(norms).all())


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
