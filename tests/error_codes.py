"""The codes of all errors that the source can raise, read from its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def codes() -> set[str]:
    """Every code that stands in the source as a literal, `config.` put before those of a recipe's reader."""
    files = [*(ROOT / "scao_hf" / "finetune").rglob("*.py"), *(ROOT / "cli").glob("*.py")]
    return {code for file in files for code in _codes_of(ast.parse(file.read_text(encoding="utf-8")))}


def _codes_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name, first = _name(node.func), node.args[0]
        if name in ("FinetuneError", "UsageFailure", "diverged", "__init__"):
            yield from _literals(first, "")
        elif name == "_fail":
            yield from _literals(first, "config.")


def _literals(node: ast.expr, prefix: str) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield prefix + node.value
    elif isinstance(node, ast.IfExp):
        yield from [*_literals(node.body, prefix), *_literals(node.orelse, prefix)]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
