"""Equal-shaped blocks of several parameters as one batch, with their state as views of one storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scao_hf.numerics.blocks import BlockShape, from_blocks, to_blocks

State = dict[str, Any]
"""What an optimizer remembers of one parameter: the step (int) and tensors."""

Storage = dict[str, Tensor]
"""The state of a stack: one tensor a name, (rows, …)."""


class Layout(NamedTuple):
    """How a parameter lies in a stack.

    `row_shape` is the shape of a row and `ranks` the eigenvectors kept along each of its dimensions (all 0: the
    parameter is not preconditioned). `cut` folds and cuts the parameter into blocks, each a row; None makes the
    parameter itself the one row.
    """

    row_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    cut: BlockShape | None = None

    @property
    def num_rows(self) -> int:
        """Rows per parameter."""
        return self.cut.num_blocks if self.cut else 1

    @property
    def preconditioned(self) -> bool:
        """Does any dimension get a basis?"""
        return any(self.ranks)

    def to_rows(self, tensor: Tensor) -> Tensor:
        """(num_rows, *row_shape) of a tensor shaped like the parameter; a view where possible."""
        return to_blocks(tensor, self.cut) if self.cut else tensor.unsqueeze(0)

    def from_rows(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor of `shape` from its rows (num_rows, *row_shape); a view where possible."""
        return from_blocks(rows, self.cut, tuple(shape)) if self.cut else rows.reshape(tuple(shape))


class Stack:
    """Parameters of equal layout and equal step, worked on as one batch.

    The stack owns one storage (rows, …) per state name; `optimizer.state[p][name]` is a view of the rows of p, without
    a row dimension where p has only one. So a batch costs no copy per step, and a state dict holds ordinary tensors.
    """

    def __init__(self, params: Sequence[Tensor], layout: Layout, states: Sequence[State], storage: Storage) -> None:
        self.params = list(params)
        self.layout = layout
        self.storage = storage
        self._states = list(states)
        self._views: list[dict[str, Tensor]] = []
        for index, state in enumerate(self._states):
            rows = self._rows_of(index)
            views = {name: tensor[rows] if layout.num_rows > 1 else tensor[index] for name, tensor in storage.items()}
            state.update(views)
            self._views.append(views)

    @classmethod
    def gather(
        cls,
        params: Sequence[Tensor],
        layout: Layout,
        states: Sequence[State],
        create: Callable[[int], Storage],
    ) -> Stack:
        """Build a stack from what each parameter's state holds, or from new state where it holds nothing.

        Args:
            params: of equal layout.
            layout: theirs.
            states: of each parameter, all empty or all filled; views of the new storage are put into them.
            create: makes the storage of that many rows.
        """
        if not states[0]:
            for state in states:
                state["step"] = 0
            return cls(params, layout, states, create(len(params) * layout.num_rows))
        names = [name for name, value in states[0].items() if isinstance(value, Tensor)]
        rows = layout.num_rows
        storage = {
            name: torch.cat([s[name] if rows > 1 else s[name].unsqueeze(0) for s in states]).contiguous()
            for name in names
        }
        return cls(params, layout, states, storage)

    def _rows_of(self, index: int) -> slice:
        return slice(index * self.layout.num_rows, (index + 1) * self.layout.num_rows)

    def owns(self, index: int, state: State) -> bool:
        """Is this still the state of the parameter at `index`, or was it replaced (loaded, moved) from outside?"""
        return state is self._states[index] and all(state.get(name) is v for name, v in self._views[index].items())

    def advance(self) -> int:
        """Count one step for every parameter; returns its number, from 1."""
        for state in self._states:
            state["step"] += 1
        step: int = self._states[0]["step"]
        return step

    def gradients(self) -> Tensor:
        """The gradients (rows, *row_shape) in float32; may be a view of a gradient, so nobody writes to it."""
        rows = [self.layout.to_rows(_dense_gradient(param)) for param in self.params]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).float()

    def parameters(self) -> Tensor:
        """The parameters (rows, *row_shape) in float32; a copy or a view, to be read only."""
        return torch.cat([self.layout.to_rows(param) for param in self.params]).float()

    def parameter_norms(self) -> Tensor:
        """The Frobenius norm of every row of the parameters (rows,), float32."""
        rows = [self.layout.to_rows(param).flatten(1) for param in self.params]
        width = torch.promote_types(rows[0].dtype, torch.float32)
        return torch.cat([torch.linalg.vector_norm(each, dim=1, dtype=width) for each in rows]).float()

    def apply(self, direction: Tensor, lr: float, weight_decay: float) -> None:
        """Decay the parameters, then move them against a direction.

            p <- (1 − lr · weight_decay) p − lr · direction

        Args:
            direction: (rows, *row_shape), float32.
            lr: learning rate.
            weight_decay: decoupled.

        Parameters narrower than float32 are computed in float32 and rounded once; float64 ones stay float64.
        """
        params, moves = [], []
        for index, param in enumerate(self.params):
            params.append(param)
            moves.append(self.layout.from_rows(direction[self._rows_of(index)], param.shape))
        if params[0].dtype in (torch.float32, torch.float64):
            if lr * weight_decay:
                torch._foreach_mul_(params, 1 - lr * weight_decay)
            torch._foreach_add_(params, moves, alpha=-lr)
            return
        for param, move in zip(params, moves, strict=True):
            param.copy_(param.float().mul_(1 - lr * weight_decay).add_(move, alpha=-lr))


def _dense_gradient(param: Tensor) -> Tensor:
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise TypeError(
            f"a gradient of layout {grad.layout} arrived for a parameter of shape {tuple(param.shape)}: only dense "
            "gradients can be preconditioned; build the embedding with sparse=False"
        )
    return grad
