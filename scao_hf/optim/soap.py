"""SOAP: Adam in the full eigenbasis of Shampoo's factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from scao_hf.numerics.eigenbasis import (
    Eigenbasis,
    basis_drift,
    descending_order,
    eigh_descending,
    orthogonal_iteration,
    rayleigh_quotients,
    take_columns,
)
from scao_hf.numerics.kronecker import accumulate, finite_matrices, outer_product
from scao_hf.numerics.moments import adam_direction, nesterov_adam_direction, update_moments
from scao_hf.numerics.precondition import rotate_dims
from scao_hf.optim.diagnostics import LayerDiagnostics
from scao_hf.optim.kronecker import (
    Group,
    KroneckerOptimizer,
    ReadNorms,
    Refresh,
    require_count,
    require_flag,
    require_number,
    require_pair,
)
from scao_hf.optim.stack import Layout, State, Storage

PRECISIONS = ("highest", "high", "medium")
DEFAULT_TOLERANCE = 1e-7
FLAGS = (
    "use_decoupled_weight_decay",
    "use_nesterov",
    "precondition_1d",
    "trace_normalization",
    "normalize_preconditioned_grads",
    "correct_bias",
    "use_eigh",
    "use_adaptive_criteria",
)


@final
class SOAP(KroneckerOptimizer):
    """Shampoo with Adam in the preconditioner's eigenbasis, for tensors of any number of dimensions.

    For every dimension i of at most `max_precond_dim`, with Q_i the eigenvectors of the factor A_i:

        R = G ×_1 Q_1ᵀ ×_2 Q_2ᵀ …                        rotated gradient
        M <- β₁ M + (1 − β₁) R,   V <- β₂ V + (1 − β₂) R²
        p <- (1 − lr·λ) p − lr · [M̂ / (√V̂ + eps)] ×_1 Q_1 ×_2 Q_2 …
        A_i <- β A_i + (1 − β) G_(i) G_(i)ᵀ              β = shampoo_beta, corrected for the start

    then, when due, Q_i <- eigenvectors of A_i (one orthogonal iteration, or `eigh`), M moved to the new basis, V
    following the order of its columns. The first gradient seeds the factors; the first `adam_warmup_steps` steps are
    Adam's.

    State of a tensor with N elements and preconditioned dimensions d_i, all of it float32: 8·N + 8·Σ d_i² bytes and,
    for the diagnostics, 4 a dimension and 8.

    Args:
        params: parameters or groups; `sides` may be set per group: "left" is the first dimension, "right" the others,
            "none" Adam, and "auto" or "both" all of them.
        lr: learning rate.
        betas: (β₁, β₂) of the inner Adam; None is (0.95, 0.95).
        shampoo_beta: decay of the factors; β₂ if negative.
        eps: outside the root.
        weight_decay: λ.
        use_decoupled_weight_decay: decay the parameter; if False, λ·p is added to the gradient instead.
        use_nesterov: look-ahead momentum in the inner Adam.
        precondition_frequency: steps between updates of the eigenbasis, or a function from the step to that number.
        precondition_warmup_steps: update the eigenbasis every step up to here.
        adam_warmup_steps: steps without preconditioning, at least 1; kept below `precondition_warmup_steps` if that is
            set.
        precondition_1d: give vectors a basis, too; else they take Adam.
        max_precond_dim: longer dimensions get no basis.
        trace_normalization: multiply the update by the root of the first factor's trace.
        normalize_preconditioned_grads: scale each tensor's update to a root mean square of 1.
        correct_bias: correct moments and factors for their start at zero.
        fp32_matmul_prec: precision of the rotations and statistics, as in `torch.set_float32_matmul_precision`.
        use_eigh: full decomposition instead of orthogonal iteration.
        qr_fp32_matmul_prec: precision of the eigenbasis update.
        use_adaptive_criteria: leave a basis as it is while it still diagonalises its factor.
        adaptive_update_tolerance: a basis does so while ‖diag(Qᵀ A Q)‖ ≥ (1 − tolerance) ‖Qᵀ A Q‖; None is 1e-7.
        power_iter_steps: orthogonal iterations per update.
        max_update_rms: largest root mean square of a tensor's update; 0 is no bound.

    Raises:
        ValueError: a value out of range, named with what would do.
        TypeError: a value of the wrong kind; a complex or sparse parameter.

    Source: Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson & Kakade (2024), arXiv:2409.11321; keywords and order
    of operations as in NVIDIA's Emerging-Optimizers. A gradient with NaN or Inf is not folded into the factors.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] | None = None,
        shampoo_beta: float = -1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        use_decoupled_weight_decay: bool = True,
        use_nesterov: bool = False,
        precondition_frequency: int | Callable[[int], int] = 10,
        precondition_warmup_steps: int = 0,
        adam_warmup_steps: int = 1,
        precondition_1d: bool = False,
        max_precond_dim: int = 8192,
        trace_normalization: bool = False,
        normalize_preconditioned_grads: bool = False,
        correct_bias: bool = True,
        fp32_matmul_prec: str = "high",
        use_eigh: bool = False,
        qr_fp32_matmul_prec: str = "high",
        use_adaptive_criteria: bool = False,
        adaptive_update_tolerance: float | None = None,
        power_iter_steps: int = 1,
        max_update_rms: float = 0.0,
    ) -> None:
        require_count("precondition_warmup_steps", precondition_warmup_steps, 0)
        require_count("adam_warmup_steps", adam_warmup_steps, 0)
        adam_warmup_steps = max(1, adam_warmup_steps)
        if 0 < precondition_warmup_steps <= adam_warmup_steps:
            adam_warmup_steps = max(1, precondition_warmup_steps - 1)
        defaults = {
            "lr": lr,
            "betas": (0.95, 0.95) if betas is None else require_pair("betas", betas),
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_decoupled_weight_decay": use_decoupled_weight_decay,
            "use_nesterov": use_nesterov,
            "precondition_frequency": precondition_frequency,
            "precondition_warmup_steps": precondition_warmup_steps,
            "adam_warmup_steps": adam_warmup_steps,
            "precondition_1d": precondition_1d,
            "max_precond_dim": max_precond_dim,
            "trace_normalization": trace_normalization,
            "normalize_preconditioned_grads": normalize_preconditioned_grads,
            "correct_bias": correct_bias,
            "fp32_matmul_prec": fp32_matmul_prec,
            "use_eigh": use_eigh,
            "qr_fp32_matmul_prec": qr_fp32_matmul_prec,
            "use_adaptive_criteria": use_adaptive_criteria,
            "adaptive_update_tolerance": adaptive_update_tolerance,
            "power_iter_steps": power_iter_steps,
            "max_update_rms": max_update_rms,
        }
        super().__init__(params, defaults)

    @staticmethod
    def _validate(group: Group) -> None:
        for name, least in (("precondition_warmup_steps", 0), ("adam_warmup_steps", 1), ("max_precond_dim", 1)):
            require_count(name, group[name], least)
        require_count("power_iter_steps", group["power_iter_steps"], 1)
        if not callable(group["precondition_frequency"]):
            require_count("precondition_frequency", group["precondition_frequency"], 1)
        for name in FLAGS:
            require_flag(name, group[name])
        require_number("shampoo_beta", group["shampoo_beta"], -float("inf"), 1.0, open_high=True)
        require_number("max_update_rms", group["max_update_rms"], 0.0)
        if group["adaptive_update_tolerance"] is not None:
            require_number("adaptive_update_tolerance", group["adaptive_update_tolerance"], 0.0, 1.0)
        for name in ("fp32_matmul_prec", "qr_fp32_matmul_prec"):
            if group[name] not in PRECISIONS:
                raise ValueError(f"{name} must be one of {', '.join(PRECISIONS)}, got {group[name]!r}")

    @staticmethod
    def _layout(shape: tuple[int, ...], group: Group) -> Layout:
        sides = group.get("sides", "auto")
        if sides == "auto" and group.get("kind") in ("embedding", "head"):
            sides = "right"  # no basis over a vocabulary
        usable = (len(shape) > 1 or group["precondition_1d"]) and sides != "none"
        excluded = {"left": range(1, len(shape)), "right": range(min(1, len(shape) - 1))}.get(sides, range(0))
        fits = [usable and dim not in excluded and size <= group["max_precond_dim"] for dim, size in enumerate(shape)]
        return Layout(shape, tuple(size if fit else 0 for size, fit in zip(shape, fits, strict=True)))

    @staticmethod
    def _create(rows: int, layout: Layout, group: Group, device: torch.device) -> Storage:
        storage = {
            "exp_avg": torch.zeros(rows, *layout.row_shape, device=device),
            "exp_avg_sq": torch.zeros(rows, *layout.row_shape, device=device),
            "failures": torch.zeros(rows, dtype=torch.int64, device=device),
        }
        for dim, size in _preconditioned_dims(layout):
            storage[f"factor_{dim}"] = torch.zeros(rows, size, size, device=device)
            storage[f"basis_{dim}"] = torch.eye(size, device=device).repeat(rows, 1, 1)
            storage[f"drift_{dim}"] = torch.zeros(rows, device=device)
        return storage

    @staticmethod
    def _prepare(state: Storage, grads: Tensor, read_params: Callable[[], Tensor], group: Group, step: int) -> Tensor:
        if step == 1:
            with _matmul_precision(group["fp32_matmul_prec"]):
                _update_factors(state, grads, beta=0.0)
        if group["use_decoupled_weight_decay"] or not group["weight_decay"]:
            return grads
        return grads.add(read_params(), alpha=group["weight_decay"])

    @staticmethod
    def _update(
        state: Storage, grads: Tensor, layout: Layout, group: Group, step: int, refresh: Refresh, read_norms: ReadNorms
    ) -> Tensor:
        bases = _bases(state) if step > group["adam_warmup_steps"] else {}
        with _matmul_precision(group["fp32_matmul_prec"]):
            direction = _adam_direction(state, rotate_dims(grads, bases), group, step)
            direction = _rescaled(rotate_dims(direction, bases, back=True), state, group)
            _update_factors(state, grads, _factor_decay(group, step))
        if _refresh_needed(step, group):
            refresh()
        return direction

    # A tensor without any basis takes the same step; only the rotations fall away.
    _update_without_basis = _update

    @staticmethod
    def _refresh(state: Storage, layout: Layout, group: Group, step: int) -> None:
        first = step == group["adam_warmup_steps"]
        with _matmul_precision(group["qr_fp32_matmul_prec"]):
            momentum = rotate_dims(state["exp_avg"], _bases(state), back=True)
            for dim, _ in _preconditioned_dims(layout):
                _refresh_dim(state, dim, group, first=first)
            state["exp_avg"].copy_(rotate_dims(momentum, _bases(state)))

    @staticmethod
    def adam_steps(group: Group) -> int:
        return int(group["adam_warmup_steps"])

    @staticmethod
    def _diagnose(state: State, layout: Layout, group: Group) -> LayerDiagnostics:
        dims = _preconditioned_dims(layout)
        traces = [float(state[f"factor_{dim}"].diagonal(dim1=-2, dim2=-1).sum()) for dim, _ in dims]
        return LayerDiagnostics(
            blend=float(state["step"] >= group["adam_warmup_steps"]),
            ranks=tuple(float(size) for _, size in dims),
            mass_kept=1.0,
            curvature_norm=sum(trace / size for trace, (_, size) in zip(traces, dims, strict=True)) / len(dims),
            basis_drift=sum(float(state[f"drift_{dim}"].mean()) for dim, _ in dims) / len(dims),
            failures=int(state["failures"].sum()),
        )


