"""SCAO: momentum whitened at low rank, exactly in a tracked subspace and block by block in the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from scao_hf.numerics.blocks import block_shape
from scao_hf.numerics.eigenbasis import basis_drift, excess_spectral_rank, tail_value
from scao_hf.numerics.moments import factored_adam_direction, update_factored_second_moment
from scao_hf.numerics.whitening import Whitened, even_columns, initial_subspace, turn_subspace, whiten
from scao_hf.optim.compression import STATE_DTYPES
from scao_hf.optim.diagnostics import LayerDiagnostics, mass_share
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
from scao_hf.optim.schedule import blend_weight, early_refresh_due, refresh_due
from scao_hf.optim.stack import Layout, State, Storage

UPDATE_RMS = 2.0
"""Root mean square of an unbounded update of a square matrix, and of any low-rank factor, at a learning rate of 1."""
LEAST_WEIGHT = 0.1
"""What `tau` takes for the root mean square of weights that are smaller, in units of 1/√columns, such as of zeros."""
VOCABULARY_RATIO = 16
"""A matrix this many times longer than wide, and not a low-rank factor, is taken for a table over a vocabulary."""
SHORT_RUN = 200
"""Steps below which a run is too short to go its way in steps of `tau`."""


@final
class SCAO(KroneckerOptimizer):
    """Momentum whitened at low rank: Shampoo's direction at a fraction of its cost, in less memory than AdamW.

    For a matrix with gradient G, turned so that its short side m comes first, (m, n):

        M <- β₁ M + (1 − β₁) G,   X = β₁ M + (1 − β₁) G             momentum, looking ahead
        P = Uᵀ X,   C Cᵀ = P Pᵀ + δ I,   Z = C⁻¹ P                  the tracked rows, made orthonormal
        R = X − (X Zᵀ) Z,   V_b = C_b⁻¹ R_b,  C_b C_bᵀ = R_b R_bᵀ + δ_b I    the rest, in blocks of rows
        W = U Z + V                                                 every singular value near 1
        v <- β₂ v + (1 − β₂) mean_i n W_ij²,   D = W / √v           columns of even size
        p <- (1 − lr·λ) p − s · lr · c · D / rms(D)

    with c = 2 √(rows / columns), or 2 for a low-rank factor, and s = 1 / (1 + a / (tau ‖p‖)), a being the norm that the
    update would have at the largest learning rate so far. At that rate an update much shorter than `tau` ‖p‖ stays as
    it is, and none gets longer (weights below 0.1/√columns count as that); from then on both follow the schedule down.
    So AdamW's learning rate is where to start, and a larger one does little harm. A run of N < 200 `total_steps` has
    fewer steps to get anywhere in: there `tau`, given or not, counts √(200 / N) times.
    U (m, k) follows the leading eigenvectors of X Xᵀ: every `precond_freq` steps U <- orth(X Zᵀ), one step of
    orthogonal iteration, of a product that the step needs anyway. With k = m, W is an orthogonal factor of X, as in
    Muon but by a Cholesky factor; nothing of size m×m is formed for k < m. δ and δ_b are `damping` times the mean
    diagonal.

    Two phases: Adam, with a second moment of rank one, for `max(warmup_steps, min_precond_updates)` steps; then the
    whitened direction takes over along a linear ramp of `blend_steps`. Of the k tracked directions the leading ones
    are used, the smallest number with

        Σ_i (λ_i − σ)₊ ≥ (1 − epsilon_sparse) Σ_{i≤k} (λ_i − σ)₊,    σ the mean eigenvalue of the untracked rest.

    What takes AdamW: vectors, embeddings and heads (groups with a `kind` from `scao_hf.parameter_groups`, or by shape:
    one side 16 times the other and the shorter above `k_exact`), and groups whose `sides` is "none".

    Memory of a matrix, in bytes, with m ≤ n; AdamW's is 8·m·n:

        4 [mn + mk + m + 2n + k + 3] + 16

    and times the number of blocks where a side exceeds `max_precond_dim`. In float32 whatever the dtype of the
    parameters, unless `state_dtype` says otherwise.

    Args:
        params: parameters or groups; `kind` and `sides` may be set per group.
        lr: learning rate; AdamW's is where to start.
        betas: (β₁, β₂).
        eps: ε of AdamW's step, outside the root.
        weight_decay: λ, decoupled.
        warmup_steps: steps of Adam before the second phase.
        blend_steps: length of the ramp that follows; 0 switches at once.
        min_precond_updates: gradients the momentum must have seen before the second phase.
        precond_freq: steps between two refreshes of U.
        k_min: least number of directions in use.
        k_max: directions tracked of a side that is longer than `k_exact`.
        k_exact: sides up to this length are whitened whole.
        epsilon_sparse: share of the excess spectral mass that the directions in use may leave out; 0 keeps all that
            stand above the rest.
        block_rows: rows of a block of the rest.
        damping: relative Tikhonov damping of every Gram matrix.
        tau: what the norm of an update approaches where the learning rate is too large, in units of the weights'
            norm, in both phases: at the schedule's peak and in proportion to the rate after it; None for no bound.
        total_steps: length of the run, for `tau`, which 200 or more leave as it is. None takes what `set_total_steps`
            was told, as it is by transformers' Trainer, or 200.
        max_precond_dim: longer sides are cut into equal blocks, each with a subspace of its own.
        state_dtype: of momentum, AdamW's moments and U between steps: "float32"; "bfloat16"; or "int8", with second
            moments and U in bfloat16. Rounded along offsets that even out over the steps, so that averages are not
            biased.
        compile: run the two kernels through `torch.compile`: half a minute at the start, a shorter step from then on.
            They see neither the step nor the learning rate, so that nothing compiles again later.
        sides: "auto" and "both" whiten the short side, "left" the rows, "right" the columns; "none" is AdamW.

    Raises:
        ValueError: a value out of range, named with what would do.
        TypeError: a value of the wrong kind; a complex or sparse parameter.

    Sources: momentum with its singular values made equal: Muon, Jordan et al. (2024); by a triangular factor: MUD,
    Southworth & Thomas (2026), arXiv:2603.17970; evened along one side: NorMuon, Li et al. (2025), arXiv:2510.05491;
    updates in units of the weights: LARS, You, Gitman & Ginsburg (2017), arXiv:1708.03888; low rank, two phases: the
    SCAO 0.1 README. What was measured on the way is in docs/algorithm.md. A gradient with NaN or Inf leaves U alone
    and reaches the momentum, as it would in AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        warmup_steps: int = 0,
        blend_steps: int = 0,
        min_precond_updates: int = 0,
        precond_freq: int = 10,
        k_min: int = 1,
        k_max: int = 64,
        k_exact: int = 64,
        epsilon_sparse: float = 0.0,
        block_rows: int = 16,
        damping: float = 1e-4,
        tau: float | None = 0.06,
        total_steps: int | None = None,
        max_precond_dim: int = 16384,
        state_dtype: str = "float32",
        compile: bool = False,
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
            "k_min": k_min,
            "k_max": k_max,
            "k_exact": k_exact,
            "epsilon_sparse": epsilon_sparse,
            "block_rows": block_rows,
            "damping": damping,
            "tau": tau,
            "total_steps": total_steps,
            "max_precond_dim": max_precond_dim,
            "state_dtype": state_dtype,
            "compile": compile,
            "sides": sides,
        }
        super().__init__(params, defaults)

    @staticmethod
    def recommended(num_params: int) -> dict[str, Any]:
        """Settings to start from, by model size; measured below 10 million parameters only.

        From a billion parameters on memory is what runs out first, and the state is kept in half of it.

        Args:
            num_params: parameters of the model.

        Returns:
            Keyword arguments of the constructor.
        """
        if num_params < 1_000_000_000:
            return {"precond_freq": 10}
        return {"precond_freq": 20, "state_dtype": "bfloat16"}

    def set_total_steps(self, steps: int) -> None:
        """Tell how long the run is, for groups that have no `total_steps` of their own; the last call counts.

        With this package imported transformers' Trainer does it where it makes the learning rate's schedule. A subclass
        with a `create_scheduler` that does not call its parent's has to, and so does a loop of one's own. What was told
        is saved with the state; told again before a state is loaded, as by a run that is to go on for longer, the new
        length stays.

        Args:
            steps: optimizer steps from the first to the last.

        Raises:
            ValueError: less than one step.
            TypeError: not a whole number.
        """
        require_count("steps", steps, 1)
        for group in self.param_groups:
            group["told_steps"] = steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `KroneckerOptimizer.load_state_dict`; see `set_total_steps` for what becomes of the length of the run."""
        told = [group.get("told_steps") for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, steps in zip(self.param_groups, told, strict=True):
            if steps is not None:
                group["told_steps"] = steps

    @staticmethod
    def _validate(group: Group) -> None:
        for name in ("warmup_steps", "blend_steps", "min_precond_updates", "k_exact"):
            require_count(name, group[name], 0)
        for name, least in (("precond_freq", 1), ("k_min", 1), ("k_max", 1), ("block_rows", 1), ("max_precond_dim", 2)):
            require_count(name, group[name], least)
        require_number("epsilon_sparse", group["epsilon_sparse"], 0.0, 1.0, open_high=True)
        require_number("damping", group["damping"], 1e-6)  # float32 factors nothing less
        if group["tau"] is not None:
            require_number("tau", group["tau"], 0.0)
        if group["total_steps"] is not None:
            require_count("total_steps", group["total_steps"], 1)
        require_flag("compile", group["compile"])
        if group["state_dtype"] not in STATE_DTYPES:
            raise ValueError(f"state_dtype must be one of {', '.join(STATE_DTYPES)}, got {group['state_dtype']!r}")
        if group["k_min"] > group["k_max"]:
            raise ValueError(
                f"k_min must not exceed k_max, got k_min={group['k_min']}, k_max={group['k_max']}; lower k_min"
            )

    @staticmethod
    def _layout(shape: tuple[int, ...], group: Group) -> Layout:
        cut = block_shape(shape, group["max_precond_dim"])
        side = _whitened_side((cut.rows, cut.columns), shape, group)
        if min(cut.size) < 2 or side == "none":
            return Layout(shape, (0,) * len(shape))
        rows, columns = cut.size
        if side == "left":
            return Layout(cut.size, (_tracked_rank(rows, columns, group), 0), cut)
        return Layout(cut.size, (0, _tracked_rank(columns, rows, group)), cut)

    @staticmethod
    def _create(rows: int, layout: Layout, group: Group, device: torch.device) -> Storage:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device)

        rank, side = max(layout.ranks), _whitened_length(layout)
        return {
            "exp_avg": zeros(*layout.row_shape),
            "exp_avg_sq_row": zeros(layout.row_shape[0]),
            "exp_avg_sq_column": zeros(layout.row_shape[1]),
            # Before anything was seen every column of an orthogonal factor has the mean square 1.
            "whitened_sq": torch.ones(rows, math.prod(layout.row_shape) // side, device=device),
            "vectors": zeros(side, rank),
            "values": zeros(rank),
            "trace": zeros(),
            "peak_lr": zeros(),
            "drift": zeros(),
            "rank": zeros().long(),
            "failures": zeros().long(),
        }

    @staticmethod
    def _update(
        state: Storage, grads: Tensor, layout: Layout, group: Group, step: int, refresh: Refresh, read_norms: ReadNorms
    ) -> Tensor:
        momentum, (beta1, beta2) = state["exp_avg"], group["betas"]
        whiten_rows, even = _compiled() if group["compile"] else (whiten, even_columns)
        momentum.lerp_(grads, 1 - beta1)
        ahead = torch.lerp(grads, momentum, beta1)
        ahead = ahead.mT if layout.ranks[1] else ahead  # the short side first
        if step == 1:
            state["vectors"].copy_(initial_subspace(ahead, max(layout.ranks)))
            state["rank"].fill_(max(layout.ranks))
        state["peak_lr"].clamp_(min=group["lr"])
        weight = blend_weight(step, SCAO.adam_steps(group), group["blend_steps"])
        turn = refresh_due(step, group["precond_freq"]) or early_refresh_due(step, group["precond_freq"])
        directions = []
        if weight < 1:
            adam = _adam_direction(state, grads, group, step)
            rms = torch.linalg.vector_norm(adam, dim=(-2, -1)) / math.sqrt(math.prod(layout.row_shape))
            scale = _bounded(torch.ones_like(rms), rms, state, read_norms, layout, group)
            directions.append(adam.mul_(scale[:, None, None]))
        if weight > 0 or turn:
            whitened = whiten_rows(ahead, state["vectors"], state["rank"], group["block_rows"], group["damping"])
            state["failures"].add_(whitened.failed)
            if turn:
                refresh(whitened)
            if weight > 0:
                size = torch.full_like(state["trace"], _update_rms(layout, group))
                size = _bounded(size, size, state, read_norms, layout, group)
                evened = even(whitened.matrix, state["whitened_sq"], beta2, size, whitened.spare)
                directions.append(evened.mT if layout.ranks[1] else evened)
        return directions[0] if len(directions) == 1 else directions[0].lerp_(directions[1], weight)

    @staticmethod
    def _refresh(state: Storage, layout: Layout, group: Group, step: int, whitened: Whitened) -> None:
        values, trace = whitened.values, whitened.trace
        vectors, failed = turn_subspace(state["vectors"], whitened.image)
        rank = _adaptive_rank(values, trace, layout, group)
        drift = basis_drift(state["vectors"], vectors, rank)
        # Where squares overflow the image can be finite and mean nothing.
        good = ~failed & torch.isfinite(values).all(-1) & torch.isfinite(trace)
        seen = {"vectors": vectors, "values": values, "trace": trace, "drift": drift, "rank": rank}
        for name, new in seen.items():
            state[name].copy_(torch.where(good.view(-1, *[1] * (new.ndim - 1)), new, state[name]))
        state["failures"].add_(~good)

    @staticmethod
    def adam_steps(group: Group) -> int:
        return max(group["warmup_steps"], group["min_precond_updates"])

    @staticmethod
    def _diagnose(state: State, layout: Layout, group: Group) -> LayerDiagnostics:
        values = state["values"].sort(-1, descending=True).values
        return LayerDiagnostics(
            blend=blend_weight(state["step"], SCAO.adam_steps(group), group["blend_steps"]),
            ranks=(float(state["rank"].float().mean()),),
            mass_kept=mass_share(values, state["rank"], state["trace"]),
            curvature_norm=float(state["trace"].mean()) / _whitened_length(layout),
            basis_drift=float(state["drift"].mean()),
            failures=int(state["failures"].sum()),
        )


def _whitened_side(matrix: tuple[int, int], shape: tuple[int, ...], group: Group) -> str:
    if len(shape) < 2 or group.get("kind") == "vector":
        return "none"
    short = "left" if matrix[0] <= matrix[1] else "right"
    if group["sides"] != "auto":
        return short if group["sides"] == "both" else str(group["sides"])
    if group.get("kind") in ("embedding", "head"):
        return "none"
    is_table = max(matrix) >= VOCABULARY_RATIO * min(matrix) and min(matrix) > group["k_exact"]
    return "none" if "kind" not in group and is_table else short


def _tracked_rank(side: int, other: int, group: Group) -> int:
    return min(side, other) if side <= group["k_exact"] else min(side, other, group["k_max"])


@functools.cache
def _compiled() -> tuple[Callable[..., Whitened], Callable[..., Tensor]]:
    return torch.compile(whiten, dynamic=False), torch.compile(even_columns, dynamic=False)


def _whitened_length(layout: Layout) -> int:
    return layout.row_shape[1 if layout.ranks[1] else 0]


def _adam_direction(state: Storage, grads: Tensor, group: Group, step: int) -> Tensor:
    row, column = state["exp_avg_sq_row"], state["exp_avg_sq_column"]
    update_factored_second_moment(row, column, grads, group["betas"][1])
    return factored_adam_direction(state["exp_avg"], row, column, group["betas"], group["eps"], step)


def _update_rms(layout: Layout, group: Group) -> float:
    if group.get("kind") in ("lora_a", "lora_b"):
        return UPDATE_RMS
    rows, columns = layout.row_shape
    return UPDATE_RMS * math.sqrt(rows / columns)


def _bounded(scale: Tensor, rms: Tensor, state: State, read_norms: ReadNorms, layout: Layout, group: Group) -> Tensor:
    """Scales (rows,) of directions whose entries have this root mean square, as far as the bound lets them."""
    if group["tau"] is None:
        return scale
    rows, columns = layout.row_shape
    root, peak = math.sqrt(rows * columns), state["peak_lr"]
    longest = _tau(group) * read_norms().clamp_min(LEAST_WEIGHT / math.sqrt(columns) * root)
    # `longest` is zero where tau is, and so is the rest where the learning rate or the direction is.
    return scale * longest / (longest + peak * rms * root).clamp_min(torch.finfo(rms.dtype).tiny)


def _tau(group: Group) -> float:
    steps = group["total_steps"] or group.get("told_steps") or SHORT_RUN
    return group["tau"] * math.sqrt(max(1.0, SHORT_RUN / steps))


def _adaptive_rank(values: Tensor, trace: Tensor, layout: Layout, group: Group) -> Tensor:
    dim, tracked = _whitened_length(layout), values.shape[-1]
    if tracked == dim:
        return torch.full_like(trace, dim, dtype=torch.int64)
    ordered = values.sort(-1, descending=True).values
    tail = tail_value(ordered, trace, dim)
    return excess_spectral_rank(ordered, tail, 1 - group["epsilon_sparse"], group["k_min"], tracked)
