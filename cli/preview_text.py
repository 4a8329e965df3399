"""A preview as text: tables, a histogram, and rows in which the trained text is coloured, or stands in brackets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from .console import Glyphs, console_for, glyphs_of, may_colour, say
from .figures import bar
from .render import broken, columns, counted, loss_tokens, printable, result_width

if TYPE_CHECKING:
    from scao_hf.finetune.preview import Preview, Sample
    from scao_hf.finetune.token_counts import TokenCounts

STYLES = {"trained": "green", "read": "dim", "cut": "red strike"}
WORDS = {"trained": "trained", "read": "read only", "cut": "cut off by data.max_length"}
BRACKETS = {"trained": ("⟦", "⟧"), "read": ("", ""), "cut": ("⟪", "⟫")}
ASCII_BRACKETS = {"trained": ("[[", "]]"), "read": ("", ""), "cut": ("{{", "}}")}
HEAD, TAIL = 600, 200
"""Characters shown of a long piece of text, at its start and its end."""
WIDEST_BAR = 40


def print_preview(preview: Preview, *, tokens: bool, full: bool, plain: bool) -> None:
    """Print it on standard output."""
    width, glyphs = result_width(), glyphs_of(sys.stdout)
    brackets = None
    if plain or not may_colour(sys.stdout):
        brackets = ASCII_BRACKETS if glyphs.dot == "|" else BRACKETS
    say(columns(summary(preview, glyphs), width))
    for notice in preview.notices:
        lines = broken(f"note: {notice}", width)
        say("\n".join(lines), style="yellow")
    say("\nLengths in tokens", style="bold")
    say("\n".join(histogram_lines(preview.counts, width, glyphs)))
    if preview.samples:
        say("")
        console_for(sys.stdout).print(legend(preview, brackets, glyphs), soft_wrap=True)
    for sample in preview.samples:
        say(f"\n{sample_heading(sample)}", style="bold")
        body = token_table(sample) if tokens else sample_text(sample, brackets, glyphs, full=full)
        console_for(sys.stdout).print(body, soft_wrap=True)


def summary(preview: Preview, glyphs: Glyphs) -> list[tuple[str, str]]:
    """What the data are, how many rows and tokens, and what the loss counts."""
    dot, counts = f" {glyphs.dot} ", preview.counts
    how = "recognised by its columns" if preview.detected else "as data.format says"
    arrow = " → " if glyphs.dot != "|" else " -> "
    rows = [
        ("data", dot.join([preview.dataset, f"format {preview.format}, {how} ({', '.join(preview.columns)})"])),
        (
            "rows",
            dot.join(filter(None, [arrow.join(f"{k} {v}" for k, v in preview.funnel.items()), row_sets(preview)])),
        ),
        ("tokens", dot.join([f"by the tokenizer of {preview.tokenizer}", counted_rows(preview), lengths(counts)])),
    ]
    if counts.max_length is not None:
        rows.append(("cut", cut_sentence(counts)))
    if preview.packing is not None:
        rows.append(("packing", packing_sentence(preview)))
    taught = f"{counts.stopping_rows} of {counts.usable_rows} rows teach where to stop"
    share = f"on {loss_tokens(preview.loss_on)}: {counts.supervised_share:.1%} of the tokens are trained"
    rows.append(("loss", dot.join([share, taught])))
    return rows


def row_sets(preview: Preview) -> str:
    if preview.training_rows is None:
        return f"streamed, {preview.eval_rows} held out"
    return f"{preview.training_rows} to train on, {preview.eval_rows} held out"


def lengths(counts: TokenCounts) -> str:
    """`median 212, p95 691, p99 902, longest 1310`."""
    told = [f"{'median' if percent == 50 else f'p{percent}'} {n}" for percent, n in counts.percentiles.items()]
    return ", ".join([*told, f"longest {counts.longest}"])


def counted_rows(preview: Preview) -> str:
    counts = preview.counts
    rows = counted(counts.rows, "row")
    if counts.rows != preview.training_rows:
        rows += " at the start" if preview.training_rows is None else f" drawn of {preview.training_rows}"
    return f"{counts.tokens} tokens in {rows}"


def cut_sentence(counts: TokenCounts) -> str:
    cut = f"data.max_length={counts.max_length} cuts {counts.truncated_rows} of {counted(counts.rows, 'row')}"
    lost = f" and {counts.cut_tokens} of {counts.tokens} tokens" if counts.cut_tokens else ""
    dropped = f"; {counted(counts.dropped_rows, 'row')} left with nothing to learn" if counts.dropped_rows else ""
    return f"{cut}{lost}{dropped}"


def packing_sentence(preview: Preview) -> str:
    how = {
        "bfd": "whole rows side by side, each seeing itself alone",
        "bfd_split": "rows side by side, each seeing itself alone, long ones in several parts",
        "wrapped": "one running text, cut where a sequence is full",
    }
    return f"{preview.packing}: {how.get(str(preview.packing), 'rows side by side')}"


def histogram_lines(counts: TokenCounts, width: int, glyphs: Glyphs) -> list[str]:
    """A bar for each bin; the bins that the cut goes through or lies before are marked."""
    names = [f"{one.low}-{one.high - 1}" for one in counts.histogram]
    margin = max(map(len, names))
    most = max(one.rows for one in counts.histogram)
    room = max(8, min(WIDEST_BAR, width - margin - 30))
    lines = []
    for name, one in zip(names, counts.histogram, strict=True):
        drawn = bar(one.rows / most, room, glyphs.full, " ")
        beyond = counts.max_length is not None and one.high - 1 > counts.max_length
        mark = (
            "  beyond max_length" if beyond and one.low > (counts.max_length or 0) else "  max_length" if beyond else ""
        )
        lines.append(f"  {name:>{margin}}  {drawn} {one.rows}{mark}".rstrip())
    return lines


def legend(preview: Preview, brackets: dict[str, tuple[str, str]] | None, glyphs: Glyphs) -> Text:
    """How to tell the fates of text apart, those that occur."""
    fates = {span.fate for sample in preview.samples for span in sample.spans}
    words = [fate for fate in STYLES if fate in fates and (brackets is None or fate != "read")]
    marks = [piece(WORDS[fate], fate, brackets) for fate in words]
    return Text(f" {glyphs.dot} ").join(marks)


def sample_heading(sample: Sample) -> str:
    counts = {fate: sum(span.tokens for span in sample.spans if span.fate == fate) for fate in STYLES}
    cut = f", {counts['cut']} cut off" if counts["cut"] else ""
    return f"{sample.place}: {sum(counts.values())} tokens, {counts['trained']} trained{cut}"


def sample_text(sample: Sample, brackets: dict[str, tuple[str, str]] | None, glyphs: Glyphs, *, full: bool) -> Text:
    text = Text()
    for span in sample.spans:
        text.append_text(piece(span.text if full else shortened(span.text, glyphs), span.fate, brackets))
    text.rstrip()
    return text


def piece(text: str, fate: str, brackets: dict[str, tuple[str, str]] | None) -> Text:
    if brackets is None:
        return Text(printable(text), STYLES[fate])
    before, after = brackets[fate]
    return Text(f"{before}{printable(text)}{after}")


def shortened(text: str, glyphs: Glyphs) -> str:
    left_out = len(text) - HEAD - TAIL
    if left_out <= 0:
        return text
    return f"{text[:HEAD]}{glyphs.ellipsis}({left_out} characters, --full shows them){glyphs.ellipsis}{text[-TAIL:]}"


def token_table(sample: Sample) -> Text:
    """A line for each token: its number, its id, its text and its fate."""
    lines: Sequence[Text] = [
        Text.assemble(f"  {number:>5}  {token.id:>7}  ", (f"{token.fate:<8}", STYLES[token.fate]), repr(token.text))
        for number, token in enumerate(sample.tokens)
    ]
    return Text("\n").join(lines)
