"""Chat templates: whose they are, what they mark, and a tokenizer that has taken over another's."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from scao_hf.finetune.errors import FinetuneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_SUFFIXES = (".jinja", ".j2")
_GENERATION = re.compile(r"\{%-?\s*generation\b")


def template_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template; of several named ones, the default."""
    text: Any = tokenizer.chat_template
    return text.get("default") if isinstance(text, Mapping) else text


def is_marked(text: str | None) -> bool:
    """Whether a template marks what the assistant says."""
    return text is not None and _GENERATION.search(text) is not None


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The version of a template for training that TRL knows, with marks around the assistant's words.

    None where the template has the marks itself, and where TRL knows no version of it that has.
    """
    from trl.chat_template_utils import get_training_chat_template

    text = template_text(tokenizer)
    if text is None or is_marked(text):
        return None
    try:
        patched = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return patched if is_marked(patched) else None


def with_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a run with `training.chat_template_path`, as TRL's trainer would make it; a copy.

    Args:
        path: a Jinja file, or a directory or hub id of a tokenizer, whose end token is taken over as well; None for
            the tokenizer as it is.

    Raises:
        FinetuneError: model.chat-template if the path leads nowhere.
    """
    if path is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    if Path(path).is_file():
        tokenizer.chat_template = _file_text(Path(path))
        return tokenizer
    from trl import clone_chat_template

    try:
        no_model: Any = _NoModel(tokenizer)
        return clone_chat_template(no_model, tokenizer, path, resize_to_multiple_of=None)[1]
    except (OSError, ValueError) as error:
        message = f"training.chat_template_path: no file and no tokenizer with a chat template at {path}"
        raise FinetuneError("model.chat-template", message, "give a .jinja file or a model's id") from error


def _file_text(path: Path) -> str:
    if path.suffix not in TEMPLATE_SUFFIXES:
        message = f"training.chat_template_path: {path} does not end in {' or '.join(TEMPLATE_SUFFIXES)}"
        raise FinetuneError("model.chat-template", message, "rename the file")
    return path.read_text(encoding="utf-8")


def check_chats(tokenizer: PreTrainedTokenizerBase, rows: Iterable[tuple[Mapping[str, Any], str]]) -> None:
    """Refuse a chat that the template refuses, such as one whose roles do not alternate.

    Args:
        tokenizer: from `with_template`.
        rows: converted rows that are chats, each with its place.

    Raises:
        FinetuneError: data.chat-template, with the row's place and the template's own words.
    """
    from jinja2 import TemplateError

    for row, place in rows:
        turns = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        try:
            tokenizer.apply_chat_template(turns, tools=row.get("tools"), tokenize=False)
        except (TemplateError, TypeError) as error:
            message = f"{place}: the chat template cannot write this chat: {error}"
            hint = "change the row, or give another template: training.chat_template_path=FILE.jinja"
            raise FinetuneError("data.chat-template", message, hint) from error


class _NoModel:
    """What `clone_chat_template` touches of a model, so that a tokenizer can be made without one."""

    def __init__(self, tokenizer: Any) -> None:
        text_config = SimpleNamespace(eos_token_id=None)
        self.config = SimpleNamespace(get_text_config=lambda: text_config, eos_token_id=None)
        self.tokenizer = tokenizer

    def can_generate(self) -> bool:
        return False

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer.vocab)

    def resize_token_embeddings(self, new_num_tokens: int, pad_to_multiple_of: int | None = None) -> None:
        return None
