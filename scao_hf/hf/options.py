"""The options of the optimizers by name, as text or as a mapping, read against the constructor's signature.

One reader serves `TrainingArguments(optim_args="damping=1e-3,tau=None")`, `SCAOTrainer(scao_kwargs={"k_max": 32})`
and the `scao:` section of a recipe, so that all three know the same names, types and bounds: those of the constructor.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from scao_hf.optim.kronecker import KroneckerOptimizer

OPTIMIZERS = {
    "scao": ("scao_hf.optim.scao", "SCAO"),
    "scao_published": ("scao_hf.optim.published", "PublishedSCAO"),
    "soap": ("scao_hf.optim.soap", "SOAP"),
}
"""Module and class of each optimizer that `TrainingArguments(optim=...)` may name."""

TRAINING_FIELDS = {"lr": "learning_rate", "learning_rate": "learning_rate", "weight_decay": "weight_decay"}
"""What TrainingArguments decides, by the name an option could have for it."""


class OptionError(ValueError):
    """An option that the optimizer does not have or cannot take. `option` is its name, None if the text has none."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class _Mismatch(Exception):
    """A value is not of the type that was asked for."""


def optimizer_class(name: str) -> type[KroneckerOptimizer]:
    """The class behind `optim=name`; ValueError for a name that is not in `OPTIMIZERS`."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    module, attribute = OPTIMIZERS[name]
    return getattr(importlib.import_module(module), attribute)


def option_defaults(name: str) -> dict[str, Any]:
    """The options of an optimizer and their defaults, in the constructor's order, without lr and weight_decay."""
    parameters = inspect.signature(optimizer_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "params" and p.name not in TRAINING_FIELDS}


