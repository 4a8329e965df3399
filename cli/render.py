"""Reports and plans as tables and sentences."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len

from scao_hf.finetune.observer import rows_in_words, steps_in_words
from scao_hf.finetune.units import counted

from . import figures
from .console import Glyphs, console_for, glyphs_of, is_terminal, say

if TYPE_CHECKING:
    from scao_hf.finetune.observer import EvalMetrics, RunInfo
    from scao_hf.finetune.outcome import FinetuneReport

PIPE_WIDTH = 120
NARROWEST = 40
SAMPLE_LINES = 8


def result_width() -> int:
    """Columns for a result: the terminal's; where there is none, enough that few lines need to be broken."""
    if is_terminal(sys.stdout) or os.environ.get("COLUMNS"):
        return max(NARROWEST, console_for(sys.stdout).width)
    return PIPE_WIDTH


def columns(rows: Sequence[Sequence[str]], width: int, *, indent: int = 0, gap: int = 2) -> str:
    """Left-aligned columns; the last one is broken into lines so that `width` holds."""
    *head, _ = zip(*rows, strict=True)
    widths = [max(map(cell_len, column)) for column in head]
    start = indent + sum(widths) + gap * len(widths)
    lines: list[str] = []
    for *cells, last in rows:
        left = " " * indent + "".join(pad(cell, size + gap) for cell, size in zip(cells, widths, strict=True))
        first, *more = broken(last, max(20, width - start))
        lines += [(left + first).rstrip(), *(" " * start + line for line in more)]
    return "\n".join(lines)


def pad(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))


def broken(text: str, width: int) -> list[str]:
    """Lines of at most `width`, except where one word is longer."""
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return [piece for line in text.split("\n") for piece in wrapper.wrap(line) or [""]]


def printable(text: str) -> str:
    """Model output without control characters, which a terminal would obey; line ends stay."""
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def plan_rows(info: RunInfo, glyphs: Glyphs) -> list[tuple[str, str]]:
    """What will be trained on what and how, settled before the first step."""
    share = info.trainable_parameters / max(1, info.total_parameters)
    dot = f" {glyphs.dot} "
    trained = f"{figures.count(info.trainable_parameters)} of {figures.count(info.total_parameters)} parameters train"
    data = [info.dataset, info.dataset_format, f"{rows_in_words(info.train_rows)}, {info.eval_rows} held out"]
    steps = [
        steps_in_words(info.total_steps, info.rows_per_step, info.epochs),
        f"learning rate {info.learning_rate:g} after {counted(info.lr_warmup_steps, 'warm-up step')}",
        optimizer_plan(info),
    ]
    rows = [
        ("plan", dot.join([info.recipe, f"output in {info.output_dir}"])),
        ("model", dot.join([info.model, f"{trained} ({share:.1%})", f"{info.device}, {info.dtype}"])),
        ("data", dot.join([*data, f"loss on {loss_tokens(info.loss_on)}"])),
        ("steps", dot.join(steps)),
    ]
    kept = list(info.funnel.values())
    if len(set(kept)) > 1:
        rows.append(("rows", ", ".join(f"{stage} {rows_left}" for stage, rows_left in info.funnel.items())))
    return rows


def loss_tokens(loss_on: str) -> str:
    return {"all": "all tokens", "completion": "completions", "assistant": "assistant turns"}.get(loss_on, loss_on)


def optimizer_plan(info: RunInfo) -> str:
    """The optimizer, and for one of ours when preconditioning begins, since a short run may never reach it."""
    if info.adam_steps is None:
        return info.optimizer
    left = info.total_steps - info.adam_steps
    if left <= 0:
        phase = counted(info.adam_steps, "step")
        return f"{info.optimizer}: Adam throughout, as the run is no longer than its Adam phase ({phase})"
    return f"{info.optimizer}: preconditions from step {info.adam_steps + 1} on"


def evaluation_sentence(metrics: EvalMetrics) -> str:
    when = {"before": "before training", "after": "after training"}.get(metrics.moment, f"at step {metrics.step}")
    told = f"loss {figures.loss(metrics.loss)}, perplexity {figures.perplexity(metrics.perplexity)}"
    return f"held-out {told} {when} ({figures.count(metrics.tokens)} tokens, {figures.duration(metrics.seconds)})"


