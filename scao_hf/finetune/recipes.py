"""Recipes by name: those that come with the package, those in ./recipes, and any file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scao_hf.finetune.config import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeSummary:
    """A line of the list of recipes."""

    name: str
    description: str
    model: str | None
    """None: to be given."""
    data: str | None
    method: str
    """"LoRA", "quantized LoRA" or "full"."""
    optimizer: str
    measured: tuple[str, ...]
    """One line each: what a real run of the recipe took and reached."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted."""
    raise NotImplementedError


def describe(name: str) -> RecipeSummary:
    """What `recipes list` shows of one recipe; no library is loaded for it."""
    raise NotImplementedError


def recipe_text(name: str) -> str:
    """The recipe's YAML as it was written, comments included."""
    raise NotImplementedError


def copy_recipe(name: str, dest: Path | str | None = None, force: bool = False) -> Path:
    """Write a recipe to `dest` (a file, a directory, or by default ./NAME.yaml) and return where it lies."""
    raise NotImplementedError


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe."""
    raise NotImplementedError


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default and override filled in, as YAML."""
    raise NotImplementedError
