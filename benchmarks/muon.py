"""Muon and a NorMuon-like variant for the matrices of a model, AdamW for the rest, as one optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Jordan et al. (2024): steepest at zero; singular values end in about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update that lets Muon take AdamW's learning rates (Liu et al. 2025, arXiv:2502.16982)."""
MATRIX_KINDS = frozenset({"matrix", "lora_a", "lora_b"})


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Five Newton–Schulz iterations towards the nearest semi-orthogonal matrix.

        X <- X/‖X‖_F,   then   A = X Xᵀ,   X <- a X + (b A + c A²) X

    Args:
        matrices: (..., m, n); the iterations run on the transpose where m > n.
        dtype: of the iterations; bfloat16 is fast on GPUs and several times slower than float32 on CPUs.

    Returns:
        (..., m, n), of `dtype`.

    Source: K. Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices; AdamW for groups of any other kind.

        M <- β₁ M + (1 − β₁) G,   U = orthogonalise(β₁ M + (1 − β₁) G)
        p <- (1 − lr·λ) p − lr · 0.2 √max(m, n) · U

    with `normalise_rows` (NorMuon-like) the rows of U are divided by the root of their running mean square and the
    whole by its root mean square: p <- (1 − lr·λ) p − 0.2 lr · U / rms(U).

    Matrices of equal shape are orthogonalised as one batch. `torch.optim.Muon` is the same update for one matrix at a
    time, in bfloat16; tests compare them.

    Args:
        groups: from `scao_hf.parameter_groups`; `kind` says which groups hold matrices.
        lr: learning rate.
        betas: β₁ is Muon's momentum; both are AdamW's, and β₂ is the decay of the rows' mean square.
        weight_decay: λ, decoupled.
        normalise_rows: the NorMuon-like variant (after Li et al. 2025, arXiv:2510.05491).

    Source: Jordan et al. (2024); scaling to AdamW's root mean square: Liu et al. (2025), arXiv:2502.16982.
    """

    def __init__(
        self,
        groups: Any,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.1,
        normalise_rows: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})
        self.normalise_rows = normalise_rows

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] in MATRIX_KINDS:
                for batch in _by_shape(parameters):
                    self._orthogonal_step(batch, group)
            elif parameters:
                self._adam_step(parameters, group)
        return loss

    def _orthogonal_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = 0
                if self.normalise_rows:
                    state["row_mean_square"] = torch.zeros_like(parameter[:, :1])
            state["step"] += 1
            momenta.append(state["momentum_buffer"])
        grads = _grads(parameters)
        torch._foreach_lerp_(momenta, grads, 1 - beta1)
        lookahead = torch.stack(torch._foreach_lerp(grads, momenta, beta1))
        dtype = torch.bfloat16 if lookahead.is_cuda else torch.float32
        updates = orthogonalise(lookahead, dtype).to(lookahead.dtype)
        if self.normalise_rows:
            updates = self._row_normalised(updates, parameters, beta2)
            scale = RMS
        else:
            scale = RMS * math.sqrt(max(updates.shape[-2:]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)

    def _row_normalised(self, updates: Tensor, parameters: list[Tensor], beta2: float) -> Tensor:
        averages = [self.state[parameter]["row_mean_square"] for parameter in parameters]
        torch._foreach_lerp_(averages, list(updates.square().mean(-1, keepdim=True).unbind()), 1 - beta2)
        unbias = 1 - beta2 ** self.state[parameters[0]]["step"]
        normalised = updates / ((torch.stack(averages) / unbias).sqrt() + 1e-12)
        return normalised / normalised.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-12)

    def _adam_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            _grads(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _grads(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    batches: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        batches.setdefault(parameter.shape, []).append(parameter)
    return list(batches.values())