def print_report(report: FinetuneReport, next_steps: Sequence[tuple[str, str]], page: Path | None) -> None:
    """The result of a run: the losses, a sample, where things lie, and what to type next."""
    width = result_width()
    blocks = [(headline(report), loss_table(report)), ("Files", files_text(report, width, page))]
    if report.sample_prompt is not None:
        blocks.insert(1, ("Sample", sample_text(report, width)))
    if next_steps:
        # A command that is broken into lines cannot be copied, so these are left to the terminal's own wrapping.
        blocks.append(("Next", columns(next_steps, sys.maxsize, indent=2)))
    for number, (heading, body) in enumerate(blocks):
        say(("\n" if number else "") + heading, style="bold")
        say(body)


def headline(report: FinetuneReport) -> str:
    work = f"{counted(report.steps, 'step')} of {report.optimizer} in {figures.duration(report.train_seconds)}"
    size = f"{figures.count(report.tokens)} tokens, {figures.count(report.trainable_parameters)} parameters trained"
    return f"{report.recipe}: {work} ({size})"


def loss_table(report: FinetuneReport) -> str:
    rows = [
        ("", "before", "after"),
        ("held-out loss", figures.loss(report.initial_eval_loss), figures.loss(report.final_eval_loss)),
        ("perplexity", figures.perplexity(report.initial_perplexity), figures.perplexity(report.final_perplexity)),
    ]
    if report.initial_eval_loss is None and report.final_eval_loss is None:
        return f"training loss {figures.loss(report.train_loss)}; no rows were held out (data.test_split_size)"
    return "\n".join(f"{name:<14}{before:>10}{after:>10}" for name, before, after in rows)


def sample_text(report: FinetuneReport, width: int) -> str:
    rows = [
        ("prompt", shortened(report.sample_prompt or "")),
        ("before", shortened(report.sample_before or "")),
        ("after", shortened(report.sample_after or "")),
    ]
    return columns(rows, width, indent=2)


def shortened(text: str) -> str:
    lines = [line for line in printable(text.strip()).split("\n") if line.strip()]
    kept = lines[:SAMPLE_LINES]
    if len(lines) > SAMPLE_LINES:
        kept[-1] += f" {glyphs_of(sys.stdout).ellipsis}"
    return "\n".join(kept) or "(nothing)"


def files_text(report: FinetuneReport, width: int, page: Path | None) -> str:
    what = "LoRA adapter" if report.is_adapter else "model and tokenizer"
    state = figures.byte_size(report.optimizer_state_bytes)
    rows = [
        ("saved", f"{report.saved_dir} ({what})"),
        *best_row(report),
        ("details", f"{report.output_dir}: metrics.jsonl, run.json, recipe.resolved.yaml"),
        *([] if page is None else [("report", str(page))]),
        ("memory", f"{state} of optimizer state"),
    ]
    return columns(rows, width, indent=2)


def best_row(report: FinetuneReport) -> list[tuple[str, str]]:
    """The checkpoint of the best step, where the run looked for it."""
    if report.best_step is None or report.best_metric is None:
        return []
    place = "not kept" if report.best_checkpoint is None else str(report.best_checkpoint)
    early = f"; stopped early after {counted(report.steps, 'step')}" if report.stopped_early else ""
    return [("best", f"{place} (step {report.best_step}, {report.best_metric:.4g}){early}")]


def next_after_training(report: FinetuneReport) -> list[tuple[str, str]]:
    loader = "peft.AutoPeftModelForCausalLM" if report.is_adapter else "transformers.AutoModelForCausalLM"
    return [
        ("try it", f"scao-finetune generate {report.output_dir} -p TEXT --base"),
        ("in Python", f'{loader}.from_pretrained("{report.saved_dir}")'),
    ]


def next_after_demo(report: FinetuneReport) -> list[tuple[str, str]]:
    return [
        *next_after_training(report),
        ("other recipes", "scao-finetune recipes list"),
        ("your own data", "scao-finetune train lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl"),
    ]
