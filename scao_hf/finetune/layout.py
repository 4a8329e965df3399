"""Names of what a run leaves in its folder; importable without any library."""

from __future__ import annotations

RUN = "run.json"
METRICS = "metrics.jsonl"
RESOLVED = "recipe.resolved.yaml"
ADAPTER = "adapter"
MODEL = "model"
REPORT = "report"
"""Folder of the page and the figures that `scao-finetune report` draws."""
CARD = "README.md"
CHECKPOINT_PREFIX = "checkpoint-"
