"""The memory of a run as it was planned beside what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scao_hf.finetune.units import byte_size

PLANNED, MEASURED = "planned", "measured"
COUNTED = ("weights", "gradients", "optimizer")
ACTIVATIONS, REST = "activations", "rest"
ALLOCATOR = "torch's allocator"

Bars = dict[str, dict[str, float]]
"""Bar to part to bytes."""


def memory_bars(facts: Mapping[str, Any]) -> Bars:
    """What run.json says of the memory: the plan, if there was one, and the measurement, if the run came to its end."""
    plan, noted = facts.get("memory_plan"), facts.get("memory")
    bars: Bars = {}
    if plan:
        # AdamW's state stands in for one that cannot be known before.
        parts = {**plan, "optimizer": plan["adamw"] if plan["optimizer"] is None else plan["optimizer"]}
        bars[PLANNED] = {part: float(parts[part]) for part in (*COUNTED, ACTIVATIONS) if parts[part] is not None}
    if noted:
        bars[MEASURED] = {part: float(noted[part]) for part in COUNTED}
        if noted["peak"] is not None:
            bars[MEASURED][REST] = max(0.0, noted["peak"] - sum(bars[MEASURED].values()))
    return bars


def memory_table(bars: Bars) -> list[tuple[str, ...]]:
    """A heading, a row for each part, and a row of sums."""
    rows = [
        (part, *(byte_size(parts[part]) if part in parts else "-" for parts in bars.values()))
        for part in (*COUNTED, ACTIVATIONS, REST)
        if any(part in parts for parts in bars.values())
    ]
    sums = (byte_size(sum(parts.values())) for parts in bars.values())
    return [("", *bars), *rows, ("all", *sums)]


def memory_caption(facts: Mapping[str, Any]) -> str:
    """What the bars are made of, in sentences."""
    plan, noted = facts.get("memory_plan"), facts.get("memory")
    told = ["Weights, gradients of what is trained, and the optimizer's state."]
    if plan:
        what = "an estimate for the longest rows" if plan["activations"] is not None else "not known for this model"
        told.append(f"Planned, before the weights were loaded: activations are {what}.")
        if plan["optimizer"] is None:
            told.append("The optimizer's state was not known before, and counts as AdamW's.")
    if noted:
        told.append(_rest(noted))
    return " ".join(told)


def _rest(noted: Mapping[str, Any]) -> str:
    if noted["peak"] is None:
        return "The peak was not measured: this process had taken more memory before."
    if noted["peak_of"] == ALLOCATOR:
        return "Rest: what the allocator's peak has beyond these, activations and workspaces."
    return "Rest: what the process grew by beyond these, activations, workspaces, and code that was loaded meanwhile."
