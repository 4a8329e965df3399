"""The phases of an optimizer of this package, as words."""

from __future__ import annotations

PHASES = ("Adam", "ramp", "preconditioned")


def phase_name(phase: float) -> str:
    """The word for `diagnostics()["phase"]`: 0, 1 or 2."""
    return PHASES[max(0, min(len(PHASES) - 1, int(phase)))]
