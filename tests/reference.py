"""The independent judge: every algorithm of the package again, float64, dense, one matrix at a time, in plain loops.

Nothing here is shared with the library: it is written from the papers and the published sources, it imports torch only,
and it spends memory and time freely (d×d maps, m×m factors) where the library must not.

Sources
    SCAO         the published SCAO 0.1 description: the algorithm box and the hyperparameter table.
    SOAP         Vyas et al. (2024), arXiv:2409.11321, as NVIDIA's Emerging-Optimizers builds it: `soap/soap.py`
                 (`SOAP.step`, `init_kronecker_factors`, `update_kronecker_factors`, `update_eigenbasis_and_momentum`,
                 `precondition`), `soap/soap_utils.py` (`get_eigenbasis_eigh`, `get_eigenbasis_qr`), `utils/eig.py`
                 (`orthogonal_iteration`, `met_approx_eigvals_criteria`) and `calculate_adam_update` of
                 `scalar_optimizers`: read for the rules and their order, written anew here.
    Shampoo      Gupta, Koren & Singer (2018), arXiv:1802.09568.
    Adafactor    Shazeer & Stern (2018), arXiv:1804.04235, section 3: the rank-one second moment.
    Householder  Golub & Van Loan, Matrix Computations, 4th edition, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------- Kronecker factors


def identity(dim: int) -> Tensor:
    return torch.eye(dim, dtype=torch.float64)


def kronecker_factors(grads: Sequence[Tensor], beta: float, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """L = EMA of G Gᵀ and R = EMA of Gᵀ G over `grads`, both beginning as `start` times the identity."""
    rows, columns = grads[0].shape
    left, right = start * identity(rows), start * identity(columns)
    for grad in grads:
        grad = grad.double()
        left = beta * left + (1 - beta) * grad @ grad.T
        right = beta * right + (1 - beta) * grad.T @ grad
    return left, right


def debias(factor: Tensor, beta: float, num_updates: int) -> Tensor:
    """Divide by 1 − βᵗ: the weights of the t gradients seen then sum to one."""
    return factor.double() / (1 - beta**num_updates)


def damp(factor: Tensor, absolute: float, relative: float) -> Tensor:
    """factor + max(absolute, relative · tr / d) I."""
    dim = factor.shape[0]
    trace = sum(float(factor[i, i]) for i in range(dim))
    return factor.double() + max(absolute, relative * trace / dim) * identity(dim)


def eigh_descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and their eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.flip(0), vectors.flip(1)


def matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    """A symmetric positive definite matrix to a real power, by its eigendecomposition."""
    values, vectors = eigh_descending(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def projector(vectors: Tensor) -> Tensor:
    """U Uᵀ: equal for two bases of one subspace, whatever the signs and the mixing of equal eigenvalues."""
    return vectors.double() @ vectors.double().T


def orthogonal_iteration(factor: Tensor, basis: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Sort the columns of `basis` by diag(Qᵀ A Q), largest first, then `steps` times Q ← qr(A Q).

    Returns the new basis and the permutation that sorted the old one.
    """
    order = torch.argsort(torch.diag(basis.T @ factor @ basis), descending=True)
    basis = basis[:, order]
    for _ in range(steps):
        basis = torch.linalg.qr(factor @ basis).Q
    return basis, order


def diagonal_enough(factor: Tensor, basis: Tensor, tolerance: float) -> bool:
    """‖diag(Qᵀ A Q)‖ ≥ (1 − tolerance) ‖A‖_F: the basis still serves, so the refresh may be skipped."""
    diagonal = torch.diag(basis.T @ factor @ basis)
    return bool(diagonal.norm() >= (1 - tolerance) * factor.norm())


# ---------------------------------------------------------------------------------------------- rank


def clamp_rank(rank: int, k_min: int, k_max: int, dim: int) -> int:
    return min(max(rank, k_min), k_max, dim)


def rank_by_mass(values: Sequence[float], epsilon: float, total: float | None = None) -> int:
    """Smallest k with Σ_{i≤k} λ_i ≥ (1 − ε) Σ_j λ_j; `total` replaces the sum when only some λ are at hand."""
    whole = sum(values) if total is None else total
    partial = 0.0
    for count, value in enumerate(values, start=1):
        partial += value
        if partial >= (1 - epsilon) * whole:
            return count
    return len(values)


