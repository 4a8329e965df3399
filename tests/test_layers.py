"""The import map: cli → finetune → hf → optim → numerics, read from the syntax trees, functions included."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "scao_hf.numerics": ROOT / "scao_hf" / "numerics",
    "scao_hf.optim": ROOT / "scao_hf" / "optim",
    "scao_hf.hf": ROOT / "scao_hf" / "hf",
    "scao_hf.finetune": ROOT / "scao_hf" / "finetune",
    "scao_hf.recipes": ROOT / "recipes",
    "scao_hf.cli": ROOT / "cli",
}

MAY_IMPORT = {
    "scao_hf.numerics": set(),
    "scao_hf.optim": {"scao_hf.numerics"},
    "scao_hf.hf": {"scao_hf.optim"},
    # `scao_hf` is the front door: its public names live in hf and optim.
    "scao_hf.finetune": {"scao_hf.hf", "scao_hf.optim", "scao_hf.recipes", "scao_hf"},
    "scao_hf.recipes": set(),
    "scao_hf.cli": {"scao_hf.finetune", "scao_hf"},
}
"""Which other layers the files of a layer may import."""

HOME_OF = {
    "transformers": {"scao_hf.hf", "scao_hf.finetune"},
    "peft": {"scao_hf.hf", "scao_hf.finetune"},
    "datasets": {"scao_hf.hf", "scao_hf.finetune"},
    "trl": {"scao_hf.hf", "scao_hf.finetune"},
    "accelerate": {"scao_hf.hf", "scao_hf.finetune"},
    "typer": {"scao_hf.cli"},
    "rich": {"scao_hf.cli"},
    "click": {"scao_hf.cli"},
    "matplotlib": {"scao_hf.finetune.comparison", "scao_hf.finetune.reporting", "scao_hf.finetune.results"},
    "jinja2": {"scao_hf.finetune.reporting", "scao_hf.finetune.templates"},
}
"""Which layers, or parts of one, may import a package at all."""


class Import(NamedTuple):
    """One import: the dotted module (relative ones as written), the line, and whether it runs with the file."""

    module: str
    level: int
    line: int
    at_once: bool


def source_files() -> list[Path]:
    return sorted({*(ROOT / "scao_hf").rglob("*.py"), *(ROOT / "cli").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")})


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [part for part in relative.parts if part != "__init__"]
    return ".".join(parts if parts[0] == "scao_hf" else ["scao_hf", *parts])


def layer_of(module: str) -> str:
    """The layer of a module; "scao_hf" for the files at the root of the package."""
    layer = ".".join(module.split(".")[:2])
    return layer if layer in FOLDERS else "scao_hf"


def imports_of(source: str) -> Iterator[Import]:
    """Every import statement, and every `import_module` of a literal name, wherever it stands."""
    tree = ast.parse(source)
    at_once = {node for statement in tree.body for node in ast.walk(statement)} - {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(outer)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, 0, node.lineno, node in at_once)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", 0, node.lineno, node in at_once)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            for alias in node.names:
                yield Import(prefix + alias.name, node.level, node.lineno, node in at_once)
        elif isinstance(node, ast.Call) and (name := literally_imported(node)):
            yield Import(name, 0, node.lineno, node in at_once)


def literally_imported(call: ast.Call) -> str | None:
    """The module that `import_module("…")` or `__import__("…")` names."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = call.args[0] if call.args else None
    named = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return first.value if named and called in {"import_module", "__import__"} else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def at_home(module: str, package: str) -> bool:
    return any(f"{module}.".startswith(f"{home}.") for home in HOME_OF[package])


