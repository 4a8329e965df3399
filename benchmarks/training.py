"""One training run under the common conditions, and the digests that say which they were."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks import memory
from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.scao import SCAO


class Batch(NamedTuple):
    """Tokens and labels, both (rows, length) int64."""

    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `start` to 1 over `warmup_steps`, then half a cosine towards `end`.

    The cosine would arrive at `end` one step after the last.
    """

    warmup_steps: int = 25
    start: float = 0.04
    end: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate of step `step`, counted from 0, of `steps`."""
        if step < self.warmup_steps:
            return self.start + (1 - self.start) * step / max(1, self.warmup_steps - 1)
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class Task(Protocol):
    """What is trained: a model, its batches, and how it is judged."""

    @property
    def schedule(self) -> Schedule:
        """Of the learning rate."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""

    @property
    def clip(self) -> float:
        """Largest norm of the whole gradient."""

    @property
    def evaluate_every(self) -> int:
        """Steps between two points of the curve."""

    @property
    def curve_batches(self) -> int:
        """How many batches of the evaluation set, from its first, a point of the curve is judged on."""

    def model(self, seed: int) -> nn.Module:
        """The model at its start, called as model(tokens, labels) -> mean loss."""

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless training batches."""

    def evaluation(self) -> Sequence[Batch]:
        """The evaluation set, the same for every seed."""


class Outcome(NamedTuple):
    """What a run came to; `Run` without its name."""

    loss: float
    curve: list[tuple[int, float]]
    conditions: dict[str, Any]
    step_seconds: float
    measures: dict[str, Any]


Build = Callable[[nn.Module], torch.optim.Optimizer]


def train(task: Task, build: Build, seed: int, device: torch.device, clip: float | None = None) -> Outcome:
    """Train once and evaluate; training ends, with an infinite loss, where the training loss is not finite.

    Args:
        task: model, data, schedule and budget.
        build: makes the optimizer for the model.
        seed: of initialisation and data order.
        device: where to train.
        clip: another bound on the gradient's norm than the task's. It is recorded, so that a comparison with runs at
            the task's own is refused; for ablations.
    """
    memory.settle(device)
    model = task.model(seed).to(device)
    initialisation = digest_of(model.parameters())
    evaluation = [to(batch, device) for batch in task.evaluation()]
    curve_part = evaluation[: task.curve_batches]
    before = memory.reserved_bytes(device)
    optimizer = build(model)
    if isinstance(optimizer, SCAO):
        optimizer.set_total_steps(task.steps)  # as transformers' Trainer does
    scheduler = LambdaLR(optimizer, lambda step: task.schedule.factor(step, task.steps))
    bound = task.clip if clip is None else clip
    order, targets = hashlib.sha256(), 0
    losses: list[float] = []
    judge = partial(mean_loss, model, optimizer=optimizer)
    curve = [(0, judge(curve_part))]
    ranks: dict[str, list[tuple[int, float]]] = {}
    train_seconds = optimizer_seconds = 0.0
    diverged = False

    for step, batch in enumerate(itertools.islice(task.batches(seed), task.steps), 1):
        for tensor in batch:
            order.update(tensor.numpy().tobytes())
        targets += int((batch.labels >= 0).sum())
        if diverged:
            continue  # the rest of the data still belongs to the conditions
        batch = to(batch, device)
        started = clock(device)
        loss = model(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), bound)
        losses.append(loss.item())
        diverged = not math.isfinite(losses[-1])
        if diverged:
            continue  # not every optimizer survives the gradient of such a loss
        stepping = clock(device)
        optimizer.step()
        ended = clock(device)
        optimizer.zero_grad()
        scheduler.step()
        train_seconds += ended - started
        optimizer_seconds += ended - stepping
        if step % task.evaluate_every == 0 or step == task.steps:
            curve.append((step, judge(curve_part)))
            record_ranks(optimizer, step, ranks)
    final = math.inf if diverged else judge(evaluation)
    taken = max(1, len(losses) - diverged)
    return Outcome(
        loss=final if math.isfinite(final) else math.inf,
        curve=[(step, value) for step, value in curve if math.isfinite(value)],
        conditions={
            "initialisation": initialisation,
            "data_order": order.hexdigest()[:16],
            "evaluation_set": digest_of(itertools.chain.from_iterable(evaluation)),
            "clipping": bound,
            "schedule": asdict(task.schedule),
            "token_budget": targets,
            "steps": task.steps,
        },
        step_seconds=train_seconds / taken,
        measures={
            "train_losses": [round(value, 4) for value in losses],
            "ranks": ranks,
            "optimizer_seconds": optimizer_seconds / taken,
            "diverged_at": len(losses) if diverged else None,
            **footprint(model, optimizer, device, before),
        },
    )


def footprint(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, before: int) -> dict[str, int]:
    """Sizes after a run; `before` is `memory.reserved_bytes` between the making of the model and of the optimizer."""
    peak = memory.peak_bytes(device)
    return {
        "state_bytes": memory.state_bytes(optimizer),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_bytes": peak,
        "peak_bytes_above_model": max(0, peak - before),
    }


def mean_loss(model: nn.Module, batches: Sequence[Batch], optimizer: torch.optim.Optimizer | None = None) -> float:
    """Loss per target over all batches, nats; at the weights that the optimizer wants judged, if it tells apart."""
    model.eval()
    averaging = hasattr(optimizer, "eval")  # schedule-free methods judge an average of the weights they train
    if averaging:
        optimizer.eval()  # type: ignore[union-attr]
    with torch.no_grad():
        # Read back together: a GPU would wait for every single number.
        counts = torch.stack([(batch.labels >= 0).sum() for batch in batches]).tolist()
        losses = torch.stack([model(*batch) for batch in batches]).tolist()
    total = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    model.train()
    if averaging:
        optimizer.train()  # type: ignore[union-attr]
    return total / sum(counts)


def record_ranks(optimizer: torch.optim.Optimizer, step: int, ranks: dict[str, list[tuple[int, float]]]) -> None:
    """Note how many columns are active in every layer, the mean of its sides, of an optimizer that adapts them."""
    if isinstance(optimizer, KroneckerOptimizer):
        for layer in optimizer.layer_diagnostics():
            ranks.setdefault(layer.name, []).append((step, sum(layer.ranks) / len(layer.ranks)))


def digest_of(tensors: Iterable[Tensor]) -> str:
    """16 hexadecimal digits of the bytes of some tensors, in order."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch))


def clock(device: torch.device) -> float:
    """Seconds: of this process's work on a CPU, which another process cannot lengthen; of the wall on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
