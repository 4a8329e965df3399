"""docs/commands.md against the program."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from scao_hf.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def commands() -> set[str]:
    """Every command of the program, those of a group as `group command`."""
    found = set()
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name} if inner is None else {f"{name} {each}" for each in inner}
    return found


def test_the_page_has_a_heading_for_every_command_and_no_other() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for heading in headings for name in re.findall(r"`([^`]+)`", heading)} == commands()


def test_every_command_has_an_example_whose_options_exist() -> None:
    root = typer.main.get_command(app)
    examples = re.findall(r"^scao-finetune (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    shown = set()
    for example in examples:
        words = example.split()
        command, name = root.commands[words[0]], words[0]  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            command, name = command.commands[words[1]], " ".join(words[:2])
        options = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        assert used <= options, example
        shown.add(name)
    assert shown == commands()
