"""A comparison on disk: results.json, runs.csv, and report.html, which needs nothing but a browser."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scao_hf.finetune.comparison.outcome import Outcome, Standing
from scao_hf.finetune.comparison.protocol import LEAST_SEEDS
from scao_hf.finetune.comparison.runs import Run, plain
from scao_hf.finetune.comparison.statistics import Estimate
from scao_hf.finetune.comparison.tuning import RATE
from scao_hf.finetune.observer import rows_in_words, steps_in_words
from scao_hf.finetune.recipes import resolved_yaml

RESULTS = "results.json"
TABLE = "runs.csv"
REPORT = "report.html"
TEMPLATE = "comparison/report.html.jinja"

MEBI = 2.0**20

COLUMNS = (
    "optimizer",
    "best lr",
    "held-out\nloss",
    "steps to\ntarget",
    "seconds\nto target",
    "s/step",
    "optimizer\nstate",
)
"""Headings of `table`, with a line end where they may be broken."""


def write(outcome: Outcome) -> Path:
    """Write all three files into the folder of the comparison; returns report.html."""
    texts = {
        RESULTS: json.dumps(document(outcome), indent=2, allow_nan=False) + "\n",
        TABLE: runs_csv(outcome),
        REPORT: html(outcome),
    }
    for name, text in texts.items():
        (outcome.output_dir / name).write_text(text, encoding="utf-8", newline="")
    return outcome.output_dir / REPORT


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON values; a figure that is not finite is null."""
    plan = outcome.plan
    return plain(
        {
            "recipe": outcome.recipe.name,
            "options": {name: recipe.scao for name, recipe in outcome.recipes.items()},
            "command": outcome.command,
            "output_dir": str(outcome.output_dir),
            **outcome.facts,
            "trials": plan.trials,
            "tuning_seed": plan.tuning_seed,
            "seeds": list(plan.seeds),
            "target": outcome.target._asdict(),
            "optimizers": [_standing(standing) for standing in outcome.standings],
            "differences": [
                {"ours": each.ours, "theirs": each.theirs, **_estimate(each.estimate), "verdict": each.sentence}
                for each in outcome.differences
            ],
            "supports_claims": outcome.comparison.supports_claims,
            "assertions": [vars(each) for each in outcome.checked],
            "conditions": conditions(outcome),
            "versions": outcome.versions,
            "hardware": outcome.hardware,
        }
    )


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "optimizer": standing.optimizer,
        "learning_rate": standing.learning_rate,
        **standing.measures,
        "eval_loss": _estimate(standing.loss),
        "diverged": standing.diverged,
    }


def _estimate(value: Estimate) -> dict[str, Any]:
    return {"mean": value.mean, "deviation": value.deviation, "half_width_95": value.half_width, "seeds": value.count}


def conditions(outcome: Outcome) -> dict[str, Mapping[str, Any]]:
    """By seed, what every run of that seed was given; the protocol has made sure that it is the same for all."""
    return {str(run.seed): run.conditions for _, run in outcome.runs}


