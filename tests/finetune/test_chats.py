"""Messages of chats: roles, parts, tool calls, and how each may be malformed."""

from __future__ import annotations

from typing import Any

import pytest

from scao_hf.finetune.chats import BadRow, EmptyRow, before_last_reply, messages_of, tools_of

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
CALLED = [{"type": "function", "function": CALL}]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be brief."}),
        ({"from": "gpt", "value": "Yes."}, {"role": "assistant", "content": "Yes."}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "ab"},
        ),
        (
            {"role": "tool", "content": "3", "tool_call_id": "x", "weight": 1},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": CALL}]},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "x", **CALLED[0]}]},
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
            },
            {"role": "assistant", "content": "", "tool_calls": CALLED},
        ),
        (
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
            {"role": "assistant", "content": "", "tool_calls": CALLED},
        ),
    ],
)
def test_a_message_is_read_in_the_form_of_chat_templates(given: dict[str, Any], read: dict[str, Any]) -> None:
    assert messages_of([given], "messages") == [read]


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "message 1 holds image_url, and this tool trains on text",
        ),
        ({"role": "assistant", "content": None}, "message 1 must have text as its content"),
        ({"from": "function_call", "value": "weather(Oslo)"}, "message 1, a function_call, must be JSON"),
        ({"from": "function_call", "value": '{"arguments": {}}'}, "a tool call without a function's name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments of f must be an object"),
    ],
)
def test_a_malformed_message_is_named_by_its_number(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        messages_of([turn], "messages")


def test_tools_are_a_list_of_schemas_or_its_json_text() -> None:
    assert tools_of('[{"name": "f"}]') == tools_of([{"name": "f"}]) == [{"name": "f"}]
    assert tools_of("") is None
    with pytest.raises(BadRow, match="column 'tools' must be a list of JSON schemas"):
        tools_of({"name": "f"})


def test_a_chat_is_parted_before_its_last_reply_and_one_that_answers_nobody_has_none() -> None:
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    assert before_last_reply([asked, said, asked, said, asked]) == ([asked, said, asked], said)
    for nobody in ([asked], [said]):
        with pytest.raises(EmptyRow):
            before_last_reply(nobody)
