"""Shell completion of a recipe: the packaged names, and the YAML files that lie where the word points."""

from __future__ import annotations

from pathlib import Path

RECIPE_FILES = ("*.yaml", "*.yml")


def complete_packaged_recipe(incomplete: str) -> list[str]:
    from scao_hf.finetune.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    folder, _, _ = incomplete.rpartition("/")
    here = Path(folder) if folder else Path()
    files = [path.as_posix() for pattern in RECIPE_FILES for path in here.glob(pattern)]
    return [*complete_packaged_recipe(incomplete), *(file for file in sorted(files) if file.startswith(incomplete))]


def complete_run(incomplete: str) -> list[str]:
    """Runs below `runs/`, by the names that commands take."""
    from scao_hf.finetune.layout import RUN
    from scao_hf.finetune.results.folder import RUNS

    names = sorted(record.parent.name for record in Path(RUNS).glob(f"*/{RUN}"))
    folders = [f"{RUNS}/{name}" for name in names]
    return [name for name in (*names, *folders) if name.startswith(incomplete)]
