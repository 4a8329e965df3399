"""From the text of a recipe and overrides to a checked `Recipe`; everything that is wrong is reported together."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune import schema, yaml_core
from scao_hf.finetune.config import SCHEMA_VERSION, DataSection, ModelSection, Recipe
from scao_hf.finetune.consistency import inconsistencies
from scao_hf.finetune.errors import FinetuneError, Location, raise_all
from scao_hf.hf.options import optimizer_class

_HEADER = ("schema", "description", "measured")
_OPTIONAL_SECTIONS = ("quantization", "lora", "scao")
_MANY_CHOICES = 24
"""A message lists more than these only where none of them is near."""
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class _Setting:
    """A value of a recipe and where it was written."""

    value: Any
    location: Location


_Settings = dict[str, dict[str, _Setting] | None]
"""Section to key to setting; None for a section that was set to null."""


def read_recipe(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe strictly.

    Args:
        text: YAML.
        source: the file's name, for messages; its stem becomes the recipe's name.
        overrides: "section.key=value", or "key=value" where only one section has the key; null resets a key.

    Raises:
        FinetuneError: kind "config", with the place; `SeveralErrors` if more than one thing is wrong.
    """
    return _Reading(text, source, tuple(overrides)).recipe()


class _Reading:
    """One pass over one recipe, collecting problems and notices."""

    def __init__(self, text: str, source: str, overrides: tuple[str, ...]) -> None:
        self.source = source
        self.overrides = overrides
        self.document = yaml_core.read_document(text, source)
        self.problems: list[FinetuneError] = []
        self.notices: list[str] = []
        self.settings: _Settings = {}
        self.hints: dict[str, schema.Hints] = {}

    def recipe(self) -> Recipe:
        self._read_header()
        self._read_sections()
        parsed = list(self._parse_overrides())
        self._read_hints(parsed)
        for override in parsed:
            self._apply_override(*override)
        self._check_keys()
        self._check_constructors()
        recipe = None if self.problems else self._build()
        if recipe is not None:
            self._check_combinations(recipe)
        raise_all(self.problems, self.source)
        assert recipe is not None
        return recipe

    def _fail(self, code: str, message: str, hint: str | None, location: Location | None) -> None:
        self.problems.append(FinetuneError(f"config.{code}", message, hint, location))

    # Reading

    def _read_header(self) -> None:
        version = self.document.data.get("schema", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            message = f"`schema` is {version!r}, and this version of scao-hf reads schema {SCHEMA_VERSION}"
            self._fail("schema", message, f"write `schema: {SCHEMA_VERSION}`", self.document.keys[("schema",)])
        description = self.document.data.get("description", "")
        if not isinstance(description, str):
            message = f"`description` must be text, got {description!r}"
            self._fail("wrong-type", message, "put it in quotes", self.document.keys[("description",)])
        measured = self.document.data.get("measured") or []
        if not isinstance(measured, list) or not all(isinstance(item, dict) for item in measured):
            message = "`measured` must be a list of mappings"
            self._fail("wrong-type", message, None, self.document.keys[("measured",)])

    def _read_sections(self) -> None:
        for key, value in self.document.data.items():
            if key in _HEADER:
                continue
            location = self.document.keys[(str(key),)]
            if key not in schema.SECTIONS:
                self._unknown_section(str(key), location)
            elif value is None and key in _OPTIONAL_SECTIONS:
                self.settings[key] = None
            elif value is None:
                self.settings[key] = {}
            elif not isinstance(value, dict):
                self._fail("wrong-type", f"section `{key}` must be a mapping, got {value!r}", None, location)
            else:
                keys = {str(name): self.document.keys[key, str(name)] for name in value}
                self.settings[key] = {str(name): _Setting(item, keys[str(name)]) for name, item in value.items()}

    def _unknown_section(self, key: str, location: Location) -> None:
        known = [*_HEADER, *schema.SECTIONS]
        near = schema.closest(key, known)
        if near is not None:
            hint = f"did you mean `{near}`?"
        elif key in schema.PEERS:
            hint = f"write it as {schema.PEERS[key]}"
        else:
            hint = f"the sections are {', '.join(schema.SECTIONS)}"
        self._fail("unknown-key", f"unknown key `{key}`", hint, location)

    def _parse_overrides(self) -> Iterator[tuple[str, str, Location]]:
        for number, text in enumerate(self.overrides, start=1):
            key, equals, value = text.partition("=")
            location = Location(COMMAND_LINE, number, 1, text, max(1, len(key)))
            if equals and key.strip():
                yield key.strip(), value.strip(), location
            else:
                self._fail("override", f"`{text}` is not an override", "write section.key=value", location)

    def _read_hints(self, parsed: Sequence[tuple[str, str, Location]]) -> None:
        optimizer = self._optimizer_setting(parsed)
        self.hints = {section: schema.section_hints(section, optimizer) for section in schema.SECTIONS}

    def _optimizer_setting(self, parsed: Sequence[tuple[str, str, Location]]) -> str:
        training = self.settings.get("training") or {}
        optimizer = training["optim"].value if "optim" in training else schema.DEFAULT_OPTIMIZER
        for key, value, _ in parsed:
            if key in ("training.optim", "optim"):
                optimizer = schema.DEFAULT_OPTIMIZER if value == "null" else value
        return str(optimizer)

    # Overrides

    def _apply_override(self, key: str, text: str, location: Location) -> None:
        try:
            value = yaml_core.read_value(text)
        except FinetuneError as error:
            reason = error.message.removeprefix("not valid YAML: ")
            self._fail("override", f"the value of `{key}` is not valid YAML: {reason}", "quote it", location)
            return
        section, _, rest = key.partition(".")
        if section in schema.SECTIONS and not rest:
            self._override_section(section, value, location)
        elif section in schema.SECTIONS:
            self._override_key(section, rest, value, text, location)
        else:
            owners = [name for name in schema.SECTIONS if key.partition(".")[0] in self.hints[name]]
            if len(owners) == 1:
                self._override_key(owners[0], key, value, text, location)
            elif owners:
                named = " or ".join(f"{owner}.{key}" for owner in owners)
                self._fail("ambiguous-key", f"`{key}` is ambiguous: {named}", "write the section as well", location)
            else:
                self._unknown_bare_key(key, location)

    def _unknown_bare_key(self, key: str, location: Location) -> None:
        paths = {name: f"{section}.{name}" for section in schema.SECTIONS for name in self.hints[section]}
        near = schema.PEERS.get(key) or paths.get(schema.closest(key, paths) or "")
        hint = f"did you mean `{near}`?" if near else "`scao-finetune recipes show NAME` shows a recipe's keys"
        self._fail("unknown-key", f"unknown key `{key}`", hint, location)

    def _override_section(self, section: str, value: Any, location: Location) -> None:
        if value is None and section in _OPTIONAL_SECTIONS:
            self.settings[section] = None
        elif isinstance(value, dict):
            self.settings[section] = {str(key): _Setting(item, location) for key, item in value.items()}
        else:
            message = f"section `{section}` must be a mapping, got {value!r}"
            self._fail("wrong-type", message, f"write {section}.KEY=VALUE", location)

    def _override_key(self, section: str, key: str, value: Any, text: str, location: Location) -> None:
        settings = self.settings.get(section) or {}
        self.settings[section] = settings
        name, _, inner = key.partition(".")
        hint = self.hints[section].get(name, Any)
        if inner:
            held = settings[name].value if name in settings else None
            mapping = dict(held) if isinstance(held, Mapping) else {}
            settings[name] = _Setting(mapping | {inner: value}, location)
        elif value is not None and not schema.accepts(hint, value) and schema.accepts(hint, text):
            settings[name] = _Setting(text, location)  # A file called `12.txt` or `a: b` needs no quotes here.
        else:
            settings[name] = _Setting(value, location)

    # Checking

    def _check_keys(self) -> None:
        for section, settings in self.settings.items():
            if section == "scao" and not self.hints["scao"]:
                continue
            for key, setting in list((settings or {}).items()):
                self._check_key(section, key, setting, settings or {})

    def _check_key(self, section: str, key: str, setting: _Setting, settings: dict[str, _Setting]) -> None:
        hints = self.hints[section]
        if section == "training" and key not in hints:
            renamed = self._rename(key, setting, settings)
            if renamed is None:
                return
            key, setting = renamed
        if key not in hints:
            self._unknown_key(section, key, setting.location)
        elif setting.value is not None and not schema.accepts(hints[key], setting.value):
            self._wrong_type(section, key, setting)
        elif setting.value is None and not schema.accepts(hints[key], None):
            del settings[key]

    def _rename(self, key: str, setting: _Setting, settings: dict[str, _Setting]) -> tuple[str, _Setting] | None:
        """The name and value that the installed transformers has for a key; None if the key is dropped."""
        current = schema.current_name(key, setting.value, self.hints["training"])
        if current is None:
            self.notices.append(f"training.{key} is not read: {schema.DROPPED[key]}")
            del settings[key]
            return None
        new, setting = current[0], _Setting(current[1], setting.location)
        if new == key:
            return key, setting
        if new in settings:
            message = f"`training.{key}` and `training.{new}` are two names of one setting"
            self._fail("duplicate-key", message, f"keep `{new}`", setting.location)
            return None
        self.notices.append(f"training.{key} is called training.{new} now; read as such")
        del settings[key]
        settings[new] = setting
        return new, setting

    def _unknown_key(self, section: str, key: str, location: Location) -> None:
        path = f"{section}.{key}"
        moved = schema.ELSEWHERE.get(section, {})
        if key in moved or (section == "training" and key.startswith("hub_")):
            hint = moved.get(key) or moved["push_to_hub"]
            self._fail("unknown-key", f"`{path}` is not a key of a recipe", hint, location)
        else:
            self._fail("unknown-key", f"unknown key `{path}`", self._unknown_key_hint(section, key), location)

    def _unknown_key_hint(self, section: str, key: str) -> str:
        near = schema.closest(key, self.hints[section])
        if key in schema.PEERS:
            return f"did you mean `{schema.PEERS[key]}`?"
        if near is not None:
            return f"did you mean `{near}`?"
        for other in schema.SECTIONS:
            if key in self.hints[other]:
                return f"`{key}` belongs to the section `{other}`"
        for other in schema.SECTIONS:
            if schema.closest(key, self.hints[other]) is not None:
                return f"did you mean `{other}.{schema.closest(key, self.hints[other])}`?"
        names = sorted(self.hints[section])
        if section == "scao":
            optimizer = self._optimizer_setting(())
            return f"the options of {optimizer} are {', '.join(names)}; scao=null leaves all of them out"
        return f"keys of `{section}`: {', '.join(names)}" if len(names) <= 24 else "see `scao-finetune recipes show`"

    def _wrong_type(self, section: str, key: str, setting: _Setting) -> None:
        expected = schema.expectation(self.hints[section][key])
        message = f"`{section}.{key}` must be {expected or 'left out'}, got {_shown(setting.value)}"
        hint = None
        choices = schema.choices(self.hints[section][key])
        near = schema.closest(str(setting.value), choices)
        if near is not None:
            if len(choices) > _MANY_CHOICES:
                message = f"`{section}.{key}` cannot be {_shown(setting.value)}"
            hint = f"did you mean `{near}`?"
        elif "true or false" in expected and str(setting.value).lower() in ("yes", "no", "on", "off"):
            hint = f"write {'true' if str(setting.value).lower() in ('yes', 'on') else 'false'}"
        elif isinstance(setting.value, str) and schema.accepts(self.hints[section][key], _plain(setting.value)):
            hint = "write it without quotes"
        self._fail("wrong-type", message, hint, setting.location)

    def _check_constructors(self) -> None:
        """Let the classes themselves judge the values of their section, if its keys are all right."""
        for section, check in (("lora", _check_lora), ("quantization", _check_quantization)):
            values = self._values(section)
            if values and not self._has_problems(section):
                try:
                    check(values)
                except (ValueError, TypeError) as error:
                    self._fail("invalid-value", f"section `{section}`: {error}", None, self._section_location(section))
        if self.hints["scao"] and self.settings.get("scao") and not self._has_problems("scao"):
            self._check_scao()

    def _check_scao(self) -> None:
        optimizer = self._optimizer_setting(())
        options = {key: value for key, value in self._values("scao").items() if value != "auto"}
        error = _optimizer_error(optimizer, options)
        if error is None:
            return
        alone = {key: _optimizer_error(optimizer, {key: value}) for key, value in options.items()}
        guilty = {key: reason for key, reason in alone.items() if reason is not None}
        for key, reason in guilty.items():
            settings = self.settings["scao"] or {}
            self._fail("invalid-value", f"`scao.{key}`: {reason}", None, settings[key].location)
        if not guilty:
            self._fail("invalid-value", f"section `scao`: {error}", None, self._section_location("scao"))

    def _check_combinations(self, recipe: Recipe) -> None:
        for path, message, hint in inconsistencies(recipe):
            self._fail("invalid-value", message, hint, self._location(path))

    def _has_problems(self, section: str) -> bool:
        return any(f"`{section}." in problem.message for problem in self.problems)

    def _location(self, path: str) -> Location | None:
        section, _, key = path.partition(".")
        settings = self.settings.get(section) or {}
        return settings[key].location if key in settings else self._section_location(section)

    def _section_location(self, section: str) -> Location | None:
        return self.document.keys.get((section,))

    def _values(self, section: str) -> dict[str, Any]:
        return {key: setting.value for key, setting in (self.settings.get(section) or {}).items()}

    # Building

    def _build(self) -> Recipe:
        name = Path(self.source).stem
        training = {"output_dir": f"runs/{name}"} | schema.TRAINING_DEFAULTS | self._values("training")
        scao = self._values("scao")
        if scao and not self.hints["scao"]:
            self.notices.append(f"training.optim is {training['optim']}: the section `scao` is not read")
            scao = {}
        return Recipe(
            name=name,
            source=self.source,
            schema=SCHEMA_VERSION,
            description=self.document.data.get("description", ""),
            measured=tuple(self.document.data.get("measured") or ()),
            model=ModelSection(**self._values("model")),
            quantization=self._values("quantization") if self.settings.get("quantization") is not None else None,
            lora=self._values("lora") if self.settings.get("lora") is not None else None,
            data=DataSection(**self._values("data")),
            training=training,
            scao=scao,
            overrides=self.overrides,
            notices=tuple(self.notices),
        )


def _check_lora(values: dict[str, Any]) -> None:
    from peft import LoraConfig

    if values.get("r", 1) < 1:
        raise ValueError(f"r must be at least 1, got {values['r']}")
    LoraConfig(task_type="CAUSAL_LM", **values)


def _check_quantization(values: dict[str, Any]) -> None:
    from transformers import BitsAndBytesConfig

    if not values.get("load_in_4bit") and not values.get("load_in_8bit"):
        raise ValueError("set load_in_4bit or load_in_8bit to true")
    # Releases of transformers before 5 ask for bitsandbytes here, whose absence is told where the weights are loaded.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        BitsAndBytesConfig(**values)


def _optimizer_error(optimizer: str, options: Mapping[str, Any]) -> str | None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        optimizer_class(optimizer)([weight], **{key: _tupled(value) for key, value in options.items()})
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    kind = {str: "text", bool: "a truth value", int: "an integer", float: "a number", list: "a list", dict: "a mapping"}
    return f"{value!r} ({kind.get(type(value), 'nothing')})"


def _plain(text: str) -> Any:
    try:
        return yaml_core.read_value(text)
    except FinetuneError:
        return text