def rank_by_excess(values: Sequence[float], tail: float, epsilon: float) -> int:
    """Smallest k with Σ_{i≤k} (λ_i − σ)₊ ≥ (1 − ε) Σ_{i≤K} (λ_i − σ)₊ over the K tracked values; 0 without excess."""
    excess = [max(value - tail, 0.0) for value in values]
    if sum(excess) == 0:
        return 0
    return rank_by_mass(excess, epsilon)


# ---------------------------------------------------------------------------------------------- preconditioning


def low_rank_correction(grad: Tensor, u: Tensor, s: Tensor, w: Tensor, z: Tensor, power: float = 0.25) -> Tensor:
    """G + U (S^-p C Z^-p − C) Wᵀ with C = Uᵀ G W: the published rule, p = 1/4."""
    grad, u, s, w, z = (tensor.double() for tensor in (grad, u, s, w, z))
    core = u.T @ grad @ w
    scaled = torch.diag(s**-power) @ core @ torch.diag(z**-power)
    return grad + u @ (scaled - core) @ w.T


def natural_gradient_norm(grad: Tensor, u: Tensor, s: Tensor, w: Tensor, z: Tensor, power: float = 0.25) -> float:
    """‖S^-p (Uᵀ G W) Z^-p‖_F, the norm of the scaled core."""
    grad, u, s, w, z = (tensor.double() for tensor in (grad, u, s, w, z))
    core = u.T @ grad @ w
    total = 0.0
    for i in range(core.shape[0]):
        for j in range(core.shape[1]):
            total += float(s[i] ** -power * core[i, j] * z[j] ** -power) ** 2
    return math.sqrt(total)


def tail_level(trace: float, values: Sequence[float], dim: int) -> float:
    """σ = (tr − Σ s) / (d − k): the isotropic tail that keeps the trace; zero when nothing is left out."""
    left_out = dim - len(values)
    return (trace - sum(values)) / left_out if left_out else 0.0


# ---------------------------------------------------------------------------------------------- moments


def adam_direction(m: Tensor, v: Tensor, betas: tuple[float, float], step: int, eps: float) -> Tensor:
    """(m / (1 − β₁ᵗ)) / (sqrt(v / (1 − β₂ᵗ)) + ε)."""
    return (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)


