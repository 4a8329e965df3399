"""The formats that rows may have, and how each becomes one of the three that TRL reads.

text                {text}                              language modelling
prompt_completion   {prompt, completion}                prompt and completion, as a chat if they are messages
alpaca              {instruction, input?, output}       prompt and completion, as a chat if there is a template
messages            {messages: [{role, content}, ...], tools?}        chat
sharegpt            {conversations: [{from, value}, ..], tools?}      chat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scao_hf.finetune.chats import BadRow, EmptyRow, before_last_reply, messages_of, shown, tools_of
from scao_hf.finetune.errors import FinetuneError

Columns = dict[str, Any]

REQUIRED = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}
"""Columns that each format must have."""

OPTIONAL = {
    "prompt_completion": ("tools",),
    "alpaca": ("input", "system"),
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
}

CHATS = ("messages", "sharegpt")

# A row may fit two formats; the earlier says more about which tokens to learn.
_DETECTION = ("messages", "sharegpt", "prompt_completion", "alpaca", "text")

_JUDGED = {"prompt", "completion", "label"}
"""Columns of answers that are each called good or bad."""

_LIKELY = {
    "prompt": ("question", "query", "input", "source", "instruction"),
    "completion": ("answer", "response", "output", "target", "reply"),
    "instruction": ("question", "query", "prompt"),
    "output": ("answer", "response", "completion", "target"),
    "text": ("content", "body", "document", "story", "sentence"),
    "messages": ("conversation", "conversations", "dialog", "dialogue", "chat", "turns"),
    "conversations": ("conversation", "messages", "dialog", "dialogue", "chat", "turns"),
}
"""Names that a column of this kind often has, to suggest a mapping."""

# Stanford's Alpaca (2023), for models without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)


def map_columns(columns: Sequence[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """The format's name of each column to the data's, after checking `data.column_mapping`.

    Raises:
        FinetuneError: data.column-mapping if it names a column that no format has, or that the data have not.
    """
    known = {name for table in (REQUIRED, OPTIONAL) for names in table.values() for name in names}
    for name, column in mapping.items():
        if name not in known:
            message = f"data.column_mapping maps {name!r}, which is no column of a format"
            hint = f"the columns of the formats are {', '.join(sorted(known))}"
            raise FinetuneError("data.column-mapping", message, hint)
        if column not in columns:
            message = f"data.column_mapping takes {name!r} from {column!r}; {source} has {', '.join(columns)}"
            raise FinetuneError("data.column-mapping", message, "name a column of the data")
    taken = set(mapping.values())
    return {column: column for column in columns if column not in taken} | dict(mapping)


def detect_format(mapped: Mapping[str, str], wanted: str, source: str) -> str:
    """The format of rows with these columns.

    Args:
        mapped: from `map_columns`.
        wanted: `data.format`; "auto" to find out.
        source: for messages.

    Raises:
        FinetuneError: data.preference-pairs, data.tokenized, data.missing-column.
    """
    if {"chosen", "rejected"} <= mapped.keys() and not _fits(mapped, wanted):
        message = f"{source} has preference pairs (chosen, rejected), and this tool trains on single answers"
        column = "completion" if "prompt" in mapped else "messages"
        hint = f"to learn the chosen ones: data.column_mapping='{{{column}: chosen}}'"
        raise FinetuneError("data.preference-pairs", message, hint)
    if wanted != "auto":
        if not _fits(mapped, wanted):
            raise _missing_columns(mapped, wanted, source)
        return wanted
    fitting = [name for name in _DETECTION if _fits(mapped, name)]
    if not fitting and "input_ids" in mapped:
        message = f"{source} is tokenized already (column input_ids)"
        raise FinetuneError("data.tokenized", message, "give the text; it is tokenized with the model's tokenizer")
    if not fitting:
        raise _no_format(mapped, source)
    return fitting[0]


def check_verdicts(mapped: Mapping[str, str], wanted: str, rows: Sequence[Columns], source: str) -> None:
    """Refuse answers that come with a verdict, of which the bad ones would be learned like the good ones.

    Args:
        mapped: from `map_columns`.
        wanted: `data.format`; whoever names one knows the columns.
        rows: the data's own columns.
        source: for messages.

    Raises:
        FinetuneError: data.unpaired-preference.
    """
    if wanted != "auto" or not mapped.keys() >= _JUDGED:
        return
    verdicts = [_verdict(row.get(mapped["label"])) for row in rows]
    if None in verdicts or False not in verdicts:  # Labels of another kind, or nothing but good answers.
        return
    good, bad = verdicts.count(True), verdicts.count(False)
    message = (
        f"{source} has answers with a verdict (prompt, completion, label: {good} true, {bad} false), and this tool "
        "learns every answer"
    )
    hint = "leave out the rows whose label is false; or data.format=prompt_completion to learn the bad answers as well"
    raise FinetuneError("data.unpaired-preference", message, hint)


def _verdict(label: Any) -> bool | None:
    """The truth value of a label, which in a .csv is a word; None for a label of another kind."""
    return label if isinstance(label, bool) else {"true": True, "false": False}.get(str(label).lower())


def _fits(mapped: Mapping[str, str], name: str) -> bool:
    return name in REQUIRED and set(REQUIRED[name]) <= mapped.keys()


def _missing_columns(mapped: Mapping[str, str], name: str, source: str) -> FinetuneError:
    missing = [column for column in REQUIRED[name] if column not in mapped]
    message = f"format {name} needs {_listed(missing)}; {source} has {_listed(mapped)}"
    return FinetuneError("data.missing-column", message, _mapping_hint(mapped, name))


def _no_format(mapped: Mapping[str, str], source: str) -> FinetuneError:
    message = f"no format fits the columns of {source}: {_listed(mapped)}"
    for name in _DETECTION:
        if len(_guess(mapped, name)) == len(REQUIRED[name]):
            return FinetuneError("data.missing-column", message, _mapping_hint(mapped, name))
    shapes = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in REQUIRED.items())
    return FinetuneError("data.missing-column", message, f"set data.column_mapping to one of ({shapes})")


def _mapping_hint(mapped: Mapping[str, str], name: str) -> str:
    guess = _guess(mapped, name)
    pairs = {column: guess.get(column, "COLUMN") for column in REQUIRED[name]}
    written = ", ".join(f"{column}: {found}" for column, found in pairs.items() if found != column)
    return f"data.column_mapping='{{{written}}}'"


def _guess(mapped: Mapping[str, str], name: str) -> dict[str, str]:
    """For each column that the format must have, the data's column that it may be."""
    guess: dict[str, str] = {}
    for column in REQUIRED[name]:
        likely = [name for name in (column, *_LIKELY.get(column, ())) if name in mapped and name not in guess.values()]
        if likely:
            guess[column] = likely[0]
    return guess


