"""Chat messages as chat templates read them, from the forms of OpenAI and of ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_KEPT = ("name", "tool_call_id", "reasoning_content")
"""Keys of a message, beside its role and content, that chat templates read as they are."""


class BadRow(ValueError):
    """A row whose values are of the wrong type; `column` is the one at fault, if it is one value's type alone."""

    def __init__(self, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.column = column


class EmptyRow(ValueError):
    """A row with nothing to learn: an empty text, or no reply."""


def messages_of(turns: Any, column: str) -> list[Message]:
    """The messages in a column, under the hub's names for roles.

    Raises:
        BadRow: with the number of the message at fault.
    """
    if not isinstance(turns, list):
        raise BadRow(f"column {column!r} must be a list of messages, got {shown(turns)}", column)
    return [_message(turn, number) for number, turn in enumerate(turns, start=1)]


def tools_of(value: Any) -> list[Any] | None:
    """The tools that a chat may call: a list of JSON schemas, or such a list as JSON text; None for none.

    Raises:
        BadRow: for anything else.
    """
    if value is None or value in ("", []):
        return None
    tools = _parsed(value, "column 'tools'")
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(f"column 'tools' must be a list of JSON schemas, got {shown(value)}", "tools")
    return [dict(tool) for tool in tools]


def before_last_reply(messages: list[Message]) -> tuple[list[Message], Message]:
    """A chat up to its last reply, and that reply.

    Raises:
        EmptyRow: if nobody is answered.
    """
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies or replies[-1] == 0:
        raise EmptyRow
    return messages[: replies[-1]], messages[replies[-1]]


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"message {number} must be an object with role and content, got {shown(turn)}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in _ROLES:
        raise BadRow(f"message {number} has the role {role!r}; known are {', '.join(_ROLES)}")
    if role == "function_call":
        calls, content = _parsed(content, f"message {number}, a function_call,"), None
        calls = calls if isinstance(calls, list) else [calls]
    else:
        calls = turn.get("tool_calls") or []
    message: Message = {"role": _ROLES[role], "content": _content(content, number, may_miss=bool(calls))}
    if calls:
        message["tool_calls"] = [_tool_call(call, number) for call in calls]
    return message | {key: turn[key] for key in _KEPT if turn.get(key) is not None}


def _content(content: Any, number: int, *, may_miss: bool) -> str:
    """Text, or the text of OpenAI's list of parts; only a message that calls tools may be without."""
    if content is None and may_miss:
        return ""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) and "type" in part for part in content):
        foreign = {str(part["type"]) for part in content} - {"text", "input_text", "output_text"}
        if foreign:
            raise BadRow(f"message {number} holds {', '.join(sorted(foreign))}, and this tool trains on text alone")
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise BadRow(f"message {number} must have text as its content, got {shown(content)}")
    return content


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    """A call with its arguments as a mapping, which chat templates expect; OpenAI writes them as JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"message {number} has a tool call without a function's name: {shown(call)}")
    arguments = _parsed(function.get("arguments") or {}, f"message {number}: the arguments of {function['name']}")
    if not isinstance(arguments, Mapping):
        raise BadRow(f"message {number}: the arguments of {function['name']} must be an object, got {shown(arguments)}")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRow(f"{what} must be JSON, got {shown(value)} ({error.msg})") from error


def shown(value: Any) -> str:
    """A value as a message quotes it: shortened, with its type."""
    text = repr(value)
    return f"{text[:40]}{'…' if len(text) > 40 else ''} ({type(value).__name__})"
