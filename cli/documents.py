"""JSON on standard output: one document, standard JSON even where a figure is not finite."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def print_document(document: object) -> None:
    sys.stdout.write(json.dumps(plain(document), indent=2, ensure_ascii=True, allow_nan=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` with paths as strings and infinities and NaN as null, which is all that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