def _preconditioned_dims(layout: Layout) -> list[tuple[int, int]]:
    return [(dim, rank) for dim, rank in enumerate(layout.ranks) if rank]


def _bases(state: Storage) -> dict[int, Tensor]:
    return {int(name.removeprefix("basis_")): value for name, value in state.items() if name.startswith("basis_")}


def _update_factors(state: Storage, grads: Tensor, beta: float) -> None:
    outers = {dim: outer_product(grads, dim) for dim in _bases(state)}
    # All factors see the same gradients: one that overflows in a single outer product is kept out of the others, too.
    accept = torch.isfinite(_flat_rows(grads)).all(1)
    for outer in outers.values():
        accept = accept & finite_matrices(outer)
    for dim, outer in outers.items():
        accumulate(state[f"factor_{dim}"], outer, beta, accept)


def _factor_decay(group: Group, step: int) -> float:
    beta: float = group["shampoo_beta"] if group["shampoo_beta"] >= 0 else group["betas"][1]
    return 1 - (1 - beta) / (1 - beta ** (step + 1)) if group["correct_bias"] else beta


def _adam_direction(state: Storage, rotated: Tensor, group: Group, step: int) -> Tensor:
    exp_avg, exp_avg_sq, betas, eps = state["exp_avg"], state["exp_avg_sq"], group["betas"], group["eps"]
    correct_bias = group["correct_bias"]
    update_moments(exp_avg, exp_avg_sq, rotated, betas)
    if group["use_nesterov"]:
        return nesterov_adam_direction(exp_avg, exp_avg_sq, rotated, betas, eps, step, correct_bias=correct_bias)
    return adam_direction(exp_avg, exp_avg_sq, betas, eps, step, correct_bias=correct_bias)


