"""The model card of a run: what was trained, on what, how, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from scao_hf.finetune.layout import CARD
from scao_hf.finetune.results import summary
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.units import duration


def write_card(run: RunFolder) -> Path:
    """Write the card of a finished run beside its weights, over the one from before its results were known."""
    path = run.weights / CARD
    temporary = path.with_name(f".{CARD}.part")
    temporary.write_text(model_card(run, run.weights.name, adapter=run.is_adapter), encoding="utf-8")
    os.replace(temporary, path)
    return path


def model_card(run: RunFolder, place: str, *, adapter: bool) -> str:
    """The text of README.md, as the hub reads it; it names no folder of this machine.

    Args:
        run: finished, or not yet, and then without results.
        place: directory or hub id of the weights, for the lines that load them.
        adapter: whether they are those of an adapter, or of a whole model.
    """
    return "\n".join([*_header(run, adapter), "", *_body(run, place, adapter)]) + "\n"


def _header(run: RunFolder, adapter: bool) -> Iterator[str]:
    """What the hub sorts models by. A base that is not on the hub has no place here: the hub refuses such a card."""
    yield "---"
    base, data = summary.hub_id(run.info["model"]), summary.hub_id(run.info["dataset"])
    if base is not None:
        yield f"base_model: {base}"
        yield f"base_model_relation: {'adapter' if adapter else 'finetune'}"
    if data is not None:
        yield f"datasets:\n- {data}"
    yield f"library_name: {'peft' if adapter else 'transformers'}"
    yield "pipeline_tag: text-generation"
    tags = ["scao-hf", run.info["optimizer"], *(["lora"] if run.is_adapter else [])]
    yield "tags:\n" + "\n".join(f"- {tag}" for tag in tags)
    yield "---"


def _body(run: RunFolder, place: str, adapter: bool) -> Iterator[str]:
    info = run.info
    what = "A LoRA adapter for" if adapter else "A fine-tuned version of"
    yield f"# {info['recipe']}\n"
    yield (
        f"{what} {summary.public_name(info['model'])}, trained on {summary.public_name(info['dataset'])} for "
        f"{run.report.get('steps', info['total_steps'])} steps with the optimizer `{info['optimizer']}` by "
        "`scao-finetune`.\n"
    )
    yield "## How to load it\n"
    yield f"```python\n{summary.loading(place, adapter)}\n```\n"
    yield "## Results\n"
    yield from _results(run)
    yield "\n## How it was trained\n"
    yield from _table(summary.settings(run))
    yield f"\n{_work(run)}.\n"
    yield "## Versions\n"
    yield ", ".join(f"{name} {version}" for name, version in summary.versions(run))


def _work(run: RunFolder) -> str:
    if not run.report:
        return f"Trained on {summary.machine(run)}"
    done = f"{run.report['tokens']:,} tokens in {duration(run.report['train_seconds'])} of training"
    return f"{done} on {summary.machine(run)}"


def _results(run: RunFolder) -> Iterator[str]:
    report, rows = run.report, run.info["eval_rows"]
    if not report:
        yield "The run had not ended when this was written."
        return
    if report["final_eval_loss"] is None:
        yield f"Training loss, mean over all steps: {report['train_loss']:.3f}. No rows were held out."
        return
    yield "| | before | after |\n| --- | --- | --- |"
    yield f"| held-out loss | {report['initial_eval_loss']:.3f} | {report['final_eval_loss']:.3f} |"
    yield f"| perplexity | {report['initial_perplexity']:.2f} | {report['final_perplexity']:.2f} |"
    yield f"\nNats per supervised token on {rows} held-out rows of the same data; one run, one seed."


def _table(rows: Sequence[summary.Row]) -> Iterator[str]:
    yield "| | |\n| --- | --- |"
    for name, told in rows:
        yield f"| {name} | {told.replace('|', '&#124;')} |"
