"""`--assert "scao.eval_loss <= 1.01 * adamw_torch.eval_loss"`: a comparison of numbers, read without `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scao_hf.finetune.errors import FinetuneError, Location
from scao_hf.finetune.schema import closest

MEASURES = ("eval_loss", "steps_to_target", "seconds_to_target", "step_seconds", "state_bytes")
"""What may stand behind an optimizer's name and a dot."""

OPTION = "--assert"

Values = Mapping[str, Mapping[str, float | None]]
"""Optimizer to measure to value; None, a target that was never reached, counts as infinite."""

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_HINT = "write such as: scao.eval_loss <= 1.01 * adamw_torch.eval_loss"


@dataclass(frozen=True)
class Assertion:
    """An expression that was read and whose names all mean something."""

    text: str
    holds: Callable[[Values], bool]
    names: tuple[tuple[str, str], ...]
    """(optimizer, measure) of every value it speaks of, in order."""

    def figures(self, values: Values) -> str:
        """The values it speaks of, such as "scao.eval_loss = 1.83"."""
        return ", ".join(f"{name}.{measure} = {_number_text(values[name][measure])}" for name, measure in self.names)


def parse(text: str, optimizers: Sequence[str]) -> Assertion:
    """Read an assertion.

    Args:
        text: comparisons of `OPTIMIZER.MEASURE` and numbers with + - * /, joined by and, or, not and parentheses. A
            division by zero is NaN, and no comparison with NaN holds but !=.
        optimizers: those that are compared.

    Raises:
        FinetuneError: config.assertion, with the place in the text.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        place = Location(OPTION, 1, 1, text, max(1, len(text)))
        raise FinetuneError("config.assertion", "an assertion that cannot be read", _HINT, place) from error
    reading = _Reading(text.strip(), optimizers)
    return Assertion(text.strip(), reading.truth(tree.body), tuple(dict.fromkeys(reading.names)))


class _Reading:
    """Turns a syntax tree into functions of the values."""

    def __init__(self, text: str, optimizers: Sequence[str]) -> None:
        self.text = text
        self.optimizers = optimizers
        self.names: list[tuple[str, str]] = []

    def truth(self, node: ast.expr) -> Callable[[Values], bool]:
        match node:
            case ast.BoolOp(op=ast.And()):
                parts = [self.truth(value) for value in node.values]
                return lambda values: all(part(values) for part in parts)
            case ast.BoolOp():
                parts = [self.truth(value) for value in node.values]
                return lambda values: any(part(values) for part in parts)
            case ast.UnaryOp(op=ast.Not()):
                inner = self.truth(node.operand)
                return lambda values: not inner(values)
            case ast.Compare() if all(type(sign) in _COMPARISONS for sign in node.ops):
                return self._comparison(node)
        raise self._error(node, "this is neither true nor false: compare it with something")

    def _comparison(self, node: ast.Compare) -> Callable[[Values], bool]:
        sides = [self.number(side) for side in (node.left, *node.comparators)]
        signs = [_COMPARISONS[type(sign)] for sign in node.ops]

        def holds(values: Values) -> bool:
            numbers = [side(values) for side in sides]
            return all(sign(*pair) for sign, pair in zip(signs, pairwise(numbers), strict=True))

        return holds

    def number(self, node: ast.expr) -> Callable[[Values], float]:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return lambda values: value
            case ast.Attribute(value=ast.Name(id=optimizer), attr=measure):
                self._check_names(node, optimizer, measure)
                return lambda values: _or_infinite(values[optimizer][measure])
            case ast.UnaryOp(op=ast.USub()):
                inner = self.number(node.operand)
                return lambda values: -inner(values)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return self._arithmetic(node)
        raise self._error(node, "this is not a number: numbers are OPTIMIZER.MEASURE, digits, and + - * / of such")

    def _arithmetic(self, node: ast.BinOp) -> Callable[[Values], float]:
        left, right, combine = self.number(node.left), self.number(node.right), _ARITHMETIC[type(node.op)]

        def combined(values: Values) -> float:
            try:
                return combine(left(values), right(values))
            except ZeroDivisionError:
                return math.nan

        return combined

    def _check_names(self, node: ast.Attribute, optimizer: str, measure: str) -> None:
        for word, known, what in (
            (optimizer, self.optimizers, "an optimizer of this comparison"),
            (measure, MEASURES, "a measure"),
        ):
            if word not in known:
                near = closest(word, known)
                hint = f"did you mean `{near}`?" if near else f"there are {', '.join(known)}"
                raise self._error(node, f"`{word}` is not {what}", hint)
        self.names.append((optimizer, measure))

    def _error(self, node: ast.expr, message: str, hint: str = _HINT) -> FinetuneError:
        length = (node.end_col_offset or node.col_offset + 1) - node.col_offset
        place = Location(OPTION, 1, node.col_offset + 1, self.text, length)
        return FinetuneError("config.assertion", message, hint, place)


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _number_text(value: Any) -> str:
    return "never" if value is None else f"{value:.6g}"