def factored_second_moment(grads: Sequence[Tensor], beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Debiased EMAs r of the row means and c of the column means of G², and the matrix r cᵀ / mean(r)."""
    rows, columns = grads[0].shape
    r, c = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    for grad in grads:
        square = grad.double() ** 2
        for i in range(rows):
            r[i] = beta * r[i] + (1 - beta) * square[i].mean()
        for j in range(columns):
            c[j] = beta * c[j] + (1 - beta) * square[:, j].mean()
    scale = 1 - beta ** len(grads)
    r, c = r / scale, c / scale
    return r, c, torch.outer(r, c) / r.mean()


class AdamW:
    """Loshchilov & Hutter (2019), arXiv:1711.05101, for one tensor."""

    def __init__(self, parameter: Tensor, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        self.parameter = parameter.double().clone()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.m, self.v = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)
        self.steps = 0

    def effective(self, grad: Tensor) -> Tensor:
        """The gradient that the moments see."""
        return grad

    def step(self, grad: Tensor) -> Tensor:
        self.steps += 1
        grad = self.effective(grad.double())
        beta1, beta2 = self.betas
        self.m = beta1 * self.m + (1 - beta1) * grad
        self.v = beta2 * self.v + (1 - beta2) * grad * grad
        update = adam_direction(self.m, self.v, self.betas, self.steps, self.eps)
        self.parameter = (1 - self.lr * self.weight_decay) * self.parameter - self.lr * update
        return self.parameter


# ---------------------------------------------------------------------------------------------- quantisation


def symmetric_int8(tensor: Tensor) -> tuple[Tensor, float]:
    """Codes in −127…127, rounded to the nearest, and the scale absmax / 127 (codes zero for a zero tensor)."""
    scale = float(tensor.double().abs().max()) / 127
    if scale == 0:
        return torch.zeros_like(tensor, dtype=torch.float64), 0.0
    return (tensor.double() / scale).round(), scale


def through_int8(tensor: Tensor) -> Tensor:
    """What is left of a tensor after one trip through per-tensor int8."""
    codes, scale = symmetric_int8(tensor)
    return codes * scale


def through_blockwise_int8(tensor: Tensor, block_size: int) -> Tensor:
    """Each run of `block_size` entries, in memory order, through int8 with its own scale."""
    flat = tensor.double().reshape(-1)
    pieces = [through_int8(flat[begin : begin + block_size]) for begin in range(0, len(flat), block_size)]
    return torch.cat(pieces).reshape(tensor.shape)


# ---------------------------------------------------------------------------------------------- blocks


def block_length(dim: int, max_dim: int) -> int:
    """⌈d / c⌉ for c = ⌈d / max⌉ blocks; d itself when it fits."""
    return math.ceil(dim / math.ceil(dim / max_dim))


def cut(matrix: Tensor, max_dim: int) -> list[tuple[slice, slice, Tensor]]:
    """Contiguous blocks of bounded size with their places, row by row, the ragged ones zero-padded."""
    rows, columns = matrix.shape
    height, width = block_length(rows, max_dim), block_length(columns, max_dim)
    blocks = []
    for top in range(0, rows, height):
        for begin in range(0, columns, width):
            down, across = slice(top, min(top + height, rows)), slice(begin, min(begin + width, columns))
            block = torch.zeros(height, width, dtype=matrix.dtype)
            piece = matrix[down, across]
            block[: piece.shape[0], : piece.shape[1]] = piece
            blocks.append((down, across, block))
    return blocks


def paste(blocks: Sequence[tuple[slice, slice, Tensor]], shape: tuple[int, int]) -> Tensor:
    """The matrix whose cut the blocks are; padding is dropped."""
    matrix = torch.zeros(shape, dtype=torch.float64)
    for down, across, block in blocks:
        matrix[down, across] = block[: down.stop - down.start, : across.stop - across.start]
    return matrix


# ---------------------------------------------------------------------------------------------- SCAO as published


class PublishedBlock:
    """The published preconditioner of one block: dense factors, top eigenpairs, identity-plus-core correction."""

    def __init__(self, rows: int, columns: int, options: PublishedSCAO):
        self.options = options
        self.left, self.right = (self.store(1e-4 * identity(dim)) for dim in (rows, columns))
        self.bases: list[tuple[Tensor, Tensor]] = []

    def store(self, factor: Tensor) -> Tensor:
        return through_int8(factor) if self.options.use_int8_ema else factor

    def accumulate(self, grad: Tensor) -> None:
        rho = self.options.rho
        self.left = self.store(rho * self.left + (1 - rho) * grad @ grad.T)
        self.right = self.store(rho * self.right + (1 - rho) * grad.T @ grad)

    def refresh(self, num_updates: int) -> None:
        options = self.options
        self.bases = []
        for factor in (self.left, self.right):
            regular = damp(debias(factor, options.rho, num_updates), 1e-8, 1e-4)
            values, vectors = eigh_descending(regular)
            rank = rank_by_mass(values.tolist(), options.epsilon_sparse)
            rank = clamp_rank(rank, options.k_min, options.k_max, len(values))
            self.bases.append((vectors[:, :rank], values[:rank]))

    def apply(self, grad: Tensor) -> Tensor:
        (u, s), (w, z) = self.bases
        preconditioned = low_rank_correction(grad, u, s, w, z)
        norm = natural_gradient_norm(grad, u, s, w, z)
        if self.options.tau is not None and norm > self.options.tau:
            preconditioned = preconditioned * (self.options.tau / norm)
        return preconditioned


class PublishedSCAO(AdamW):
    """SCAO as published, for one tensor.

    Step t = 1, 2, …: statistics when t is a multiple of stats_freq; refresh when t is a multiple of precond_freq and
    statistics exist (debias by 1 − ρ^updates, add max(1e-8, 1e-4 tr/d), eigh, rank by the mass of those damped
    values); phase 2 when t > warmup_steps, updates ≥ min_precond_updates and a refresh has happened; there the
    gradient is lerp(G, P(G), min(1, t₂ / blend_steps)), t₂ = 1 on the first such step; then AdamW on it.
    A tensor without two sides longer than one is AdamW throughout. `tau` bounds the norm of each block's scaled core.
    """

    def __init__(
        self,
        parameter: Tensor,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        min_precond_updates: int = 10,
        precond_freq: int = 20,
        stats_freq: int = 1,
        rho: float = 0.999,
        epsilon_sparse: float = 0.05,
        k_min: int = 8,
        k_max: int = 128,
        tau: float | None = None,
        blend_steps: int = 50,
        max_precond_dim: int = 4096,
        use_int8_ema: bool = False,
    ):
        super().__init__(parameter, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.warmup_steps, self.min_precond_updates = warmup_steps, min_precond_updates
        self.precond_freq, self.stats_freq, self.blend_steps = precond_freq, stats_freq, blend_steps
        self.rho, self.epsilon_sparse, self.k_min, self.k_max, self.tau = rho, epsilon_sparse, k_min, k_max, tau
        self.max_precond_dim, self.use_int8_ema = max_precond_dim, use_int8_ema
        self.num_updates = self.num_refreshes = self.phase_two_steps = 0
        self.matrix_shape = (parameter.shape[0], parameter[0].numel()) if parameter.ndim >= 2 else None
        if self.matrix_shape is not None and min(self.matrix_shape) == 1:
            self.matrix_shape = None
        if self.matrix_shape is not None:
            pieces = cut(torch.zeros(self.matrix_shape, dtype=torch.float64), max_precond_dim)
            self.blocks = [PublishedBlock(block.shape[0], block.shape[1], options=self) for _, _, block in pieces]

    def in_phase_two(self) -> bool:
        return (
            self.steps > self.warmup_steps and self.num_updates >= self.min_precond_updates and self.num_refreshes > 0
        )

    def effective(self, grad: Tensor) -> Tensor:
        if self.matrix_shape is None:
            return grad
        pieces = cut(grad.reshape(self.matrix_shape), self.max_precond_dim)
        if self.steps % self.stats_freq == 0:
            for block, (_, _, piece) in zip(self.blocks, pieces, strict=True):
                block.accumulate(piece)
            self.num_updates += 1
        if self.steps % self.precond_freq == 0 and self.num_updates > 0:
            for block in self.blocks:
                block.refresh(self.num_updates)
            self.num_refreshes += 1
        if not self.in_phase_two():
            return grad
        self.phase_two_steps += 1
        blend = min(1.0, self.phase_two_steps / self.blend_steps) if self.blend_steps else 1.0
        applied = [(a, b, block.apply(piece)) for block, (a, b, piece) in zip(self.blocks, pieces, strict=True)]
        preconditioned = paste(applied, self.matrix_shape).reshape(grad.shape)
        return (1 - blend) * grad + blend * preconditioned


# ---------------------------------------------------------------------------------------------- SOAP as published


class SOAP:
    """SOAP as NVIDIA's Emerging-Optimizers publishes it, for one tensor of any number of dimensions.

    Order inside one step: seed the factors with the first gradient; decay; project the gradient into the bases (none
    yet: as it is); Adam there; project back; the two normalisations and the clip; move; update the factors with this
    gradient; then either seed the bases by eigh (step == adam_warmup_steps), refresh them, or leave them.

    A dimension longer than `max_precond_dim` has no basis; a one-dimensional tensor has one only on request.
    A decayed gradient (use_decoupled_weight_decay=False) reaches the factors from their second update on, because the
    published code seeds them before it adds the decay.
    """

    def __init__(
        self,
        parameter: Tensor,
        *,
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
        use_eigh: bool = False,
        use_adaptive_criteria: bool = False,
        adaptive_update_tolerance: float | None = None,
        power_iter_steps: int = 1,
        max_update_rms: float = 0.0,
    ):
        self.parameter = parameter.double().clone()
        self.lr, self.eps, self.weight_decay, self.decoupled = lr, eps, weight_decay, use_decoupled_weight_decay
        self.betas = (0.95, 0.95) if betas is None else betas
        self.shampoo_beta = shampoo_beta if shampoo_beta >= 0 else self.betas[1]
        self.nesterov, self.correct_bias = use_nesterov, correct_bias
        self.frequency = precondition_frequency
        self.precondition_warmup_steps = precondition_warmup_steps
        adam_warmup_steps = max(1, adam_warmup_steps)
        if 0 < precondition_warmup_steps <= adam_warmup_steps:
            adam_warmup_steps = max(1, precondition_warmup_steps - 1)
        self.adam_warmup_steps = adam_warmup_steps
        self.trace_normalization, self.rms_normalization = trace_normalization, normalize_preconditioned_grads
        self.use_eigh, self.power_iter_steps, self.max_update_rms = use_eigh, power_iter_steps, max_update_rms
        tolerance = 1e-7 if adaptive_update_tolerance is None else adaptive_update_tolerance
        self.tolerance = tolerance if use_adaptive_criteria else None
        wanted = parameter.ndim > 1 or precondition_1d
        self.dims = [i for i, size in enumerate(parameter.shape) if wanted and size <= max_precond_dim]
        self.factors: dict[int, Tensor] = {}
        self.bases: dict[int, Tensor] = {}
        self.m, self.v = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)
        self.steps = self.skipped = 0

    def outer(self, grad: Tensor, dim: int) -> Tensor:
        """Contract every dimension but one: the Gram matrix of the unfolding along it."""
        unfolded = grad.movedim(dim, 0).reshape(grad.shape[dim], -1)
        return unfolded @ unfolded.T

    def update_factors(self, grad: Tensor, beta: float) -> None:
        for dim in self.dims:
            old = self.factors.get(dim, torch.zeros(1, dtype=torch.float64))
            self.factors[dim] = beta * old + (1 - beta) * self.outer(grad, dim)

    def into(self, tensor: Tensor) -> Tensor:
        for dim, basis in self.bases.items():
            tensor = torch.tensordot(basis.T, tensor.movedim(dim, 0), dims=1).movedim(0, dim)
        return tensor

    def out_of(self, tensor: Tensor) -> Tensor:
        for dim, basis in self.bases.items():
            tensor = torch.tensordot(basis, tensor.movedim(dim, 0), dims=1).movedim(0, dim)
        return tensor

    def adam(self, grad: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        self.m = beta1 * self.m + (1 - beta1) * grad
        self.v = beta2 * self.v + (1 - beta2) * grad * grad
        t = self.steps
        scale1, scale2, ahead = (1 - beta1**t, 1 - beta2**t, 1 - beta1 ** (t + 1)) if self.correct_bias else (1, 1, 1)
        momentum = self.m / scale1
        if self.nesterov:
            momentum = beta1 * self.m / ahead + (1 - beta1) * grad / scale1
        return momentum / ((self.v / scale2).sqrt() + self.eps)

    def refresh_due(self) -> bool:
        if self.steps <= self.adam_warmup_steps:
            return False
        frequency = self.frequency(self.steps) if callable(self.frequency) else self.frequency
        return self.steps <= self.precondition_warmup_steps or self.steps % frequency == 0

    def refresh(self) -> None:
        momentum = self.out_of(self.m)
        for dim, factor in self.factors.items():
            basis = self.bases[dim]
            if self.tolerance is not None and diagonal_enough(factor, basis, self.tolerance):
                self.skipped += 1
            elif self.use_eigh:
                self.bases[dim] = eigh_descending(factor)[1]
            else:
                self.bases[dim], order = orthogonal_iteration(factor, basis, self.power_iter_steps)
                self.v = self.v.index_select(dim, order)
        self.m = self.into(momentum)

    def step(self, grad: Tensor) -> Tensor:
        grad = grad.double()
        if self.steps == 0:
            self.update_factors(grad, beta=0.0)
        self.steps += 1
        if self.weight_decay > 0 and self.decoupled:
            self.parameter = self.parameter - self.lr * self.weight_decay * self.parameter
        elif self.weight_decay > 0:
            grad = grad + self.weight_decay * self.parameter
        update = self.out_of(self.adam(self.into(grad)))
        if self.trace_normalization and 0 in self.factors:
            update = update * torch.trace(self.factors[0]).sqrt()
        if self.rms_normalization:
            update = update / (1e-30 + (update**2).mean().sqrt())
        if self.max_update_rms > 0:
            update = update * min(1.0, self.max_update_rms / (float((update**2).mean().sqrt()) + 1e-12))
        self.parameter = self.parameter - self.lr * update
        beta = self.shampoo_beta
        if self.correct_bias:
            beta = 1 - (1 - beta) / (1 - beta ** (self.steps + 1))
        self.update_factors(grad, beta)
        if self.steps == self.adam_warmup_steps:
            self.bases = {dim: eigh_descending(factor)[1] for dim, factor in self.factors.items()}
            self.m = self.into(self.m)
        elif self.refresh_due():
            self.refresh()
        return self.parameter


# ---------------------------------------------------------------------------------------------- SCAO


def rotate(tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.double().T @ tensor.double() @ right.double()


def cholesky(matrix: Tensor) -> Tensor:
    """C, lower triangular, with C Cᵀ = A, entry by entry."""
    entries, lower = matrix.double().tolist(), [[0.0] * len(matrix) for _ in matrix]
    for i, row in enumerate(lower):
        for j in range(i + 1):
            left = entries[i][j] - sum(row[p] * lower[j][p] for p in range(j))
            row[j] = math.sqrt(left) if i == j else left / lower[j][j]
    return torch.tensor(lower, dtype=torch.float64)


def orthogonal_rows(matrix: Tensor, damping: float, floor: float = 0.0) -> Tensor:
    """C⁻¹ X with C Cᵀ = X Xᵀ + (damping · mean diag(X Xᵀ) + floor) I, by forward substitution."""
    gram = matrix @ matrix.T
    lower = cholesky(gram + (damping * float(torch.diag(gram).mean()) + floor) * identity(len(gram)))
    rows = torch.zeros_like(matrix)
    for i in range(len(matrix)):
        rows[i] = (matrix[i] - lower[i, :i] @ rows[:i]) / lower[i, i]
    return rows


def whiten(matrix: Tensor, frame: Tensor, active: int, block_rows: int, damping: float, noise_floor: float) -> Tensor:
    """U Z + V: Z the orthogonal rows of Uᵀ X, V those of each block of X − (X Zᵀ) Z, of Z the `active` first."""
    matrix, frame = matrix.double(), frame.double()
    rows, rank = frame.shape
    tracked = orthogonal_rows(frame.T @ matrix, damping)
    if rank == rows:
        return frame @ tracked
    tracked = tracked[:active]
    left = matrix - matrix @ tracked.T @ tracked
    size = math.ceil(rows / math.ceil(rows / block_rows))
    floor = noise_floor * float((matrix**2).sum()) / rows
    pieces = []
    for start in range(0, rows, size):
        piece = left[start : start + size]
        # A short last block is damped as if rows of zeros filled it up.
        pieces.append(orthogonal_rows(piece, damping * len(piece) / size, floor))
    return frame[:, :active] @ tracked + torch.cat(pieces)


class SCAOBlock:
    """SCAO on one block, in the block's own orientation; `turned` says that its columns are the short side."""

    def __init__(self, shape: tuple[int, int], frame: Tensor, options: SCAO):
        self.options, self.turned = options, shape[0] > shape[1]
        self.rms = 2.0 * math.sqrt(shape[0] / shape[1])
        short, long = sorted(shape)
        self.frame, self.active = frame.double(), frame.shape[1]
        self.m = torch.zeros(short, long, dtype=torch.float64)
        self.sizes = torch.ones(long, dtype=torch.float64)
        self.grads: list[Tensor] = []

    def direction(self, grad: Tensor, weights: Tensor) -> Tensor:
        options = self.options
        beta1, beta2 = options.betas
        grad = grad.T if self.turned else grad
        self.m = beta1 * self.m + (1 - beta1) * grad
        ahead = beta1 * self.m + (1 - beta1) * grad
        weight = options.blend(options.steps)
        result = torch.zeros_like(grad)
        if weight < 1:
            self.grads.append(grad)
            second = factored_second_moment(self.grads, beta2)[2] * (1 - beta2**options.steps)
            adam = adam_direction(self.m, second, options.betas, options.steps, options.eps)
            result = (1 - weight) * options.limited(adam, weights)
        if weight > 0:
            white = self.rms * self.whitened(ahead, beta2)
            result = result + weight * options.limited(white, weights)
        if options.refresh_due():
            self.turn(ahead)
        return result.T if self.turned else result

    def whitened(self, ahead: Tensor, beta: float) -> Tensor:
        options = self.options
        white = whiten(ahead, self.frame, self.active, options.block_rows, options.damping, options.noise_floor)
        for j in range(white.shape[1]):
            present = white.shape[1] * float((white[:, j] ** 2).mean())
            self.sizes[j] = beta * self.sizes[j] + (1 - beta) * present
        even = white / self.sizes.sqrt()
        return even / (even**2).mean().sqrt()

    def turn(self, ahead: Tensor) -> None:
        options, (dim, tracked) = self.options, self.frame.shape
        gram = ahead @ ahead.T
        values = sorted(torch.diag(self.frame.T @ gram @ self.frame).tolist(), reverse=True)
        self.frame = torch.linalg.qr(gram @ self.frame).Q
        if tracked < dim:
            tail = max(0.0, tail_level(float(torch.trace(gram)), values, dim))
            needed = rank_by_excess(values, tail, options.epsilon_sparse)
            self.active = clamp_rank(needed, options.k_min, tracked, dim)


class SCAO:
    """SCAO for one tensor, block by block; the first frames, pseudo-random, are given.

    Step t: the momentum takes the gradient; the direction is Adam's up to step max(warmup_steps, min_precond_updates),
    the whitened one from `blend_steps` later on, and between them a mixture; then, when t is a multiple of
    precond_freq, or 2, 3 or 6 and below it, the frames turn and the active rank is chosen anew. A direction of either
    kind and of norm a is divided by 1 + peak · a / b, where peak is the largest learning rate so far and b is tau times
    the norm of the block's weights, whose root mean square counts as 0.1 / √columns at least. In a run of N < 200
    total steps tau counts √(200 / N) times.

    Args:
        frames: for each block, row by row, the frame (d, k) of its short side at the first step.
        noise_floor: the library's constant.
    """

    def __init__(
        self,
        parameter: Tensor,
        frames: Sequence[Tensor],
        noise_floor: float,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        warmup_steps: int,
        blend_steps: int,
        min_precond_updates: int,
        precond_freq: int,
        k_min: int,
        epsilon_sparse: float,
        block_rows: int,
        damping: float,
        max_precond_dim: int,
        tau: float | None,
        total_steps: int | None,
    ):
        self.parameter = parameter.double().clone()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.last_adam_step = max(warmup_steps, min_precond_updates)
        self.blend_steps, self.precond_freq = blend_steps, precond_freq
        self.k_min, self.epsilon_sparse = k_min, epsilon_sparse
        self.block_rows, self.damping, self.noise_floor = block_rows, damping, noise_floor
        self.max_precond_dim, self.tau = max_precond_dim, tau
        if tau is not None and total_steps is not None and total_steps < 200:
            self.tau = tau * math.sqrt(200 / total_steps)
        self.matrix_shape = (parameter.shape[0], parameter[0].numel())
        pieces = cut(torch.zeros(self.matrix_shape), max_precond_dim)
        self.blocks = [
            SCAOBlock((block.shape[0], block.shape[1]), frame, self)
            for (_, _, block), frame in zip(pieces, frames, strict=True)
        ]
        self.steps, self.peak_lr = 0, 0.0

    def blend(self, step: int) -> float:
        if step <= self.last_adam_step:
            return 0.0
        return min(1.0, (step - self.last_adam_step) / self.blend_steps) if self.blend_steps else 1.0

    def refresh_due(self) -> bool:
        early = self.steps in (2, 3, 6) and self.steps < self.precond_freq
        return early or self.steps % self.precond_freq == 0

    def limited(self, direction: Tensor, weight: Tensor) -> Tensor:
        if self.tau is None:
            return direction
        size = max(float((weight**2).mean().sqrt()), 0.1 / math.sqrt(weight.shape[1])) * math.sqrt(weight.numel())
        length = self.peak_lr * float((direction**2).sum().sqrt())
        return direction / (1 + length / (self.tau * size))

    def step(self, grad: Tensor) -> Tensor:
        self.steps += 1
        self.peak_lr = max(self.peak_lr, self.lr)
        pieces = cut(grad.double().reshape(self.matrix_shape), self.max_precond_dim)
        weights = cut(self.parameter.reshape(self.matrix_shape), self.max_precond_dim)
        moved = [
            (down, across, block.direction(piece, weight))
            for block, (down, across, piece), (_, _, weight) in zip(self.blocks, pieces, weights, strict=True)
        ]
        update = paste(moved, self.matrix_shape).reshape(self.parameter.shape)
        self.parameter = (1 - self.lr * self.weight_decay) * self.parameter - self.lr * update
        return self.parameter
