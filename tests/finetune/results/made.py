"""Folders of runs, written without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scao_hf.finetune.results.folder import RunFolder, open_run

STEPS = 40
ADAM_STEPS = 10
LAYERS = [f"layers.{block}.{side}_proj.lora_{factor}" for block in range(2) for side in "qv" for factor in "AB"]

RECIPE = """\
schema: 1
model:
  model_name_or_path: {model}
lora:
  r: 8
  lora_alpha: 16
  target_modules: all-linear
data:
  path: {data}
  test_split_size: 4
training:
  output_dir: {folder}
  optim: {optimizer}
  learning_rate: {rate}
  lr_scheduler_type: cosine
scao:
  k_max: 16
"""


def facts(folder: Path, **changes: Any) -> dict[str, Any]:
    """run.json of a finished LoRA run with SCAO."""
    run = {
        "recipe": "lora-sft",
        "output_dir": str(folder),
        "model": "org/base-model",
        "dataset": "org/chats",
        "dataset_format": "messages",
        "loss_on": "assistant",
        "device": "cpu",
        "dtype": "float32",
        "optimizer": "scao",
        "learning_rate": 0.002,
        "train_rows": 800,
        "eval_rows": 48,
        "rows_per_step": 8,
        "total_steps": STEPS,
        "epochs": 0.4,
        "trainable_parameters": 61_440,
        "total_parameters": 1_071_360,
        "lr_warmup_steps": 4,
        "adam_steps": ADAM_STEPS,
        "funnel": {"read": 848},
    }
    report = {
        "recipe": "lora-sft",
        "initial_eval_loss": 3.0,
        "final_eval_loss": 1.5,
        "initial_perplexity": 20.0855,
        "final_perplexity": 4.4817,
        "train_loss": 2.1,
        "steps": STEPS,
        "epochs": 0.4,
        "train_seconds": 20.0,
        "tokens": 76_000,
        "optimizer_state_bytes": 2_621_440,
        "sample_prompt": "What <light> is this?",
        "sample_before": "12 * 2 = 24",
        "sample_after": "I pray you, speak no more.",
    }
    made = {
        "status": "finished",
        "exit_code": 0,
        "started": "2025-03-01T10:00:00+00:00",
        "recipe": "lora-sft",
        "seed": 42,
        "data": {"fingerprint": "sha256:aa", "funnel": {"read": 848}, "conversational": True},
        "run": run,
        "report": report,
        "memory_plan": {
            "weights": 4_000_000,
            "gradients": 245_760,
            "optimizer": 2_621_440,
            "adamw": 491_520,
            "activations": 100_000_000,
            "device": "cpu",
            "available": 8_000_000_000,
            "total": 106_867_200,
        },
        "memory": {
            "weights": 4_000_000,
            "gradients": 245_760,
            "optimizer": 2_621_440,
            "peak": 400_000_000,
            "peak_of": "the process",
        },
        "versions": {"python": "3.11.7", "torch": "2.6.0", "scao_hf": "0.1.0"},
        "hardware": {"platform": "Linux", "cpus": 2, "threads": 1, "gpus": []},
    }
    return made | changes


def events(optimizer: str = "scao") -> list[dict[str, Any]]:
    """Metrics of the run: a loss that falls from 3 by 0.0375 a step, half a second a step."""
    found: list[dict[str, Any]] = [evaluation(0, 3.0, "before")]
    for step in range(1, STEPS + 1):
        blend = min(1.0, max(0.0, (step - ADAM_STEPS) / 10))
        diagnostics = {"scao/phase": 0.0 if blend == 0 else 2.0 if blend == 1 else 1.0, "scao/blend": blend}
        found.append(
            {
                "event": "step",
                "step": step,
                "total_steps": STEPS,
                "loss": 3.0 - 0.0375 * step + (0.2 if step % 2 else -0.2),
                "learning_rate": 0.002 * (1 - step / STEPS),
                "grad_norm": 1.0 + 1.0 / step,
                "tokens": 1900 * step,
                "elapsed_seconds": 0.5 * step,
                **(diagnostics if optimizer == "scao" else {}),
            }
        )
        if optimizer == "scao" and step % 5 == 0:
            found.append({"event": "layers", "step": step, "ranks": dict.fromkeys(LAYERS, 4.0 + step / 10)})
        if step == STEPS // 2:
            found.append(evaluation(step, 2.0, "during"))
    return [*found, evaluation(STEPS, 1.5, "after")]


def evaluation(step: int, loss: float, moment: str) -> dict[str, Any]:
    return {"event": "evaluation", "moment": moment, "step": step, "loss": loss, "perplexity": 0.0, "tokens": 900}


def write_run(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    *,
    weights: str | None = "adapter",
    recipe: Mapping[str, Any] | None = None,
) -> RunFolder:
    """A run on disk.

    Args:
        changes: over `facts`.
        metrics: in the place of `events()`.
        weights: "adapter" or "model", with a file in it; None for a run that saved neither.
        recipe: what the resolved recipe says otherwise: model, data, optimizer, rate.
    """
    folder.mkdir(parents=True)
    said = {"model": "org/base-model", "data": "org/chats", "optimizer": "scao", "rate": 0.002, **(recipe or {})}
    (folder / "run.json").write_text(json.dumps(facts(folder, **(changes or {}))), encoding="utf-8")
    lines = events() if metrics is None else metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "recipe.resolved.yaml").write_text(RECIPE.format(folder=folder, **said), encoding="utf-8")
    if weights is not None:
        (folder / weights).mkdir()
        config = {"base_model_name_or_path": said["model"]}
        (folder / weights / f"{weights}_config.json").write_text(json.dumps(config), encoding="utf-8")
    return open_run(folder)
