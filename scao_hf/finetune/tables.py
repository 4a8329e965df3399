"""Small HTML tables, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(rows: Iterable[Sequence[str]], heading: Sequence[str] = (), caption: str = "") -> str:
    """Rows of texts as a table; the first cell of a row names it.

    Args:
        rows: texts, not HTML.
        heading: of the columns.
        caption: a sentence above the table.
    """
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{_cells('th', heading)}</tr></thead>" if heading else ""
    body = "".join(f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>" for row in rows)
    return f"<table>{told}{head}<tbody>{body}</tbody></table>"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f'<{tag} style="text-align: left">{escape(text)}</{tag}>' for text in texts)