def _listed(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(names) if names else "no columns"


def resolve_loss(row_format: str, wanted: str, masks_assistant: bool) -> str:
    """Which tokens the loss counts: "all", "completion" or "assistant".

    Args:
        row_format: the format of the rows.
        wanted: `data.loss_on`; "auto" takes the strictest that the format and the chat template support.
        masks_assistant: whether the chat template marks what the assistant says.

    Raises:
        FinetuneError: data.loss-on, model.template-without-mask.
    """
    if row_format in CHATS:
        if wanted == "assistant" and not masks_assistant:
            message = "the chat template does not mark what the assistant says ({% generation %})"
            hint = (
                "data.loss_on=completion learns the last reply; or training.chat_template_path=FILE.jinja, "
                "a template with {% generation %} and {% endgeneration %} around the assistant's words"
            )
            raise FinetuneError("model.template-without-mask", message, hint)
        strictest = "assistant" if masks_assistant else "completion"
    else:
        strictest = "all" if row_format == "text" else "completion"
        if wanted == "assistant" or (wanted == "completion" and row_format == "text"):
            message = f"data.loss_on is {wanted}, and rows of format {row_format} have no such part"
            raise FinetuneError("data.loss-on", message, f"data.loss_on={strictest}")
    return strictest if wanted == "auto" else wanted


def converter(row_format: str, loss_on: str, has_template: bool) -> Callable[[Columns], Columns]:
    """The function that turns a row's columns, under the format's names, into those that TRL reads.

    It raises BadRow for a value of the wrong type and EmptyRow for a row with nothing to learn.
    """
    if row_format in CHATS:
        return lambda columns: _chat(columns, REQUIRED[row_format][0], loss_on)
    if row_format == "alpaca":
        return _alpaca_chat if has_template else _alpaca_text
    return _text if row_format == "text" else lambda columns: _prompt_completion(columns, has_template)


def is_conversational(row: Columns) -> bool:
    """Whether a converted row is a chat, to be written out by the chat template."""
    return isinstance(row.get("prompt", row.get("messages")), list)


def _text(columns: Columns) -> Columns:
    return {"text": _learnable(columns, "text")}


def _prompt_completion(columns: Columns, has_template: bool) -> Columns:
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return {"prompt": _words(columns, "prompt"), "completion": _learnable(columns, "completion")}
    if not has_template:
        raise BadRow("column 'prompt' or 'completion' holds messages, and the tokenizer has no chat template")
    asked = messages_of(prompt, "prompt") if isinstance(prompt, list) else [_user(_words(columns, "prompt"))]
    if isinstance(completion, list):
        answered = messages_of(completion, "completion")
        if not any(message["content"].strip() or message.get("tool_calls") for message in answered):
            raise EmptyRow
    else:
        answered = [{"role": "assistant", "content": _learnable(columns, "completion")}]
    if not asked:
        raise EmptyRow
    return {"prompt": asked, "completion": answered, **_tools(columns)}


def _alpaca_chat(columns: Columns) -> Columns:
    request = "\n\n".join(filter(None, (_words(columns, "instruction"), _words(columns, "input"))))
    prompt = [*_system(columns), _user(request)]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": _learnable(columns, "output")}]}


def _alpaca_text(columns: Columns) -> Columns:
    words = {"instruction": _words(columns, "instruction"), "input": _words(columns, "input")}
    prompt = (_ALPACA_WITH_INPUT if words["input"] else _ALPACA).format_map(words)
    return {"prompt": prompt, "completion": _learnable(columns, "output")}


def _chat(columns: Columns, column: str, loss_on: str) -> Columns:
    if columns.get(column) is None:
        raise EmptyRow
    messages = _system(columns) + messages_of(columns[column], column)
    tools = _tools(columns)
    if loss_on == "all":
        if not messages:
            raise EmptyRow
        return {"messages": messages, **tools}
    if loss_on == "assistant":
        if not any(message["role"] == "assistant" for message in messages):
            raise EmptyRow
        return {"messages": messages, **tools}
    prompt, reply = before_last_reply(messages)
    return {"prompt": prompt, "completion": [reply], **tools}


def _system(columns: Columns) -> list[Columns]:
    words = _words(columns, "system")
    return [{"role": "system", "content": words}] if words else []


def _user(words: str) -> Columns:
    return {"role": "user", "content": words}


def _tools(columns: Columns) -> Columns:
    tools = tools_of(columns.get("tools"))
    return {} if tools is None else {"tools": tools}


def _words(columns: Columns, name: str) -> str:
    value = columns.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"column {name!r} must be text, got {shown(value)}", name)
    return value


def _learnable(columns: Columns, name: str) -> str:
    words = _words(columns, name)
    if not words.strip():
        raise EmptyRow
    return words
