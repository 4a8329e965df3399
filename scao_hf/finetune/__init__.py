"""The library behind the command line: recipes, data, models, runs and their errors.

`plan`, `train` and `compare` are the commands of these names, for notebooks and programs:

    from scao_hf.finetune import plan, train

    plan("demo")
    report = train("demo", "training.max_steps=20", overwrite=True)

Every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scao_hf.finetune.api import compare, plan, train
    from scao_hf.finetune.config import Recipe
    from scao_hf.finetune.errors import FinetuneError, Interrupted
    from scao_hf.finetune.observer import Observer
    from scao_hf.finetune.outcome import FinetuneReport
    from scao_hf.finetune.planning.outcome import Plan
    from scao_hf.finetune.recipes import copy_recipe, load_recipe, recipe_names

_HOME_OF = {
    "compare": "scao_hf.finetune.api",
    "plan": "scao_hf.finetune.api",
    "train": "scao_hf.finetune.api",
    "Recipe": "scao_hf.finetune.config",
    "FinetuneError": "scao_hf.finetune.errors",
    "Interrupted": "scao_hf.finetune.errors",
    "Observer": "scao_hf.finetune.observer",
    "Plan": "scao_hf.finetune.planning.outcome",
    "copy_recipe": "scao_hf.finetune.recipes",
    "load_recipe": "scao_hf.finetune.recipes",
    "recipe_names": "scao_hf.finetune.recipes",
    "FinetuneReport": "scao_hf.finetune.outcome",
}

__all__ = [
    "FinetuneError",
    "FinetuneReport",
    "Interrupted",
    "Observer",
    "Plan",
    "Recipe",
    "compare",
    "copy_recipe",
    "load_recipe",
    "plan",
    "recipe_names",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'scao_hf.finetune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