def _rescaled(direction: Tensor, state: Storage, group: Group) -> Tensor:
    per_row = (-1,) + (1,) * (direction.ndim - 1)
    if group["trace_normalization"] and "factor_0" in state:
        trace = state["factor_0"].diagonal(dim1=-2, dim2=-1).sum(-1)
        direction = direction * trace.sqrt().view(per_row)
    if group["normalize_preconditioned_grads"]:
        direction = direction / (_row_rms(direction) + 1e-30).view(per_row)
    if group["max_update_rms"]:
        scale = (group["max_update_rms"] / (_row_rms(direction) + 1e-12)).clamp_max(1.0)
        direction = direction * scale.view(per_row)
    return direction


def _flat_rows(rows: Tensor) -> Tensor:
    # A scalar parameter has rows without dimensions, which flatten(1) refuses.
    return rows.unsqueeze(-1).flatten(1)


def _row_rms(rows: Tensor) -> Tensor:
    return _flat_rows(rows).square().mean(1).sqrt()


def _refresh_needed(step: int, group: Group) -> bool:
    if step <= group["adam_warmup_steps"]:
        return bool(step == group["adam_warmup_steps"])
    if step <= group["precondition_warmup_steps"]:
        return True
    frequency = group["precondition_frequency"]
    return bool(step % (frequency(step) if callable(frequency) else frequency) == 0)


