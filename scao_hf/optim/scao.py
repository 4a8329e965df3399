"""SCAO: Adam in a partial eigenbasis of low-rank Kronecker curvature, tracked without any m×m matrix."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from scao_hf.numerics.blocks import block_shape
from scao_hf.numerics.eigenbasis import (
    Sketch,
    basis_drift,
    excess_spectral_rank,
    initial_sketch,
    refresh_sketch,
    sketch_values,
    tail_value,
    take_columns,
    update_sketch,
)
from scao_hf.numerics.moments import (
    adam_direction,
    factored_adam_direction,
    update_factored_second_moment,
    update_moments,
)
from scao_hf.numerics.precondition import (
    PartialBasis,
    coupling,
    rotate_columns,
    rotate_rows,
    unrotate_columns,
    unrotate_rows,
)
from scao_hf.optim.diagnostics import LayerDiagnostics, mass_share, tracked_values
from scao_hf.optim.kronecker import Group, KroneckerOptimizer, Refresh, require_count, require_number, require_pair
from scao_hf.optim.schedule import blend_weight, early_refresh_due, refresh_due
from scao_hf.optim.stack import Layout, State, Storage

SIDES = ("left", "right")
SECOND_MOMENTS = ("factored", "elementwise")
NARROW_SIDE = 256
VOCABULARY_RATIO = 16
"""A matrix this many times longer than wide, and not a low-rank factor, is taken for a table over a vocabulary."""


@final
class SCAO(KroneckerOptimizer):
    """Adam in a partial eigenbasis of the gradient's Kronecker curvature, at about AdamW's memory.

    For a matrix G (m, n), with orthogonal maps H_L (m, m) and H_R (n, n) that are never formed:

        R = H_Lᵀ G H_R                                      rotated gradient
        M <- β₁ M + (1 − β₁) R                              first moment, in the basis
        V <- β₂ V + (1 − β₂) R²                             second moment: its row and column means, or elementwise
        p <- (1 − lr·λ) p − lr · H_L [M̂ / (√V̂ + eps)] H_Rᵀ
        Y_L <- ρ Y_L + (1 − ρ) G (Gᵀ U_L)                   power sketch of E[G Gᵀ]; Y_R likewise for E[Gᵀ G]

    The first k columns of H are U, the tracked leading eigenvectors; the others are those of the identity, as little
    changed as orthogonality allows, so that one second moment serves spikes and remainder alike: k = 0 is AdamW, k = m
    is SOAP. Every `precond_freq` steps U <- orth(Y), one subspace iteration with the average of all gradients, and what
    lives in the old basis moves to the new one: M exactly, V by following its column or, for a column newly taken in,
    from the eigenvalue.

    Two phases: Adam, its second moment factored if so chosen, until `max(warmup_steps, min_precond_updates)` steps have
    been observed; then the active rank grows over `blend_steps` to the adaptive one, the smallest k with

        Σ_{i≤k} (λ_i − σ)₊ ≥ (1 − epsilon_sparse) Σ_i (λ_i − σ)₊,    σ the mean eigenvalue of the untracked rest.

    Which sides get a basis: both for a matrix; only the model dimension for embeddings and heads (groups with a `kind`
    from `scao_hf.parameter_groups`, or by shape: one side 16 times the other and the shorter above `k_exact`); none for
    vectors, which take AdamW. A side of at most `k_exact` is kept whole.

    Memory of a matrix (m, n) with ranks k, l, in bytes; 8·m·n is AdamW's:

        factored       4 [mn + m + n + (2mk + k² + 1) + (2nl + l² + 1) + 1] + 24
        elementwise    4 [2mn        + (2mk + k² + 1) + (2nl + l² + 1) + 1] + 24

    and times the number of blocks where a side exceeds `max_precond_dim`; a side without a basis saves its bracket and
    8 bytes. In float32 whatever the dtype of the parameters.

    Args:
        params: parameters or groups; `kind` and `sides` may be set per group.
        lr: learning rate; AdamW's is where to start from, though how well it carries over is not measured yet.
        betas: (β₁, β₂).
        eps: ε outside the root.
        weight_decay: λ, decoupled.
        warmup_steps: steps of plain Adam before the second phase. At least one step always is.
        blend_steps: length of the ramp that follows; 0 switches at once.
        min_precond_updates: gradients the sketch must have seen before the second phase.
        precond_freq: steps between two refreshes of the basis.
        rho: ρ, decay of the sketch per step.
        k_min: least active rank of a tracked side.
        k_max: columns tracked per side; None is 32 for sides up to 256, else 64, and no more than twice the other side.
        k_exact: sides up to this length keep a whole basis.
        epsilon_sparse: share of the excess spectral mass that the adaptive rank may leave out; 0 keeps every column
            above the rest.
        max_precond_dim: longer sides are cut into equal blocks, each with a basis of its own.
        second_moment: "factored" or "elementwise".
        sides: "auto", "both", "left" (rows), "right" (columns) or "none" (AdamW).

    Raises:
        ValueError: a value out of range, named with what would do.
        TypeError: a value of the wrong kind; a complex or sparse parameter.

    Sources: Adam in the eigenbasis of Shampoo's factors: Vyas et al. (2024), arXiv:2409.11321. Low-rank adaptive
    preconditioning in two phases: the SCAO 0.1 README. Power-iteration tracking of a leading eigenspace: Liu et al.
    (2025), arXiv:2502.17410. Factored second moment: Shazeer & Stern (2018), arXiv:1804.04235. A gradient with NaN or
    Inf leaves the sketches alone and reaches the moments, as it would in AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        warmup_steps: int = 10,
        blend_steps: int = 0,
        min_precond_updates: int = 1,
        precond_freq: int = 10,
        rho: float = 0.95,
        k_min: int = 1,
        k_max: int | None = None,
        k_exact: int = 64,
        epsilon_sparse: float = 0.0,
        max_precond_dim: int = 4096,
        second_moment: str = "factored",
        sides: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": require_pair("betas", betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "blend_steps": blend_steps,
            "min_precond_updates": min_precond_updates,
            "precond_freq": precond_freq,
            "rho": rho,
            "k_min": k_min,
            "k_max": k_max,
            "k_exact": k_exact,
            "epsilon_sparse": epsilon_sparse,
            "max_precond_dim": max_precond_dim,
            "second_moment": second_moment,
            "sides": sides,
        }
        super().__init__(params, defaults)

    @staticmethod
    def recommended(num_params: int) -> dict[str, Any]:
        """Settings to start from, by model size; measured below 10 million parameters only, longer warm-ups above.

        Args:
            num_params: parameters of the model.

        Returns:
            Keyword arguments of the constructor.
        """
        for limit, warmup_steps, precond_freq in _PRESETS:
            if num_params < limit:
                return {"warmup_steps": warmup_steps, "precond_freq": precond_freq}
        raise AssertionError("the last preset has no limit")

    @staticmethod
    def _validate(group: Group) -> None:
        for name, least in (("warmup_steps", 0), ("blend_steps", 0), ("min_precond_updates", 0), ("precond_freq", 1)):
            require_count(name, group[name], least)
        for name, least in (("k_min", 1), ("k_exact", 0), ("max_precond_dim", 2)):
            require_count(name, group[name], least)
        require_number("rho", group["rho"], 0.0, 1.0, open_high=True)
        require_number("epsilon_sparse", group["epsilon_sparse"], 0.0, 1.0, open_high=True)
        if group["k_max"] is not None:
            require_count("k_max", group["k_max"], 1)
            if group["k_min"] > group["k_max"]:
                raise ValueError(
                    f"k_min must not exceed k_max, got k_min={group['k_min']}, k_max={group['k_max']}; lower k_min"
                )
        if group["second_moment"] not in SECOND_MOMENTS:
            raise ValueError(
                f"second_moment must be one of {', '.join(SECOND_MOMENTS)}, got {group['second_moment']!r}"
            )

    @staticmethod
    def _layout(shape: tuple[int, ...], group: Group) -> Layout:
        cut = block_shape(shape, group["max_precond_dim"])
        chosen = _chosen_sides((cut.rows, cut.columns), shape, group)
        if min(cut.size) < 2 or chosen == "none":
            return Layout(shape, (0,) * len(shape))
        left, right = cut.size
        ranks = (
            _tracked_rank(left, right, group) if chosen in ("both", "left") else 0,
            _tracked_rank(right, left, group) if chosen in ("both", "right") else 0,
        )
        return Layout(cut.size, ranks, cut)

    @staticmethod
    def _create(rows: int, layout: Layout, group: Group, device: torch.device) -> Storage:
        m, n = layout.row_shape

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device)

        storage = {"exp_avg": zeros(m, n)}
        if group["second_moment"] == "factored":
            storage |= {"exp_avg_sq_row": zeros(m), "exp_avg_sq_column": zeros(n)}
        else:
            storage |= {"exp_avg_sq": zeros(m, n)}
        for side, dim, rank in zip(SIDES, layout.row_shape, layout.ranks, strict=True):
            if rank:
                storage |= {
                    f"{side}_vectors": zeros(dim, rank),
                    f"{side}_product": zeros(dim, rank),
                    f"{side}_coupling": zeros(rank, rank),
                    f"{side}_rank": zeros().long(),
                    f"{side}_drift": zeros(),
                }
        return storage | {"trace": zeros(), "failures": zeros().long()}

    @staticmethod
    def _update(state: Storage, grads: Tensor, group: Group, step: int, refresh: Refresh) -> Tensor:
        rotated, seen = _rotate(state, grads)
        direction = _adam_in_basis(state, rotated, group, step)
        direction = _unrotate(state, direction)
        _track(state, seen, group, step)
        if _refresh_needed(step, group):
            refresh()
        return direction

    @staticmethod
    def _refresh(state: Storage, layout: Layout, group: Group, step: int) -> None:
        momentum = _unrotate(state, state["exp_avg"])
        for side, dim, tracked in zip(SIDES, layout.row_shape, layout.ranks, strict=True):
            if tracked:
                _refresh_side(state, side, dim, group, step)
        state["exp_avg"].copy_(_rotate(state, momentum)[0])

    @staticmethod
    def adam_steps(group: Group) -> int:
        # A basis never judges the gradient it was made from, so the very first step is Adam's in any case.
        return max(1, group["warmup_steps"], group["min_precond_updates"])

    @staticmethod
    def _diagnose(state: State, layout: Layout, group: Group) -> LayerDiagnostics:
        step = state["step"]
        unbias = 1 - group["rho"] ** step
        trace = state["trace"] / unbias
        ranks, masses, drifts, curvatures = [], [], [], []
        for side in _present_sides(state):
            sketch = Sketch(state[f"{side}_vectors"], state[f"{side}_product"])
            ranks.append(float(state[f"{side}_rank"].float().mean()))
            masses.append(mass_share(tracked_values(sketch) / unbias, state[f"{side}_rank"], trace))
            drifts.append(float(state[f"{side}_drift"].mean()))
            curvatures.append(float(trace.mean()) / layout.row_shape[SIDES.index(side)])
        return LayerDiagnostics(
            blend=blend_weight(step, SCAO.adam_steps(group), group["blend_steps"]),
            ranks=tuple(ranks),
            mass_kept=sum(masses) / len(masses),
            curvature_norm=sum(curvatures) / len(curvatures),
            basis_drift=sum(drifts) / len(drifts),
            failures=int(state["failures"].sum()),
        )


