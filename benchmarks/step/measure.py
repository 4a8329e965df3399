"""Time and bytes of `optimizer.step()` alone, on the layer shapes of real models, with random weights and gradients."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import memory
from benchmarks.optimizers import ADAPTERS, Adapter
from benchmarks.step.architectures import ARCHITECTURES, Architecture, freeze, with_random_weights
from benchmarks.training import clock
from scao_hf.finetune.comparison.runs import Setting
from scao_hf.optim.kronecker import KroneckerOptimizer

PERIOD = 10
"""Steps from one refresh to the next, of every optimizer here that has such."""
WARM_UP = 2 * PERIOD
"""Steps before the first that is timed: first allocations, early refreshes, the Adam phase. The last one refreshes, and
its memory is measured."""
LONGEST_SIDE = 8192
"""Of a matrix, for which some optimizer keeps a single dense factor."""
LONGEST_BLOCK = 4096
"""What some cut longer sides into instead."""
DEFAULT_OPTIMIZERS = ("adamw", "adamw_foreach", "scao", "soap", "muon", "scao_published")


@dataclass(frozen=True)
class Plan:
    """How steps are measured.

    Args:
        device: "cpu" or "cuda".
        threads: of torch.
        layers: most transformer layers that are measured; the result is scaled to all. None measures all.
        embedding: measure what is outside of the layers, too.
        periods: of `PERIOD` timed steps.
        seconds: for each optimizer and part of a model; one that takes longer is left out.
    """

    device: str = "cpu"
    threads: int = 1
    layers: int | None = None
    embedding: bool = True
    periods: int = 2
    seconds: float = 600.0

    @property
    def steps(self) -> int:
        """That are timed."""
        return self.periods * PERIOD

    def now(self) -> float:
        """Seconds: as `training.clock`, but of the wall where several threads share the work."""
        return time.perf_counter() if self.threads > 1 and self.device == "cpu" else clock(torch.device(self.device))


Build = Callable[[nn.Module], torch.optim.Optimizer]


class Part(NamedTuple):
    """Some of a model's parameters, and how many times the model has them."""

    model: nn.Module
    times: float


@dataclass(frozen=True)
class Cost:
    """Of one optimizer."""

    seconds: tuple[float, ...]
    """Of every timed step."""
    state_bytes: int
    workspace_bytes: int | None
    """Most that a step with a refresh allocates beside the state; None where a part stands for several."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seconds)

    @property
    def high(self) -> float:
        """The 95th percentile: the least of the times that 95% of the steps do not exceed."""
        return sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]

    @property
    def most(self) -> float:
        """The slowest step's: one with a refresh, where there are such."""
        return max(self.seconds)


@dataclass(frozen=True)
class Measured:
    """A model, and what the optimizers cost on it.

    Args:
        name: a key of `ARCHITECTURES`.
        parameters: that are trained, of all layers.
        layers: that were measured.
        embedding: whether what is outside of the layers was measured.
        in_turn: whether the optimizers took their steps in turn, A B A B; else one after the other, for memory.
        costs: by optimizer.
        left_out: by optimizer, why.
    """

    name: str
    parameters: int
    layers: int
    embedding: bool
    in_turn: bool
    costs: Mapping[str, Cost]
    left_out: Mapping[str, str]

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.name]

    @property
    def is_scaled(self) -> bool:
        return self.layers < self.architecture.num_layers

    @property
    def adamw_bytes(self) -> int:
        """Two float32 numbers a parameter."""
        return 8 * self.parameters


def measure(
    name: str, optimizers: Iterable[str], plan: Plan, tell: Callable[[str], None] = lambda line: None
) -> Measured:
    """Measure optimizers, keys of `ADAPTERS`, on the model of that name in `ARCHITECTURES`; `tell` is told of it."""
    architecture = ARCHITECTURES[name]
    layers = min(plan.layers or architecture.num_layers, architecture.num_layers)
    builds, left_out = _builds(optimizers, architecture)
    costs: dict[str, list[tuple[float, Cost]]] = {optimizer: [] for optimizer in builds}
    parts = parts_of(architecture, layers, plan.embedding)
    in_turn = True
    for place, part in enumerate(parts):
        if place:
            left_out |= too_long(parts[0], part, costs, plan)
            builds = _without(builds, left_out)
        model = with_random_weights(part.model, torch.device(plan.device))
        fits = len(builds) * most_state_bytes(model) < memory.free_bytes(torch.device(plan.device))
        in_turn &= fits
        for roster in [[*builds]] if fits else [[optimizer] for optimizer in builds]:
            tell(f"{name}, part {place + 1} of {len(parts)}: {', '.join(roster)}")
            found, slow = measure_in_turn(model, {optimizer: builds[optimizer] for optimizer in roster}, plan)
            for optimizer, cost in found.items():
                costs[optimizer].append((part.times, cost))
            left_out |= slow
        builds = _without(builds, left_out)
    parameters = sum(round(part.times * trained_parameters(part.model)) for part in parts)
    kept = {optimizer: combined(costs[optimizer]) for optimizer in builds}
    return Measured(name, parameters, layers, plan.embedding, in_turn, kept, left_out)


def _without(builds: Mapping[str, Build], names: Iterable[str]) -> dict[str, Build]:
    return {name: build for name, build in builds.items() if name not in names}


