"""Old names in a recipe's text, written as the installed transformers has them; comments and layout stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scao_hf.finetune import schema, yaml_core
from scao_hf.finetune.errors import Location

SECTION = "training"
"""The only section whose keys transformers has renamed."""


@dataclass(frozen=True)
class Mended:
    """The text, and what was changed in it or would have to be by hand, a sentence each."""

    text: str
    changes: tuple[str, ...]
    left: tuple[str, ...]


def mend(text: str, source: str) -> Mended:
    """Rename the keys of `training` that the installed transformers calls otherwise, and remove those it never reads.

    Raises:
        FinetuneError: config.yaml, config.duplicate-key, config.not-a-mapping: not to be read at all.
    """
    document = yaml_core.read_document(text, source)
    values = document.data.get(SECTION)
    if not isinstance(values, Mapping):
        return Mended(text, (), ())
    hints = schema.section_hints(SECTION)
    lines, changes, left = text.splitlines(keepends=True), [], []
    places = [(document.keys[SECTION, str(key)], str(key), value) for key, value in values.items() if key not in hints]
    # From the end, so that the places of the others stay where they are.
    for place, key, value in sorted(places, key=lambda one: (one[0].line, one[0].column), reverse=True):
        current = schema.current_name(key, value, hints)
        if current == (key, value):
            continue
        if current is not None and current[0] in values:
            left.append(f"{place}: {key} and {current[0]} are two names of one setting")
        elif _edit(lines, place, key, value, current):
            changes.append(f"{place}: {key} " + ("removed" if current is None else _renamed(value, current)))
        else:
            left.append(f"{place}: {key} stands where it cannot be changed without its neighbours")
    return Mended("".join(lines), tuple(reversed(changes)), tuple(reversed(left)))


def _renamed(value: Any, current: tuple[str, Any]) -> str:
    return f"is {current[0]} now" if value == current[1] else f"is {current[0]}: {current[1]} now"


def _edit(lines: list[str], place: Location, key: str, value: Any, current: tuple[str, Any] | None) -> bool:
    """Change one line in place; False if the key cannot be changed by itself."""
    line = lines[place.line - 1]
    start, end = place.column - 1, place.column - 1 + place.length
    written = line[start:end]
    if current is None:
        alone = re.fullmatch(r"\s*" + re.escape(written) + r"\s*:\s*[^\s{\[|>&][^{\[|>&]*\s*", line)
        if alone is None:
            return False
        del lines[place.line - 1]
        return True
    tail = line[end:]
    if current[1] != value:
        tail, replaced = re.subn(r"^(\s*:\s*)(?:true|false)\b", rf"\g<1>{current[1]}", tail, flags=re.IGNORECASE)
        if not replaced:
            return False
    lines[place.line - 1] = line[:start] + written.replace(key, current[0]) + tail
    return True
