"""The optimizers that every contract holds for, small problems to run them on, and exact comparison of two runs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from problems import random_matrix
from torch import Tensor, nn

from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.published import PublishedSCAO
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP

Make = Callable[..., KroneckerOptimizer]


def _maker(cls: type[KroneckerOptimizer], **settings: Any) -> Make:
    def make(params: Any, **overrides: Any) -> KroneckerOptimizer:
        return cls(params, **{**settings, **overrides})

    return make


# Warm-up, ramp and several refreshes within twenty steps, and subspaces narrower than the sides: every branch runs.
_SCAO = {
    "lr": 0.01, "warmup_steps": 4, "blend_steps": 6, "precond_freq": 3, "k_exact": 2, "k_max": 3, "k_min": 1,
    "block_rows": 3,
}  # fmt: skip
_PUBLISHED = {
    "lr": 0.01, "warmup_steps": 4, "blend_steps": 6, "precond_freq": 3, "min_precond_updates": 2, "k_max": 3,
    "k_min": 1, "rho": 0.8, "tau": 5.0,
}  # fmt: skip

SIBLINGS: dict[str, Make] = {
    "scao": _maker(SCAO, **_SCAO),
    "scao-bfloat16": _maker(SCAO, **_SCAO, state_dtype="bfloat16"),
    "scao-int8": _maker(SCAO, **_SCAO, state_dtype="int8"),
    "published": _maker(PublishedSCAO, **_PUBLISHED),
    "published-int8": _maker(PublishedSCAO, **_PUBLISHED, use_int8_ema=True),
    "soap": _maker(SOAP, lr=0.01, precondition_frequency=3, adam_warmup_steps=2),
}

NARROW = ("exp_avg", "exp_avg_sq", "vectors")
"""State names whose tensors may be kept in fewer bits than float32, when an optimizer is asked to."""

CURVATURE = ("vectors", "rank", "drift", "trace", "values", "factor", "codes", "basis", "left_scale", "right_scale")
"""What a state name contains when it belongs to the curvature and not to the moments."""

SHAPES: list[tuple[int, ...]] = [(6, 5), (6, 5), (9, 4), (6, 5), (5,), (5,), (), (4, 3, 2, 2)]
"""Three matrices that share a stack, another, two vectors, a scalar, a convolution."""


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(random_matrix(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]


def gradient(param: Tensor, index: int, step: int) -> Tensor:
    """A gradient with leading directions, that depends on which parameter and step it is of, and on nothing else."""
    return _gradient(tuple(param.shape), index, step).to(param.dtype, copy=True)


@cache
def _gradient(shape: tuple[int, ...], index: int, step: int) -> Tensor:
    noise = random_matrix(*shape, seed=10_000 + 100 * step + index)
    if len(shape) < 2:
        return noise
    rows = random_matrix(shape[0], 2, seed=index)
    columns = random_matrix(2, math.prod(shape[1:]), seed=50 + index)
    spikes = rows @ torch.diag(torch.tensor([3.0, 1.5]) * random_matrix(2, seed=step)) @ columns
    return spikes.reshape(shape) + 0.3 * noise


def set_gradients(params: Iterable[nn.Parameter], step: int) -> None:
    for index, param in enumerate(params):
        param.grad = gradient(param, index, step)


def train(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: Iterable[int]) -> list[Tensor]:
    """Step through given gradients; the parameters at the end, copied."""
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return [param.detach().clone() for param in params]


def clone(params: Iterable[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def saved(state_dict: dict[str, Any]) -> Any:
    """A state dict after `torch.save` and the safe `torch.load`."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def differences(first: KroneckerOptimizer, second: KroneckerOptimizer) -> list[str]:
    """What is not bit for bit the same in the parameters and states of two optimizers, in words."""
    found = []
    for index, (p, q) in enumerate(zip(all_params(first), all_params(second), strict=True)):
        if not _same(p.detach(), q.detach()):
            found.append(f"parameter {index}")
        a, b = first.state[p], second.state[q]
        if a.keys() != b.keys():
            found.append(f"state names of parameter {index}: {sorted(a)} and {sorted(b)}")
            continue
        found += [f"{name} of parameter {index}" for name in a if not _same(a[name], b[name])]
    return found


def all_params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return type(a) is type(b) and bool(a == b)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def curvature(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one parameter's state that describe its curvature."""
    return {name: value for name, value in state.items() if any(word in name for word in CURVATURE)}