def violations(module: str, source: str) -> list[str]:
    """What in this source breaks the map, one sentence each."""
    layer = layer_of(module)
    found = []
    for name, level, line, _ in imports_of(source):
        package = name.split(".")[0]
        if level:
            if layer != "scao_hf.cli":
                found.append(f"{module}:{line} imports {'.' * level}{name} relatively; only files of cli/ do")
            elif level > 1:
                found.append(f"{module}:{line} climbs out of cli/ with {'.' * level}{name}")
        elif package == "scao_hf" and layer != "scao_hf":
            target = layer_of(name)
            if target == layer == "scao_hf.cli":
                found.append(f"{module}:{line} imports {name} absolutely; write it relative")
            # The version stands at the root of the package so that every layer may read it.
            elif target not in {layer, *MAY_IMPORT[layer]} and not name.startswith("scao_hf._version"):
                found.append(f"{module}:{line} imports {name}; {layer} may import {sorted(MAY_IMPORT[layer])}")
        elif package in HOME_OF and not at_home(module, package) and not (layer == "scao_hf" and package == "click"):
            found.append(f"{module}:{line} imports {package}, which only {sorted(HOME_OF[package])} may")
        elif layer == "scao_hf.numerics" and package != "torch" and package not in sys.stdlib_module_names:
            found.append(f"{module}:{line} imports {package}; numerics imports torch only")
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_points_to_the_right(path: Path) -> None:
    assert violations(module_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scao_hf.numerics.moments", "from scao_hf.optim.stack import Stack"),
        ("scao_hf.numerics.moments", "import numpy"),
        ("scao_hf.optim.scao", "def f():\n    from scao_hf.hf import parameters"),
        ("scao_hf.optim.scao", "from scao_hf import hf"),
        ("scao_hf.optim.scao", "from scao_hf import SCAO"),
        ("scao_hf.optim.scao", "import transformers.trainer"),
        ("scao_hf.optim.scao", "import importlib\nimportlib.import_module('transformers')"),
        ("scao_hf.optim.scao", "from .soap import SOAP"),
        ("scao_hf.hf.trainer", "from scao_hf.finetune.run import finetune"),
        ("scao_hf.hf.trainer", "from scao_hf.numerics.moments import adam_direction"),
        ("scao_hf.finetune.run", "import rich"),
        ("scao_hf.finetune.run", "import matplotlib"),
        ("scao_hf.cli.compare", "import jinja2"),
        ("scao_hf.finetune.run", "from scao_hf.cli import app"),
        ("scao_hf.cli.train", "from scao_hf.optim.scao import SCAO"),
        ("scao_hf.cli.train", "from scao_hf.cli.options import Debug"),
        ("scao_hf.cli.train", "from ..optim import scao"),
        ("scao_hf.cli.train", "from transformers import Trainer"),
        ("scao_hf.something", "import typer"),
    ],
)
def test_an_import_to_the_left_is_noticed(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scao_hf.numerics.moments", "import math\nimport torch.nn.functional\nfrom scao_hf.numerics.blocks import x"),
        ("scao_hf.optim.scao", "from scao_hf.numerics import moments"),
        ("scao_hf.finetune.run", "from scao_hf.hf.trainer import SCAOTrainer\nimport trl"),
        ("scao_hf.finetune.comparison.figures", "from matplotlib.figure import Figure"),
        ("scao_hf.cli.train", "import typer\nfrom .options import Debug\nfrom scao_hf._version import __version__"),
    ],
)
def test_an_import_to_the_right_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): path for path in source_files()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        wanted = set()
        for name, level, _, at_once in imports_of(path.read_text(encoding="utf-8")):
            full = f"{package}.{name}" if level else name
            target = full if full in modules else full.rpartition(".")[0]
            if at_once and target in modules and target != module:
                wanted.add(target)
        graph[module] = wanted
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import scao_hf", ["torch", "transformers", "typer", "rich"]),
        ("from scao_hf import SCAO, PublishedSCAO, SOAP", ["transformers", "typer", "rich"]),
        ("import scao_hf.cli.app", ["torch", "transformers"]),
    ],
)
def test_importing_stays_light(statement: str, absent: list[str]) -> None:
    program = f"import sys\n{statement}\nprint(*(name for name in {absent!r} if name in sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert finished.stdout.split() == []