def _refresh_dim(state: Storage, dim: int, group: Group, *, first: bool) -> None:
    factor, old = state[f"factor_{dim}"], state[f"basis_{dim}"].clone()
    if first or group["use_eigh"]:
        order = torch.arange(factor.shape[-1], device=factor.device).expand(factor.shape[:-1])
        basis, failed = eigh_descending(factor, Eigenbasis(old, torch.zeros_like(old[..., 0])))
        new = basis.vectors
    else:
        order = descending_order(rayleigh_quotients(factor, old))
        new, failed = orthogonal_iteration(factor, take_columns(old, order), group["power_iter_steps"])
    keep = failed
    if group["use_adaptive_criteria"] and not first:
        keep = keep | _still_diagonal(factor, old, group["adaptive_update_tolerance"])
    unchanged = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    order = torch.where(keep.unsqueeze(-1), unchanged, order)
    new = torch.where(keep[..., None, None], old, new)
    state[f"drift_{dim}"].copy_(basis_drift(take_columns(old, order), new))
    state[f"basis_{dim}"].copy_(new)
    state["failures"].add_(failed)
    moved = state["exp_avg_sq"].movedim(dim + 1, 1)
    index = order.view(order.shape + (1,) * (moved.ndim - 2))
    moved.copy_(torch.take_along_dim(moved, index, dim=1))


def _still_diagonal(factor: Tensor, basis: Tensor, tolerance: float | None) -> Tensor:
    rotated = basis.mT @ factor @ basis
    diagonal = torch.linalg.vector_norm(rotated.diagonal(dim1=-2, dim2=-1), dim=-1)
    whole = torch.linalg.vector_norm(rotated, dim=(-2, -1))
    return diagonal >= (1 - (DEFAULT_TOLERANCE if tolerance is None else tolerance)) * whole


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)
