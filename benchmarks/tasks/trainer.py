"""One run of the suite made by `transformers.Trainer` instead of a loop of our own."""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks import memory
from benchmarks.tasks.encoder import Classification
from benchmarks.training import Batch, Build, Outcome, clock, digest_of, footprint, record_ranks

EVALUATION_ROWS = 256
"""Windows of one evaluation batch, at most."""


class DivergedError(Exception):
    """The training loss is not finite."""


def train(task: Classification, build: Build, seed: int, device: torch.device, clip: float | None = None) -> Outcome:
    """Train a classifier once and evaluate; arguments and divergence as in `benchmarks.training.train`."""
    model: Any = task.model(seed)
    model.to(device)
    initialisation = digest_of(model.parameters())
    evaluation = task.evaluation()
    examples: Any = list(_examples(evaluation))
    before = memory.reserved_bytes(device)
    optimizer = build(model)
    scheduler = LambdaLR(optimizer, lambda step: task.schedule.factor(step, task.steps))
    bound = task.clip if clip is None else clip
    witness = Witness(model, optimizer, device, task.evaluate_every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                max_steps=task.steps,
                per_device_train_batch_size=task.rows,
                per_device_eval_batch_size=min(task.curve_windows, EVALUATION_ROWS),
                max_grad_norm=bound,
                seed=seed,
                eval_strategy="steps",
                eval_steps=task.evaluate_every,
                eval_on_start=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device.type == "cpu",
            ),
            train_dataset=Windows(task, seed),
            eval_dataset=examples[: task.curve_windows],
            compute_metrics=_accuracy,
            callbacks=[witness],
            optimizers=(optimizer, scheduler),
        )
        trainer.remove_callback(PrinterCallback)
        with suppress(DivergedError):
            trainer.train()
        curve = [(int(log["step"]), log["eval_loss"]) for log in trainer.state.log_history if "eval_loss" in log]
        final = trainer.evaluate(examples)
    seen = len(witness.losses)
    for batch in itertools.islice(task.batches(seed), seen, task.steps):
        witness.see(batch)  # the rest of the data still belongs to the conditions
    taken = max(1, seen - witness.diverged)
    loss = math.inf if witness.diverged else final["eval_loss"]
    return Outcome(
        loss=loss if math.isfinite(loss) else math.inf,
        curve=[(step, value) for step, value in curve if math.isfinite(value)],
        conditions={
            "initialisation": initialisation,
            "data_order": witness.order.hexdigest()[:16],
            "evaluation_set": digest_of(evaluation),
            "clipping": bound,
            "schedule": asdict(task.schedule),
            "token_budget": witness.targets,
            "steps": task.steps,
        },
        step_seconds=witness.train_seconds / taken,
        measures={
            "accuracy": final["eval_accuracy"],
            "train_losses": [round(value, 4) for value in witness.losses],
            "ranks": witness.ranks,
            "optimizer_seconds": witness.optimizer_seconds / taken,
            "diverged_at": seen if witness.diverged else None,
            **footprint(model, optimizer, device, before),
        },
    )


class Windows(IterableDataset[dict[str, Tensor]]):
    """The task's training batches, window by window, in their order."""

    def __init__(self, task: Classification, seed: int) -> None:
        self.task, self.seed = task, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return itertools.chain.from_iterable(map(_examples, self.task.batches(self.seed)))


class Witness(TrainerCallback):
    """Notes what happens in a Trainer: batches and losses at the model itself, and the seconds of every step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, every: int) -> None:
        self.optimizer, self.device, self.every = optimizer, device, every
        self.order, self.targets = hashlib.sha256(), 0
        self.losses: list[float] = []
        self.ranks: dict[str, list[tuple[int, float]]] = {}
        self.train_seconds = self.optimizer_seconds = 0.0
        model.register_forward_hook(self._on_forward, with_kwargs=True)

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.losses[-1])

    def see(self, batch: Batch) -> None:
        """Count a batch into the order of the data."""
        for tensor in batch:
            self.order.update(tensor.cpu().numpy().tobytes())
        self.targets += len(batch.labels)

    def _on_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if model.training:
            self.see(Batch(kwargs["input_ids"], kwargs["labels"]))
            self.losses.append(output.loss.item())
            if self.diverged:
                raise DivergedError

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = clock(self.device)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stepping = clock(self.device)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ended = clock(self.device)
        self.train_seconds += ended - self._started
        self.optimizer_seconds += ended - self._stepping

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            record_ranks(self.optimizer, state.global_step, self.ranks)


def _examples(batch: Batch) -> Iterator[dict[str, Tensor]]:
    return ({"input_ids": tokens, "labels": label} for tokens, label in zip(*batch, strict=True))


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    scores: Any = prediction.predictions
    return {"accuracy": float((scores.argmax(-1) == prediction.label_ids).mean())}
