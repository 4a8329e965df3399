"""What a model writes after a prompt: before and after training, and for `generate` and `chat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

TEMPERATURE = 0.7
OPENING_WORDS = 12


@dataclass(frozen=True)
class Prompt:
    """What the model continues."""

    turns: list[dict[str, str]] | None
    """Messages of a chat that the assistant is to answer; None for plain text."""
    text: str
    """The plain text, or what the user says last."""


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The prompt in a prepared row: up to the last reply of a chat, or the opening words of a text."""
    if isinstance(row.get("prompt"), str):
        return Prompt(None, row["prompt"])
    if "text" in row:
        words = row["text"].split(" ")
        return Prompt(None, " ".join(words[: max(1, min(OPENING_WORDS, len(words) // 2))]))
    turns = row["prompt"] if "prompt" in row else _before_last_reply(row["messages"])
    return Prompt(turns, turns[-1]["content"] if turns else "")


def given_prompt(text: str, conversational: bool) -> Prompt:
    """The prompt that the recipe gives, as a user's turn if the data are chats."""
    return Prompt([{"role": "user", "content": text}] if conversational else None, text)


def _before_last_reply(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: replies[-1]] if replies else messages


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    tokens: int,
    context: int | None,
    seed: int,
    *,
    temperature: float = TEMPERATURE,
    told: Callable[[str], None] | None = None,
) -> str:
    """What the model writes after the prompt, drawn with the same random numbers for a seed.

    Args:
        model: with `generate`; left in the mode it was in.
        tokens: new tokens at most.
        context: the model's context in tokens; a longer prompt loses its start.
        temperature: 0 takes the likeliest token each time.
        told: called with each piece of the text as it is written.
    """
    ids = _prompt_ids(tokenizer, prompt)
    if context is not None:
        ids = ids[-max(1, context - tokens) :]
    if not ids:
        ids = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            written = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=tokens,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if told is None else _streamer(tokenizer, told),
                **_drawing(temperature),
            )
    finally:
        model.train(was_training)
    return tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True).strip()


def _drawing(temperature: float) -> dict[str, Any]:
    if temperature == 0:
        # None takes back what a model's own generation settings say of drawing, which would only be warned about.
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _streamer(tokenizer: Any, told: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Teller(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                told(text)

    return Teller(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if prompt.turns is None:
        return list(tokenizer(prompt.text)["input_ids"])
    encoded = tokenizer.apply_chat_template(prompt.turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])