_PRESETS = ((10_000_000, 10, 10), (300_000_000, 50, 10), (7_000_000_000, 100, 20), (float("inf"), 200, 20))
"""Parameters below which warmup_steps and precond_freq apply; above the first row they are untested."""


def _chosen_sides(matrix: tuple[int, int], shape: tuple[int, ...], group: Group) -> str:
    if len(shape) < 2:
        return "none"
    if group["sides"] != "auto":
        return str(group["sides"])
    kind = group.get("kind")
    if kind == "vector":
        return "none"
    if kind in ("embedding", "head"):
        return "right"
    if kind is None and max(matrix) >= VOCABULARY_RATIO * min(matrix) and min(matrix) > group["k_exact"]:
        return "right" if matrix[0] > matrix[1] else "left"
    return "both"


def _tracked_rank(dim: int, other: int, group: Group) -> int:
    if dim <= group["k_exact"]:
        return dim
    k_max = group["k_max"] or min(32 if dim <= NARROW_SIDE else 64, 2 * other)
    return min(dim, k_max)


def _refresh_needed(step: int, group: Group) -> bool:
    # The basis is refreshed in the Adam phase too: a product is known only inside the span it was taken in, and the
    # eigenvalues that the second phase starts from would come out too small.
    frequency = group["precond_freq"]
    return step == SCAO.adam_steps(group) or refresh_due(step, frequency) or early_refresh_due(step, frequency)


