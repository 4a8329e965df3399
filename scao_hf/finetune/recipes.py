"""Recipes by name: those that come with the package, those in ./recipes, and any file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from scao_hf.finetune import yaml_core
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.file_readers import SUFFIXES as DATA_SUFFIXES
from scao_hf.finetune.file_readers import suffix_of
from scao_hf.finetune.schema import DEFAULT_OPTIMIZER, closest

SUFFIXES = (".yaml", ".yml")
LOCAL_FOLDER = "recipes"


@dataclass(frozen=True, kw_only=True)
class RecipeSummary:
    """A line of the list of recipes."""

    name: str
    description: str
    model: str | None
    """None: to be given."""
    data: str | None
    method: str
    """"LoRA", "QLoRA" or "full"."""
    optimizer: str
    measured: tuple[str, ...]
    """One line each: what a real run of the recipe took and reached."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _packaged().iterdir() if entry.name.endswith(".yaml"))


def describe(name: str) -> RecipeSummary:
    """What `recipes list` shows of one recipe; no library is loaded for it.

    Raises:
        FinetuneError: config.unknown-recipe, config.yaml.
    """
    path = find_recipe(name)
    data = yaml_core.read_document(_read(path), str(path)).data
    return RecipeSummary(
        name=path.stem,
        description=str(data.get("description", "")),
        model=_entry(data, "model", "model_name_or_path"),
        data=_entry(data, "data", "path"),
        method=_method(data),
        optimizer=_entry(data, "training", "optim") or DEFAULT_OPTIMIZER,
        measured=tuple(_measurement(item) for item in data.get("measured") or ()),
    )


def recipe_text(name: str) -> str:
    """The recipe's YAML as it was written, comments included.

    Raises:
        FinetuneError: config.unknown-recipe.
    """
    return _read(find_recipe(name))


def copy_recipe(name: str, dest: Path | str | None = None, force: bool = False) -> Path:
    """Write a recipe to `dest` (a file, a directory, or by default ./NAME.yaml) and return where it lies.

    Raises:
        FinetuneError: config.unknown-recipe; config.file-exists if `dest` exists and `force` is False; disk.* if it
            cannot be written.
    """
    source = find_recipe(name)
    target = Path.cwd() if dest is None else Path(dest).expanduser()
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        raise FinetuneError("config.file-exists", f"{target} exists", "give another name, or --force to replace it")
    write_text(target, _read(source))
    return target


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named, and the folders to it.

    Raises:
        FinetuneError: disk.write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FinetuneError("disk.write", f"cannot write {path}: {error.strerror}", "give another place") from error


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe; see `scao_hf.finetune.reader.read_recipe`.

    Args:
        name_or_path: a file, or a name looked up as ./recipes/NAME.yaml and then among the packaged recipes.
        overrides: texts "section.key=value".

    Raises:
        FinetuneError: kind "config"; `SeveralErrors` if more than one thing is wrong.
    """
    from scao_hf.finetune.quiet import quiet
    from scao_hf.finetune.reader import read_recipe

    path = find_recipe(name_or_path)
    # The classes whose signatures a recipe is read against bring libraries that talk when they are imported.
    with quiet():
        return read_recipe(_read(path), _shown_path(path), overrides)


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: the path itself, ./recipes/NAME.yaml, or the packaged one.

    Raises:
        FinetuneError: config.missing-file for a path, config.unknown-recipe for a name.
    """
    given = Path(name_or_path).expanduser()
    if suffix_of(given) in DATA_SUFFIXES and given.is_file():
        hint = f"give it as --data: scao-finetune train lora-sft --model MODEL --data {name_or_path}"
        raise FinetuneError("config.unknown-recipe", f"{name_or_path} is a file of data, not a recipe", hint)
    if given.suffix in SUFFIXES or os.sep in name_or_path or name_or_path.startswith("."):
        return _existing_file(given)
    candidates = [Path(LOCAL_FOLDER, f"{name_or_path}.yaml"), Path(str(_packaged() / f"{name_or_path}.yaml"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    local = [path.stem for path in Path(LOCAL_FOLDER).glob("*.yaml")]
    near = closest(name_or_path, [*recipe_names(), *local])
    hint = f"did you mean `{near}`?" if near else f"the recipes are {', '.join(recipe_names())}; or give a .yaml file"
    raise FinetuneError("config.unknown-recipe", f"no recipe is called `{name_or_path}`", hint)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with its overrides applied, as YAML that `load_recipe` reads back to the same sections."""
    lines = [f"# from {recipe.source}", *(f"# override: {override}" for override in recipe.overrides)]
    return "\n".join(lines) + "\n" + yaml_core.write(recipe_dict(recipe))


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe's sections as plain values, in the order of a recipe file."""
    values = {key: _plain(getattr(recipe, key)) for key in ("schema", "description", "measured")}
    sections = ("model", "quantization", "lora", "data", "training", "scao")
    return values | {section: _plain(getattr(recipe, section)) for section in sections}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _existing_file(path: Path) -> Path:
    if path.is_file():
        return path
    folder = path.parent
    near = closest(path.name, [entry.name for entry in folder.iterdir()]) if folder.is_dir() else None
    if path.is_dir():
        raise FinetuneError("config.missing-file", f"{path} is a directory, not a recipe", "give a .yaml file")
    hint = f"did you mean {folder / near}?" if near else "`scao-finetune recipes list` shows the packaged ones"
    raise FinetuneError("config.missing-file", f"no such recipe file: {path}", hint)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FinetuneError("config.yaml", f"{path} is not UTF-8 text", "save the file as UTF-8") from error
    except OSError as error:
        raise FinetuneError("config.missing-file", f"cannot read {path}: {error.strerror}", None) from error


def _packaged() -> Path:
    return Path(str(files("scao_hf.recipes")))


def is_packaged(path: Path) -> bool:
    """Whether a recipe's file is one of this package's."""
    return path.parent == _packaged()


def _shown_path(path: Path) -> str:
    """A packaged recipe by its name, any other file as it was given."""
    return path.name if is_packaged(path) else str(path)


def _entry(data: Mapping[str, Any], section: str, key: str) -> str | None:
    values = data.get(section)
    value = values.get(key) if isinstance(values, Mapping) else None
    return None if value is None else str(value)


def _method(data: Mapping[str, Any]) -> str:
    if data.get("lora") is None:
        return "full"
    return "LoRA" if data.get("quantization") is None else "QLoRA"


def _measurement(item: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in item.items()) if isinstance(item, Mapping) else str(item)
