"""YAML 1.2 core types with the place of every key: `2e-4` is a number, `no` is a word, a doubled key is an error.

PyYAML reads YAML 1.1, where `2e-4` is a string, `no` is false, `12:30` is 750 and the last of two equal keys wins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from scao_hf.finetune.errors import FinetuneError, Location

Path = tuple[str, ...]

_BOOLEAN = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_INTEGER = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# In this order: every integer also looks like a float.
_RESOLVERS = (
    ("tag:yaml.org,2002:bool", _BOOLEAN, "tTfF"),
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", _INTEGER, "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
)


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own layout)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="a recipe has no `*aliases`; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _CoreDumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in _RESOLVERS:
    _CoreLoader.add_implicit_resolver(_tag, _pattern, list(_first))
    _CoreDumper.add_implicit_resolver(_tag, _pattern, list(_first))


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_integer)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def _represent_tuple(dumper: yaml.SafeDumper, value: tuple[Any, ...]) -> yaml.Node:
    return dumper.represent_list(list(value))


_CoreDumper.add_representer(tuple, _represent_tuple)


@dataclass(frozen=True)
class Document:
    """A YAML mapping and where its keys stand."""

    data: dict[str, Any]
    keys: dict[Path, Location]
    """Place of the key at each path; a doubled key raises instead."""


def read_document(text: str, file: str) -> Document:
    """Parse a mapping.

    Raises:
        FinetuneError: config.yaml (not YAML), config.duplicate-key, config.not-a-mapping, all with their place.
    """
    lines = text.splitlines()
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document({}, {})
        if not isinstance(node, yaml.MappingNode):
            message = f"{file} holds a {_kind(node)} where a recipe has sections"
            raise FinetuneError("config.not-a-mapping", message, "start with `schema: 1`", _place(node, file, lines))
        keys: dict[Path, Location] = {}
        _index(node, (), file, lines, keys)
        return Document(loader.construct_document(node), keys)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file, lines) from error
    except yaml.reader.ReaderError as error:
        message = f"{file} holds the character U+{ord(text[error.position]):04X}, which YAML forbids"
        raise FinetuneError("config.yaml", message, "save the file as UTF-8 text") from error


def read_value(text: str) -> Any:
    """Parse the right side of `key=value`.

    Raises:
        FinetuneError: config.yaml or config.duplicate-key.
    """
    document = read_document(f"value: {text}" if "\n" not in text else f"value:\n{text}", "value")
    return document.data.get("value")


def write(data: Any) -> str:
    """The data as YAML that `read_document` reads back to equal values, in the order given."""
    return yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=110)


def write_line(data: dict[str, Any]) -> str:
    """A mapping of plain values on one line, `{like: this}`."""
    options: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    return yaml.dump(data, Dumper=_CoreDumper, width=float("inf"), **options).strip()


def _index(node: yaml.MappingNode, path: Path, file: str, lines: list[str], keys: dict[Path, Location]) -> None:
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            message = f"a key must be a word, got a {_kind(key_node)}"
            raise FinetuneError("config.yaml", message, None, _place(key_node, file, lines))
        key = (*path, key_node.value)
        if key in keys:
            message = f"key `{'.'.join(key)}` stands twice, first in line {keys[key].line}"
            raise FinetuneError("config.duplicate-key", message, "keep one of them", _place(key_node, file, lines))
        keys[key] = _place(key_node, file, lines)
        if isinstance(value_node, yaml.MappingNode):
            _index(value_node, key, file, lines, keys)


def _place(node: yaml.Node, file: str, lines: list[str]) -> Location:
    mark, end = node.start_mark, node.end_mark
    text = lines[mark.line] if mark.line < len(lines) else ""
    length = end.column - mark.column if end.line == mark.line else len(text) - mark.column
    return Location(file, mark.line + 1, mark.column + 1, text, max(1, length))


def _syntax_error(error: yaml.MarkedYAMLError, file: str, lines: list[str]) -> FinetuneError:
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "cannot be parsed"
    hint = "indent with spaces" if "\\t" in what else None
    if mark is None:
        return FinetuneError("config.yaml", f"{file} is not valid YAML: {what}", hint)
    text = lines[mark.line] if mark.line < len(lines) else ""
    place = Location(file, mark.line + 1, mark.column + 1, text)
    return FinetuneError("config.yaml", f"not valid YAML: {what}", hint, place)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.SequenceNode) else "single value"