def resolve_options(
    name: str, options: str | Mapping[str, Any] | None, *, betas: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Read, convert and check the options of an optimizer.

    Text is `name=value` pairs between commas. A value is an integer, a number such as 1e-4, true or false, none, or a
    tuple written `0.9|0.95` or `(0.9, 0.95)`. A mapping may hold the values themselves or such text. `beta1` and
    `beta2` set one of `betas`.

    Args:
        name: a key of `OPTIMIZERS`.
        options: text, mapping or None.
        betas: what `beta1` or `beta2` alone is completed with; by default the constructor's own betas.

    Returns:
        A new dictionary of keyword arguments that the constructor accepts, with the values' final types.

    Raises:
        OptionError: malformed text, a name that the optimizer does not have (with the nearest one that it has), lr or
            weight_decay (they belong to TrainingArguments), a value of the wrong type, or one that the constructor
            refuses.
    """
    resolved = read_options(name, options, betas=betas)
    _construct(name, resolved)
    return resolved


def read_options(
    name: str, options: str | Mapping[str, Any] | None, *, betas: tuple[float, float] | None = None
) -> dict[str, Any]:
    """`resolve_options` without asking the constructor: for options that others will complete, such as a lone k_max."""
    given = _pairs(options) if isinstance(options, str) else dict(options or {})
    annotations = _annotations(name)
    halves = {key: _convert(name, key, given.pop(key), float) for key in ("beta1", "beta2") if key in given}
    if halves and "betas" in given:
        raise OptionError("give betas, or beta1 and beta2, not both", "betas")
    for key in given:
        if key not in annotations:
            raise _unknown(name, key, annotations)
    read = {key: _convert(name, key, value, annotations[key]) for key, value in given.items()}
    if halves:
        first, second = betas or _default_betas(name)
        read["betas"] = (halves.get("beta1", first), halves.get("beta2", second))
    return read


def hyperparameters(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor makes of resolved options, its defaults filled in; without lr and weight_decay."""
    group = _construct(name, options).param_groups[0]
    return {option: group[option] for option in option_defaults(name)}


def adam_steps_of(name: str, options: Mapping[str, Any]) -> int:
    """Steps of plain Adam with which an optimizer of resolved options begins."""
    optimizer = _construct(name, options)
    return optimizer.adam_steps(optimizer.param_groups[0])


def format_options(options: Mapping[str, Any]) -> str:
    """Options as the text that `resolve_options` reads back to equal values; OptionError for one that has no text."""
    return ",".join(f"{key}={_text(key, value)}" for key, value in options.items())


def _text(key: str, value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "|".join(_text(key, item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    raise OptionError(f"{key}={value!r} cannot be written as text", key)


# Text


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    # A comma inside brackets separates the members of a tuple, not two options.
    for item in re.split(r",(?![^(\[]*[)\]])", text) if text.strip() else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value) or "=" in value:
            raise OptionError(
                f"optim_args is name=value pairs between commas, such as 'damping=1e-3,k_max=16'; in {text!r} the part "
                f"{item.strip()!r} is not one"
            )
        if key in pairs:
            raise OptionError(f"optim_args sets {key} twice: {text!r}", key)
        pairs[key] = value
    return pairs


def _literal(text: str) -> Any:
    """The value that a text denotes: None, a boolean, an integer, a number, a tuple of such, or the text itself."""
    stripped = text.strip()
    if re.fullmatch(r"\(.*\)|\[.*\]", stripped) or "|" in stripped:
        return tuple(_literal(part) for part in re.split(r"[,|]", stripped.strip("()[]")) if part.strip())
    words = {"none": None, "null": None, "true": True, "false": False}
    if stripped.lower() in words:
        return words[stripped.lower()]
    for number in (int, float):
        try:
            return number(stripped)
        except ValueError:
            continue
    return stripped


# Types


def _annotations(name: str) -> dict[str, Any]:
    hints = typing.get_type_hints(optimizer_class(name).__init__)
    return {option: hints.get(option, Any) for option in option_defaults(name)}


def _convert(name: str, option: str, value: Any, annotation: Any) -> Any:
    read = _literal(value) if isinstance(value, str) else value
    try:
        return _as(annotation, read)
    except _Mismatch:
        raise OptionError(f"{name}'s option {option} is {_describe(annotation)}, got {value!r}", option) from None


def _as(annotation: Any, value: Any) -> Any:
    """`value` as the annotated type, widened from int to float or narrowed from a whole float to int."""
    origin = get_origin(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _as_any_of(get_args(annotation), value)
    if origin is Literal:
        return _checked(value, value in get_args(annotation))
    if origin is tuple:
        return _as_tuple(get_args(annotation), value)
    if annotation is None or annotation is type(None):
        return _checked(value, value is None)
    if annotation is float or annotation is int:
        _checked(value, isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
        return _checked(annotation(value), annotation is float or value == int(value))
    if annotation is bool or annotation is str:
        return _checked(value, isinstance(value, annotation))
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return _checked(value, callable(value))
    return _checked(value, not isinstance(annotation, type) or isinstance(value, annotation))


def _as_any_of(alternatives: tuple[Any, ...], value: Any) -> Any:
    for alternative in alternatives:
        try:
            return _as(alternative, value)
        except _Mismatch:
            continue
    raise _Mismatch


def _as_tuple(members: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise _Mismatch
    expected = members[:1] * len(value) if members[1:] == (...,) else members
    _checked(value, len(value) == len(expected))
    return tuple(_as(member, item) for member, item in zip(expected, value, strict=True))


def _checked(value: Any, holds: bool) -> Any:
    if not holds:
        raise _Mismatch
    return value


def _describe(annotation: Any) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in members)
    if origin is Literal:
        return "one of " + ", ".join(map(str, members))
    if origin is tuple:
        return f"a tuple such as {'|'.join(['0.9', '0.95', '0.99'][: len(members)])}"
    if origin is not None:
        return "a function"
    words = {float: "a finite number", int: "a whole number", bool: "true or false", type(None): "none", str: "a word"}
    return words.get(annotation, str(annotation))


# Names and values


def _unknown(name: str, option: str, known: Mapping[str, Any]) -> OptionError:
    if option in TRAINING_FIELDS:
        field = TRAINING_FIELDS[option]
        return OptionError(f"{option} is not an option of {name}: set TrainingArguments({field}=...) instead", option)
    near = difflib.get_close_matches(option, known, n=1)
    hint = f": did you mean {near[0]}?" if near else "."
    return OptionError(f"{name} has no option {option}{hint} Its options are {', '.join(known)}", option)


def _default_betas(name: str) -> tuple[float, float]:
    return _construct(name, {}).param_groups[0]["betas"]


def _construct(name: str, options: Mapping[str, Any]) -> KroneckerOptimizer:
    """The optimizer over one small parameter: its constructor is the judge of what values are allowed."""
    import torch

    try:
        return optimizer_class(name)([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    except (TypeError, ValueError) as error:
        guilty = next((option for option in options if re.search(rf"\b{option}\b", str(error))), None)
        raise OptionError(f"{name}: {error}", guilty) from error
