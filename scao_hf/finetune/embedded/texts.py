"""The two texts of the embedded assets: Shakespeare's dialogue to fine-tune on, GSM8K to pretrain on.

Pure functions from text to rows; no row depends on a random number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from scao_hf.finetune.embedded.tokenizer import END_OF_TURN, START_OF_TEXT, START_OF_TURN

Message = dict[str, str]
Speech = tuple[str, str]

_SPEAKER = re.compile(r"[A-Z][A-Za-z'&, -]*:")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"\n#### *(.+?)\s*$")


def dialogue_rows(play: str, rows: int, max_tokens: int) -> list[list[Message]]:
    """Exchanges of two consecutive speeches: the user speaks first, the assistant answers, each under a name.

    A speech belongs to one exchange at most, so no text of a held-out row stands in a training row. Of all exchanges
    that fit, `rows` are taken at even distances through the plays.

    Args:
        play: speeches parted by empty lines, each a line `Name:` and then its verses.
        rows: how many exchanges to return.
        max_tokens: longest exchange in bytes and special tokens, chat format included.

    Raises:
        ValueError: if fewer than `rows` exchanges fit.
    """
    fitting = [row for row in exchanges(speeches(play)) if chat_tokens(row) <= max_tokens]
    if len(fitting) < rows:
        raise ValueError(
            f"rows must not exceed the {len(fitting)} exchanges of at most {max_tokens} tokens, got {rows}"
        )
    return [fitting[index * len(fitting) // rows] for index in range(rows)]


def speeches(play: str) -> Iterator[Speech]:
    """(name, words) of every speech, in order; blocks without a speaker's name or without words are left out."""
    for block in re.split(r"\n\s*\n", play):
        name, _, words = block.strip().partition("\n")
        if _SPEAKER.fullmatch(name.strip()) and words.strip():
            yield name.strip().removesuffix(":"), words.strip()


def exchanges(spoken: Iterable[Speech]) -> Iterator[list[Message]]:
    """Speech and reply of two different speakers, as user and assistant; none is used twice."""
    waiting: Speech | None = None
    for speech in spoken:
        if waiting is None or waiting[0] == speech[0]:
            waiting = speech
        else:
            yield [_message("user", waiting), _message("assistant", speech)]
            waiting = None


def _message(role: str, speech: Speech) -> Message:
    name, words = speech
    return {"role": role, "content": f"{name.upper()}:\n{words}"}


def pretraining_rows(problems: Sequence[dict[str, str]]) -> Iterator[str]:
    """Each problem twice: as a chat of question and answer, and as plain prose behind the start-of-text token.

    Args:
        problems: GSM8K's rows, with `question` and `answer`.
    """
    for problem in problems:
        question, answer = problem["question"].strip(), plain_answer(problem["answer"])
        yield render_chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        yield f"{START_OF_TEXT}{question}\n{answer}{END_OF_TURN}"


def plain_answer(answer: str) -> str:
    """The worked answer as prose: without the `<<48/2=24>>` of the calculator, and with its last line spelled out."""
    return _FINAL_ANSWER.sub(r"\nThe answer is \1.", _CALCULATION.sub("", answer.strip()))


def render_chat(messages: Sequence[Message]) -> str:
    """The conversation as the tokenizer's chat template writes it, up to the end of the last turn."""
    turns = [f"{START_OF_TURN}{message['role']}\n{message['content']}{END_OF_TURN}" for message in messages]
    return "\n".join(turns)


def chat_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation: its bytes and special tokens, with the line end behind the last turn."""
    words = sum(len(f"{message['role']}\n{message['content']}\n".encode()) for message in messages)
    return words + 2 * len(messages)


def json_lines(rows: Iterable[object]) -> str:
    """One JSON value a line, in UTF-8 characters rather than escapes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
