"""A comparison that nobody trained, with numbers to calculate with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scao_hf.finetune.comparison import assertion
from scao_hf.finetune.comparison.outcome import Outcome, target_of
from scao_hf.finetune.comparison.protocol import compare
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.study import Plan
from scao_hf.finetune.comparison.tuning import Space
from scao_hf.finetune.config import DataSection, ModelSection, Recipe

STEP_SECONDS = {"scao": 0.5, "adamw_torch": 0.25, "soap": 1.0}
STATE_BYTES = {"scao": 3 * 2**20, "adamw_torch": 2**20, "soap": 2**22}
RATES = {1e-4: 2.5, 2e-4: 2.0, 4e-4: 2.75}
"""Learning rate to loss of the trials of every optimizer."""
FACTS: dict[str, Any] = {
    "model": "tiny-llama",
    "dataset": "rows.jsonl",
    "dataset_format": "text",
    "loss_on": "all",
    "device": "cpu",
    "dtype": "float32",
    "train_rows": 100,
    "eval_rows": 16,
    "rows_per_step": 4,
    "total_steps": 20,
    "epochs": 0.8,
    "trainable_parameters": 1000,
    "total_parameters": 50000,
    "lr_warmup_steps": 2,
}


def run(name: str, seed: int, loss: float, lr: float = 2e-4) -> Run:
    """A run of 20 steps whose loss falls from 4 to 3 in ten steps, and to its end in ten more."""
    ended = math.isfinite(loss)
    return Run(
        arm=name,
        setting={"lr": lr},
        seed=seed,
        conditions={
            "initialisation": f"weights{seed}",
            "data_order": f"batches{seed}",
            "evaluation_set": "rows",
            "clipping": 1.0,
            "schedule": "cosine",
            "token_budget": 900,
            "steps": 20,
        },
        loss=loss,
        curve=((0, 4.0), (10, 3.0), (20, loss)) if ended else ((0, 4.0),),
        step_seconds=STEP_SECONDS[name],
        measures={"state_bytes": STATE_BYTES[name], "diverged_at": None if ended else 7, "facts": FACTS},
    )


def outcome(
    losses: Mapping[str, Sequence[float]],
    folder: Path = Path("runs/small-compare"),
    target: float | None = None,
    assertions: Sequence[str] = (),
    trials: Mapping[float, float] = RATES,
) -> Outcome:
    """Of optimizers with these final losses, by seed from 43 on."""
    comparison = compare(
        (
            name,
            [run(name, 42, loss, rate) for rate, loss in trials.items()],
            [run(name, 43 + number, loss) for number, loss in enumerate(finals)],
        )
        for name, finals in losses.items()
    )
    seeds = range(43, 43 + len(next(iter(losses.values()))))
    data = DataSection(path="rows.jsonl", test_split_size=16)
    training = {"optim": "scao", "lr_scheduler_type": "cosine", "max_steps": 20, "output_dir": "runs/small"}
    recipe = Recipe(
        name="small",
        source="small.yaml",
        model=ModelSection(model_name_or_path="tiny-llama"),
        data=data,
        training=training,
        scao={"k_max": 16},
    )
    return Outcome(
        recipes=dict.fromkeys(losses, recipe),
        command="scao-finetune compare small.yaml --optim scao --optim adamw_torch",
        output_dir=folder,
        plan=Plan(dict.fromkeys(losses, Space({"lr": 2e-4})), len(trials), 42, list(seeds)),
        comparison=comparison,
        target=target_of(comparison, target),
        assertions=[assertion.parse(text, list(losses)) for text in assertions],
        facts=FACTS,
        versions={"python": "3.11", "torch": "2.6"},
        hardware={"platform": "Linux", "cpus": 4, "threads": 2, "gpus": []},
    )
