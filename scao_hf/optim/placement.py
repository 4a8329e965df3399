"""Where the work of a stack is done. One device does everything; other placements take the same three calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from scao_hf.optim.stack import Stack


class Placement(Protocol):
    """Who assembles a stack's gradients, who refreshes its bases, and who moves its parameters."""

    def gradients(self, stack: Stack) -> Tensor:
        """The whole gradients of a stack (rows, …), float32."""
        ...

    def refresh(self, stack: Stack, compute: Callable[[], None]) -> None:
        """Have the bases in `stack.storage` recomputed by `compute`, here or elsewhere."""
        ...

    def apply(self, stack: Stack, direction: Tensor, lr: float, weight_decay: float) -> None:
        """Move the parameters of a stack against a direction (rows, …)."""
        ...


class Local:
    """Everything here: a single device, or data-parallel replicas that each repeat the same work on equal gradients."""

    def gradients(self, stack: Stack) -> Tensor:
        return stack.gradients()

    def refresh(self, stack: Stack, compute: Callable[[], None]) -> None:
        compute()

    def apply(self, stack: Stack, direction: Tensor, lr: float, weight_decay: float) -> None:
        stack.apply(direction, lr, weight_decay)