def _present_sides(state: Storage | State) -> list[str]:
    return [side for side in SIDES if f"{side}_vectors" in state]


def _basis(state: Storage, side: str) -> PartialBasis | None:
    if f"{side}_vectors" not in state:
        return None
    return PartialBasis(state[f"{side}_vectors"], state[f"{side}_coupling"])


def _rotate(state: Storage, matrices: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Rotate (rows, m, n) into the bases; also what tracking needs of it: by side, a matrix and its projection.

    The right side sees Hᵀ G instead of G: the rotation cancels in (Hᵀ G)ᵀ (Hᵀ G) = Gᵀ G.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    rotated = matrices
    left, right = _basis(state, "left"), _basis(state, "right")
    if left is not None:
        rotated, projection = rotate_rows(matrices, left)
        seen["left"] = (matrices, projection)
    if right is not None:
        half = rotated
        rotated, projection = rotate_columns(half, right)
        seen["right"] = (half.mT, projection.mT)
    return rotated, seen


def _unrotate(state: Storage, matrices: Tensor) -> Tensor:
    left, right = _basis(state, "left"), _basis(state, "right")
    if right is not None:
        matrices = unrotate_columns(matrices, right)
    if left is not None:
        matrices = unrotate_rows(matrices, left)
    return matrices


def _adam_in_basis(state: Storage, rotated: Tensor, group: Group, step: int) -> Tensor:
    betas, eps = group["betas"], group["eps"]
    if group["second_moment"] == "elementwise":
        update_moments(state["exp_avg"], state["exp_avg_sq"], rotated, betas)
        return adam_direction(state["exp_avg"], state["exp_avg_sq"], betas, eps, step)
    row, column = state["exp_avg_sq_row"], state["exp_avg_sq_column"]
    state["exp_avg"].lerp_(rotated, 1 - betas[0])
    update_factored_second_moment(row, column, rotated, betas[1])
    return factored_adam_direction(state["exp_avg"], row, column, betas, eps, step)


def _track(state: Storage, seen: dict[str, tuple[Tensor, Tensor]], group: Group, step: int) -> None:
    rho = group["rho"]
    for side, (matrices, projection) in seen.items():
        vectors, product = state[f"{side}_vectors"], state[f"{side}_product"]
        if step == 1:
            first = initial_sketch(matrices, vectors.shape[-1], 1 - rho)
            vectors.copy_(first.vectors)
            product.copy_(first.product)
        else:
            update_sketch(product, matrices, projection, rho)
    matrices = next(iter(seen.values()))[0]
    energy = torch.linalg.vector_norm(matrices, dim=(-2, -1)).square()
    state["trace"].lerp_(torch.where(torch.isfinite(energy), energy, state["trace"]), 1 - rho)


def _refresh_side(state: Storage, side: str, dim: int, group: Group, step: int) -> None:
    old_vectors = state[f"{side}_vectors"].clone()
    sketch, order, failed = refresh_sketch(Sketch(old_vectors, state[f"{side}_product"]))
    unbias = 1 - group["rho"] ** step
    values = tracked_values(sketch) / unbias
    rank = _adaptive_rank(values, state["trace"] / unbias, dim, group)
    blend = blend_weight(step + 1, SCAO.adam_steps(group), group["blend_steps"])
    active = (rank * blend).ceil().long()
    # Of each column as it stands; the rank wants them sorted, and the sketch sorts only approximately.
    of_columns = sketch_values(sketch).clamp_min(0) / unbias
    _carry_second_moment(state, side, order, active, of_columns, group, step)
    state[f"{side}_vectors"].copy_(sketch.vectors)
    state[f"{side}_product"].copy_(sketch.product)
    state[f"{side}_coupling"].copy_(coupling(sketch.vectors, active))
    state[f"{side}_rank"].copy_(active)
    state[f"{side}_drift"].copy_(basis_drift(take_columns(old_vectors, order), sketch.vectors, active))
    state["failures"].add_(failed)


def _adaptive_rank(values: Tensor, trace: Tensor, dim: int, group: Group) -> Tensor:
    tracked = values.shape[-1]
    if tracked == dim:
        return torch.full_like(trace, dim, dtype=torch.int64)
    tail = tail_value(values, trace, dim)
    return excess_spectral_rank(values, tail, 1 - group["epsilon_sparse"], group["k_min"], tracked)


def _carry_second_moment(
    state: Storage, side: str, order: Tensor, active: Tensor, values: Tensor, group: Group, step: int
) -> None:
    """Give each coordinate of a refreshed basis its second moment.

    A column that was active keeps its own; one newly taken in starts from its eigenvalue, the mean of R² along it times
    the length; a coordinate given back to the remainder takes the remainder's mean.
    """
    if group["second_moment"] == "factored":
        moment = state["exp_avg_sq_row" if side == "left" else "exp_avg_sq_column"].unsqueeze(-1)
        profile = torch.ones_like(moment[..., :1, :])
    else:
        moment = state["exp_avg_sq"] if side == "left" else state["exp_avg_sq"].mT
        mean = moment.mean(-2, keepdim=True)
        profile = mean / mean.mean(-1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
    other = state["exp_avg"].shape[-1 if side == "left" else -2]
    unbias = 1 - group["betas"][1] ** step
    tracked = order.shape[-1]
    was = state[f"{side}_rank"].unsqueeze(-1)
    position = torch.arange(tracked, device=order.device)
    carried = torch.take_along_dim(moment[..., :tracked, :], order.unsqueeze(-1), dim=-2)
    fresh = (values * (unbias / other)).unsqueeze(-1) * profile
    remainder = moment[..., tracked:, :].mean(-2, keepdim=True) if moment.shape[-2] > tracked else carried
    resting = torch.where((position < was).unsqueeze(-1), remainder, moment[..., :tracked, :])
    taken = torch.where((order < was).unsqueeze(-1), carried, fresh)
    moment[..., :tracked, :] = torch.where((position < active.unsqueeze(-1)).unsqueeze(-1), taken, resting)
