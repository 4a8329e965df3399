"""Every hyperparameter does something: turning it moves the trajectory, and a group may turn it for itself."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest
import torch
from optim.siblings import parameters, set_gradients, train
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.published import PublishedSCAO
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP


class Knob(NamedTuple):
    """A hyperparameter turned to `value`, in a scenario of `other` settings where it must matter."""

    value: Any
    other: dict[str, Any] = {}  # noqa: RUF012 -- read only
    shape: tuple[int, ...] = (8, 6)


BASE: dict[type[KroneckerOptimizer], dict[str, Any]] = {
    SCAO: {
        "lr": 0.01, "warmup_steps": 4, "blend_steps": 4, "precond_freq": 3, "k_exact": 2, "k_max": 4, "k_min": 1,
        "block_rows": 2,
    },
    PublishedSCAO: {
        "lr": 0.01, "warmup_steps": 4, "blend_steps": 4, "precond_freq": 3, "rho": 0.8, "k_max": 6, "k_min": 1,
        "min_precond_updates": 2,
    },
    SOAP: {"lr": 0.01, "precondition_frequency": 3},
}  # fmt: skip

KNOBS: dict[type[KroneckerOptimizer], dict[str, Knob]] = {
    SCAO: {
        "lr": Knob(0.02),
        "betas": Knob((0.8, 0.99)),
        "eps": Knob(0.1),
        "weight_decay": Knob(1.0),
        "warmup_steps": Knob(8),
        "blend_steps": Knob(12),
        "min_precond_updates": Knob(8),
        "precond_freq": Knob(5),
        "k_min": Knob(4, {"epsilon_sparse": 0.9}),
        "k_max": Knob(2, {"epsilon_sparse": 0.0}),
        "k_exact": Knob(6),
        "epsilon_sparse": Knob(0.9),
        "block_rows": Knob(3),
        "damping": Knob(0.1),
        "max_precond_dim": Knob(4),
        "tau": Knob(0.001),
        "total_steps": Knob(10),
        "state_dtype": Knob("bfloat16"),
        "sides": Knob("left"),
    },
    PublishedSCAO: {
        "lr": Knob(0.02),
        "betas": Knob((0.8, 0.99)),
        "eps": Knob(0.1),
        "weight_decay": Knob(1.0),
        "warmup_steps": Knob(8),
        "min_precond_updates": Knob(8),
        "precond_freq": Knob(5),
        "stats_freq": Knob(2),
        "rho": Knob(0.5),
        "epsilon_sparse": Knob(0.9),
        "k_min": Knob(4, {"epsilon_sparse": 0.9}),
        "k_max": Knob(2, {"epsilon_sparse": 0.0}),
        "tau": Knob(0.5),
        "blend_steps": Knob(12),
        "max_precond_dim": Knob(4),
        "use_int8_ema": Knob(True),
    },
    SOAP: {
        "lr": Knob(0.02),
        "betas": Knob((0.8, 0.99)),
        "shampoo_beta": Knob(0.5),
        "eps": Knob(0.1),
        "weight_decay": Knob(1.0),
        "use_decoupled_weight_decay": Knob(False, {"weight_decay": 1.0}),
        "use_nesterov": Knob(True),
        "precondition_frequency": Knob(5),
        "precondition_warmup_steps": Knob(8),
        "adam_warmup_steps": Knob(6),
        "precondition_1d": Knob(True, shape=(6,)),
        "max_precond_dim": Knob(7),
        "trace_normalization": Knob(True),
        "normalize_preconditioned_grads": Knob(True),
        "correct_bias": Knob(False),
        "fp32_matmul_prec": Knob("medium"),
        "use_eigh": Knob(True),
        "qr_fp32_matmul_prec": Knob("medium"),
        "use_adaptive_criteria": Knob(True, {"adaptive_update_tolerance": 0.5}),
        "adaptive_update_tolerance": Knob(0.5, {"use_adaptive_criteria": True}),
        "power_iter_steps": Knob(3),
        "max_update_rms": Knob(0.1),
    },
}
TABLE = [(cls, name) for cls, knobs in KNOBS.items() for name in knobs]
every_knob = pytest.mark.parametrize(("cls", "name"), TABLE, ids=[f"{cls.__name__}-{name}" for cls, name in TABLE])


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm)


class _ObedientDevice(TorchFunctionMode):
    """A device whose float32 products are as coarse as `torch.set_float32_matmul_precision("medium")` allows.

    The precisions choose among kernels that a CPU may not have; here they always have their effect.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and torch.get_float32_matmul_precision() == "medium":
            args = tuple(a.bfloat16().float() if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def trajectory(cls: type[KroneckerOptimizer], shape: tuple[int, ...], settings: dict[str, Any]) -> Tensor:
    """The parameter after each of 20 steps."""
    params = parameters([shape])
    optimizer = cls(params, **settings)
    with _ObedientDevice():
        return torch.stack([train(optimizer, params, [step])[0] for step in range(1, 21)])


def test_the_table_holds_every_hyperparameter_of_every_class() -> None:
    # How the kernels are run is no part of the trajectory; test_scao.py looks after it.
    apart = {"params", "compile"}
    for cls, knobs in KNOBS.items():
        names = list(inspect.signature(cls).parameters)
        assert sorted(knobs) == sorted(set(names) - apart), cls.__name__


@every_knob
def test_turning_a_hyperparameter_moves_the_trajectory(cls: type[KroneckerOptimizer], name: str) -> None:
    knob = KNOBS[cls][name]
    settings = BASE[cls] | knob.other
    still, turned = trajectory(cls, knob.shape, settings), trajectory(cls, knob.shape, settings | {name: knob.value})
    assert torch.equal(still, trajectory(cls, knob.shape, settings))
    # The steps have length lr = 0.01; a thousandth of one is far above rounding.
    assert (still - turned).abs().max() > 1e-5


@every_knob
def test_a_group_may_turn_a_hyperparameter_for_itself(cls: type[KroneckerOptimizer], name: str) -> None:
    knob = KNOBS[cls][name]
    settings = BASE[cls] | knob.other
    mine, other, alone, untouched = (parameters([knob.shape]) for _ in range(4))
    optimizer = cls([{"params": mine, name: knob.value}, {"params": other}], **settings)
    for step in range(1, 21):
        set_gradients(mine, step)
        set_gradients(other, step)
        optimizer.step()
    train(cls(alone, **settings | {name: knob.value}), alone, range(1, 21))
    train(cls(untouched, **settings), untouched, range(1, 21))
    assert torch.equal(mine[0], alone[0])
    assert torch.equal(other[0], untouched[0])
