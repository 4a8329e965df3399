"""A JSON Schema of recipes for editors, from the same types that the reader checks against."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from scao_hf.finetune import schema
from scao_hf.finetune.config import SCHEMA_VERSION
from scao_hf.hf.options import OPTIMIZERS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    None: {"type": "null"},
}


def recipe_schema() -> Schema:
    """What a recipe file may hold, with the installed versions of TRL, transformers and PEFT."""
    header: dict[str, Schema] = {
        "schema": {"const": SCHEMA_VERSION},
        "description": {"type": "string"},
        "measured": {"type": ["array", "null"], "items": {"type": "object"}},
    }
    sections = {name: _section(name) for name in schema.SECTIONS}
    return {"$schema": DIALECT, "title": "scao-finetune recipe", **_object(header | sections)}


def _section(name: str) -> Schema:
    hints = schema.section_hints(name)
    if name == "scao":
        # Which of them are legal depends on `training.optim`, which is the reader's to check.
        for optimizer in OPTIMIZERS:
            hints = schema.section_hints(name, optimizer) | hints
    told = _descriptions() if name == "training" else {}
    properties = {}
    for key, hint in hints.items():
        converted = _of(hint)
        if converted is not None:
            # null resets a key, whatever its type.
            properties[key] = _any_of([converted, {"type": "null"}])
            properties[key] |= {"description": told[key]} if key in told else {}
    return {**_object(properties), "type": ["object", "null"]}


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _descriptions() -> dict[str, str]:
    """What TRL and transformers say of their settings."""
    from trl import SFTConfig

    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(SFTConfig)}
    return {name: " ".join(text.split()) for name, text in helps.items() if isinstance(text, str)}


def _of(hint: Any) -> Schema | None:
    """The schema of a type annotation; None for a type that YAML has no values of."""
    if hint is Any:
        return {}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _of_union(arguments)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and Ellipsis not in arguments:
        items = [_of(argument) or {} for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (list, tuple, typing.get_origin(Iterable[Any])):
        return {"type": "array", "items": _of(arguments[0]) or {}}
    if isinstance(origin or hint, type) and issubclass(origin or hint, Mapping):
        return {"type": "object"}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return dict(_PLAIN[hint]) if hint in _PLAIN else None


def _of_union(members: tuple[Any, ...]) -> Schema | None:
    enumerated = any(isinstance(member, type) and issubclass(member, enum.Enum) for member in members)
    # transformers writes its choices as the enumeration or `str`; the enumeration's values are the legal ones.
    known = [_of(member) for member in members if not (enumerated and member is str)]
    schemas = [one for one in known if one is not None]
    return _any_of(schemas) if schemas else None


def _any_of(schemas: list[Schema]) -> Schema:
    flat = [inner for one in schemas for inner in (one["anyOf"] if list(one) == ["anyOf"] else [one])]
    unique = [one for index, one in enumerate(flat) if one not in flat[:index]]
    if {} in unique:
        return {}
    return unique[0] if len(unique) == 1 else {"anyOf": unique}