def _turned(by_seed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Condition to seed to value."""
    names = next(iter(by_seed.values()))
    return {name: {seed: noted[name] for seed, noted in by_seed.items()} for name in names}


def table(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row of texts for each optimizer, under `COLUMNS`."""
    return [tuple(_cells(standing)) for standing in outcome.standings]


def _cells(standing: Standing) -> Iterator[str]:
    yield standing.optimizer
    yield rate(standing.learning_rate)
    yield f"diverged, {standing.diverged} of {standing.loss.count}" if standing.diverged else str(standing.loss)
    yield "never" if standing.steps_to_target is None else f"{standing.steps_to_target:.0f}"
    yield "never" if standing.seconds_to_target is None else f"{standing.seconds_to_target:.3g}"
    yield f"{standing.step_seconds:.3g}"
    yield f"{standing.state_bytes / MEBI:.1f} MiB"


def rate(learning_rate: float) -> str:
    return f"{learning_rate:.4g}"


def remarks(outcome: Outcome) -> list[str]:
    """What has to be said beside the verdicts."""
    seeds = len(outcome.plan.seeds)
    if outcome.comparison.supports_claims:
        return []
    return [f"{seeds} final {'run' if seeds == 1 else 'runs'} each: a claim needs {LEAST_SEEDS} seeds or more"]


def target_text(outcome: Outcome) -> str:
    target = outcome.target
    return target.source if target.loss is None else f"target: loss {target.loss:.3f} ({target.source})"


def runs_csv(outcome: Outcome) -> str:
    """All runs, one line each, with the digests of their conditions."""
    rows = [_run_row(purpose, run) for purpose, run in outcome.runs]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _run_row(purpose: str, run: Run) -> dict[str, Any]:
    return {
        "optimizer": run.arm,
        "purpose": purpose,
        "learning_rate": run.setting[RATE],
        "seed": run.seed,
        "eval_loss": run.loss if math.isfinite(run.loss) else "",
        "diverged_at_step": run.measures["diverged_at"] or "",
        "step_seconds": run.step_seconds,
        "state_bytes": run.measures["state_bytes"],
        **run.conditions,
    }


def html(outcome: Outcome) -> str:
    """The report as one page: figures inline, nothing loaded from anywhere."""
    from scao_hf.finetune.reporting.page import render

    return render(
        TEMPLATE,
        outcome=outcome,
        columns=COLUMNS,
        rows=table(outcome),
        remarks=remarks(outcome),
        target=target_text(outcome),
        figures=_figures(outcome),
        settings=_settings(outcome),
        between_evaluations=_between_evaluations(outcome),
        conditions=_turned(conditions(outcome)),
        recipe_text=resolved_yaml(outcome.recipe),
        runs=[_run_row(purpose, run) for purpose, run in outcome.runs],
    )


def _figures(outcome: Outcome) -> list[tuple[str, str]]:
    """(<svg> element, caption) of every figure."""
    from scao_hf.finetune.comparison import figures

    entries = outcome.comparison.entries
    curves = {name: [run.curve for run in entry.finals] for name, entry in entries.items()}
    seconds = {standing.optimizer: standing.step_seconds for standing in outcome.standings}
    trials = {name: [(run.setting[RATE], run.loss) for run in entry.searched] for name, entry in entries.items()}
    goal = outcome.target.loss
    seeds = f"Line: mean of {len(outcome.plan.seeds)} seeds; band: lowest to highest seed."
    drawn: Sequence[tuple[Any, str]] = (
        (figures.loss_by_step(curves, target=goal), f"Held-out loss against the step. {seeds}"),
        (
            figures.loss_by_seconds(curves, seconds, target=goal),
            "The same against seconds: steps times the mean seconds of a step. Evaluation does not count.",
        ),
        (
            figures.loss_by_rate(trials),
            f"Final held-out loss of every tuning run (seed {outcome.plan.tuning_seed}) against its learning rate. "
            "Filled: the rate that was chosen. Triangle: off the scale, or diverged.",
        ),
    )
    return [(figures.svg_text(figure), caption) for figure, caption in drawn]


def _between_evaluations(outcome: Outcome) -> int:
    """Steps from one evaluation to the next."""
    first = next(iter(outcome.comparison.entries.values())).finals[0]
    return first.curve[1][0] - first.curve[0][0] if len(first.curve) > 1 else outcome.facts["total_steps"]


def _settings(outcome: Outcome) -> list[tuple[str, str]]:
    """What all runs have in common, as a person reads it."""
    facts, training = outcome.facts, outcome.recipe.training
    share = f"{facts['trainable_parameters']:,} of {facts['total_parameters']:,} parameters"
    steps = steps_in_words(facts["total_steps"], facts["rows_per_step"], facts["epochs"])
    schedule = f"{training.get('lr_scheduler_type', 'linear')}; steps of warm-up: {facts['lr_warmup_steps']}"
    clipping = next(iter(conditions(outcome).values()))["clipping"]
    return [
        ("Recipe", outcome.recipe.name),
        ("Model", f"{facts['model']}; {share} train"),
        ("Data", f"{facts['dataset']} ({facts['dataset_format']}), {rows_in_words(facts['train_rows'])}"),
        ("Judged by", f"{facts['eval_rows']} held-out rows, the same for every run; loss on: {facts['loss_on']}"),
        ("Steps", steps),
        ("Schedule", schedule),
        ("Gradient clipping", "none" if clipping is None else f"norm {clipping:g}"),
        ("Weight decay", f"{training.get('weight_decay', 0.0):g}"),
        ("Precision", f"{facts['dtype']} on {facts['device']}"),
        *((f"Options of {name}", _pairs(recipe.scao)) for name, recipe in outcome.recipes.items() if recipe.scao),
    ]


def _pairs(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
