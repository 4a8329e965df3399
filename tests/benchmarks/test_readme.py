"""The README's table of learning rates against the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.suite import STUDIES, TUNING_SEED
from scao_hf.finetune.comparison.store import RunStore

ROOT = Path(__file__).parents[2]
STUDY_OF = {
    "1M": "lm-1m",
    "5M": "lm-5m",
    "10M": "lm-10m",
    "LoRA r = 8": "lora-shakespeare-r8",
    "LoRA r = 16": "lora-shakespeare-r16",
    "LoRA r = 16, 100 steps": "lora-shakespeare-r16-short",
    "GSM8K, LoRA r = 16": "lora-gsm8k-r16",
    "GSM8K, LoRA r = 16, 100 steps": "lora-gsm8k-r16-short",
    "all weights": "full-shakespeare",
}


def rows() -> dict[tuple[str, str], dict[float, str]]:
    """The cells that are not empty, by study, optimizer and learning rate."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| learning rate |"))
    rates = [float(cell) for cell in cells(lines[start])[1:]]
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        label, *losses = cells(line)
        task, optimizer = label.rsplit(", ", 1)
        found[STUDY_OF[task], optimizer.lower()] = {r: loss for r, loss in zip(rates, losses, strict=True) if loss}
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def trials(study: str, optimizer: str) -> dict[float, float]:
    """Losses on the tuning seed of the settings that differ from the search's start in the learning rate alone."""
    start = STUDIES[study].plan().spaces[optimizer].start
    store = RunStore(ROOT / "benchmarks" / "results" / study / "runs.jsonl")
    return {
        config["setting"]["lr"]: run.loss
        for config, run in store.records()
        if config["optimizer"] == optimizer
        and config["seed"] == TUNING_SEED
        and config["setting"] == {**start, "lr": config["setting"]["lr"]}
    }


@pytest.mark.parametrize("optimizer", ["scao", "adamw"])
@pytest.mark.parametrize("study", STUDY_OF.values())
def test_the_table_of_learning_rates_says_what_the_committed_runs_say(study: str, optimizer: str) -> None:
    made = trials(study, optimizer)
    lowest = min(made, key=lambda rate: made[rate])
    expected = {rate: f"**{loss:.3f}**" if rate == lowest else f"{loss:.3f}" for rate, loss in made.items()}
    assert rows()[study, optimizer] == expected
