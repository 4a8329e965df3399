"""When things happen: pure functions of the step number, which counts from 1."""

from __future__ import annotations

EARLY_REFRESHES = (2, 3, 6)
"""Steps that refresh a tracked basis while the first gradients still change it most."""


def refresh_due(step: int, frequency: int) -> bool:
    """Is an eigenbasis recomputed at this step? Every `frequency` steps."""
    return step % frequency == 0


def early_refresh_due(step: int, frequency: int) -> bool:
    """Is a tracked basis refreshed out of turn, because it is young and the next regular refresh is later?"""
    return step in EARLY_REFRESHES and step < frequency


def blend_weight(step: int, warmup_steps: int, blend_steps: int) -> float:
    """How far preconditioning is switched on at a step.

        0 up to `warmup_steps`, then a linear ramp over `blend_steps` steps, then 1

    Args:
        step: from 1.
        warmup_steps: steps of plain Adam.
        blend_steps: length of the ramp; 0 switches at once.

    Returns:
        In [0, 1].
    """
    if step <= warmup_steps:
        return 0.0
    return min(1.0, (step - warmup_steps) / blend_steps) if blend_steps else 1.0