def trained_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def too_long(
    first: Part, second: Part, costs: Mapping[str, Sequence[tuple[float, Cost]]], plan: Plan
) -> dict[str, str]:
    """Optimizers one step of which would outlast their time on the second part, which nothing could then interrupt."""
    ratio = refresh_work(second.model) / refresh_work(first.model)
    expected = {name: ratio * parts[0][1].most for name, parts in costs.items() if parts}
    return {
        name: f"might take {seconds:.0f} s for one step outside of the layers (--seconds gives it more)"
        for name, seconds in expected.items()
        if seconds > plan.seconds
    }


def refresh_work(model: nn.Module) -> float:
    """What decomposing dense factors of all matrices costs: the cubes of the sides of all blocks."""
    matrices = (p.shape for p in model.parameters() if p.requires_grad and p.ndim > 1)
    blocks = ([(side, math.ceil(side / LONGEST_BLOCK)) for side in shape] for shape in matrices)
    return sum(math.prod(n for _, n in sides) * sum((side / n) ** 3 for side, n in sides) for sides in blocks)


def _builds(optimizers: Iterable[str], architecture: Architecture) -> tuple[dict[str, Build], dict[str, str]]:
    """How they are made for a model, and why the others are not."""
    builds: dict[str, Build] = {}
    left_out: dict[str, str] = {}
    for name in optimizers:
        adapter = ADAPTERS[name]
        setting = adapter.lora_start if architecture.lora else adapter.start
        if not adapter.is_available:
            left_out[name] = f"needs the package {adapter.package}"
        elif not setting:
            left_out[name] = "not for this kind of model"
        else:
            builds[name] = partial(_build, adapter, setting)
    return builds, left_out


def _build(adapter: Adapter, setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    return adapter.build(model, setting)


def parts_of(architecture: Architecture, layers: int, embedding: bool) -> list[Part]:
    """The whole model as one part where all of it is measured; else some layers, and what is outside of them."""
    if embedding and layers == architecture.num_layers:
        return [Part(architecture.model(), 1.0)]
    inside = architecture.model(layers)
    freeze(inside, in_layers=False)
    parts = [Part(inside, architecture.num_layers / layers)]
    if embedding and not architecture.lora:
        outside = architecture.model(1)
        freeze(outside, in_layers=True)
        parts.append(Part(outside, 1.0))
    return parts


def most_state_bytes(model: nn.Module) -> int:
    """About what the hungriest optimizer keeps: two moments, and for each side a dense factor and its eigenbasis."""
    shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    return 8 * sum(math.prod(shape) + sum(map(_most_factor_size, shape)) for shape in shapes)


def _most_factor_size(side: int) -> int:
    return side * (side if side <= LONGEST_SIDE else LONGEST_BLOCK)


def measure_in_turn(
    model: nn.Module, builds: Mapping[str, Build], plan: Plan
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Let optimizers step in turn, A B C A B C, on one model's parameters and gradients; which they share.

    Returns:
        By name what it cost; and why it was left out.
    """
    device, last = torch.device(plan.device), WARM_UP + plan.steps
    optimizers = {name: without_adam_phase(build(model)) for name, build in builds.items()}
    taken: dict[str, list[float]] = {name: [] for name in builds}
    workspace: dict[str, int] = {}
    slow: dict[str, str] = {}
    for step in range(1, last + 1):
        for name in [name for name in builds if name in optimizers]:
            started = plan.now()
            if step == WARM_UP:
                workspace[name] = memory.workspace_bytes(optimizers[name].step, device)
            else:
                optimizers[name].step()
            taken[name].append(plan.now() - started)
            spent = sum(taken[name])
            if spent > plan.seconds and step < last:
                slow[name] = f"took {spent:.0f} s for {step} of {last} steps (--seconds gives it more)"
                del optimizers[name]
    costs = {
        name: Cost(tuple(taken[name][WARM_UP:]), memory.state_bytes(optimizer), workspace[name])
        for name, optimizer in optimizers.items()
    }
    return costs, slow


def without_adam_phase(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """End the phase of plain Adam with which some begin as soon as may be, so that no step after the warm-up is of it.

    Raises:
        ValueError: the phase outlasts the warm-up all the same.
    """
    if isinstance(optimizer, KroneckerOptimizer):
        for group in optimizer.param_groups:
            group.update({name: 1 for name in ("warmup_steps", "min_precond_updates") if name in group})
            if optimizer.adam_steps(group) >= WARM_UP:
                raise ValueError(f"{type(optimizer).__name__} is still in its Adam phase after {WARM_UP} steps")
    return optimizer


def combined(parts: Sequence[tuple[float, Cost]]) -> Cost:
    """The cost of a model from those of its parts and how many times it has them."""
    seconds = zip(*(cost.seconds for _, cost in parts), strict=True)
    whole = [times for times, _ in parts] == [1.0]
    return Cost(
        tuple(sum(times * each for (times, _), each in zip(parts, step, strict=True)) for step in seconds),
        round(sum(times * cost.state_bytes for times, cost in parts)),
        parts[0][1].workspace_bytes if whole else None,
    )


def values_of(measured: Measured) -> list[dict[str, Any]]:
    """A row for each optimizer, as plain values."""
    return [
        {
            "model": measured.name,
            "optimizer": name,
            "median_ms": 1e3 * cost.median,
            "mean_ms": 1e3 * cost.mean,
            "p95_ms": 1e3 * cost.high,
            "max_ms": 1e3 * cost.most,
            "state_bytes": cost.state_bytes,
            "state_of_adamw": cost.state_bytes / measured.adamw_bytes,
            "workspace_bytes": cost.workspace_bytes,
            "parameters": measured.parameters,
            "layers": measured.architecture.num_layers,
            "layers_measured": measured.layers,
            "in_turn": measured.in_turn,
        }
        for name, cost in measured.costs.items()
    ]
