"""What the model of a run writes: a prompt answered by both the trained model and its base, or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.model import context_length
from scao_hf.finetune.results import weights
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.sample import Prompt, given_prompt, sample

Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How text is drawn from a model."""

    tokens: int
    """New tokens at most."""
    temperature: float
    """0 takes the likeliest token each time."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One prompt and what was written after it; `base` is None where the base was not asked."""

    prompt: str
    text: str
    base: str | None


def is_chat(run: RunFolder, tokenizer: Any) -> bool:
    """Whether the run was trained on conversations, so that a prompt is a user's turn."""
    return run.is_chat and tokenizer.chat_template is not None


def generate(
    run: RunFolder, prompts: Sequence[str], drawing: Drawing, *, base: bool = False, stage: Told = lambda text: None
) -> list[Reply]:
    """Answer each prompt with the trained model, and before that with its base.

    Args:
        run: with weights.
        prompts: each a user's turn if the run was trained on conversations, else text to be continued.
        drawing: how to draw; both models get the same random numbers.
        base: whether to ask the base as well. It is asked first: some adapters change the base that they are put on.
        stage: told what is being loaded.

    Raises:
        FinetuneError: kind "model".
    """
    recipe = weights.stored_recipe(run)
    device = weights.device_for(recipe)
    tokenizer = weights.load_tokenizer(run)
    asked = [given_prompt(prompt, is_chat(run, tokenizer)) for prompt in prompts]
    before: list[str | None] = [None] * len(asked)
    if base:
        stage("loading the base")
        untrained = weights.load_base(recipe, device)
        before = [_written(untrained, tokenizer, prompt, drawing) for prompt in asked]
        del untrained
    stage("loading the trained model")
    trained = weights.load_trained(run, recipe, device)
    after = [_written(trained, tokenizer, prompt, drawing) for prompt in asked]
    return [
        Reply(prompt=prompt, text=text, base=earlier)
        for prompt, text, earlier in zip(prompts, after, before, strict=True)
    ]


def _written(model: Any, tokenizer: Any, prompt: Prompt, drawing: Drawing, told: Told | None = None) -> str:
    return sample(
        model,
        tokenizer,
        prompt,
        drawing.tokens,
        context_length(model.config),
        drawing.seed,
        temperature=drawing.temperature,
        told=told,
    )


@dataclass
class Conversation:
    """Turns with a loaded model; `say` adds two."""

    model: Any
    tokenizer: Any
    drawing: Drawing
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said."""
        self.turns = [] if self.system is None else [{"role": "system", "content": self.system}]

    def say(self, text: str, told: Told | None = None) -> str:
        """The model's answer; `told` gets it piece by piece as it is written. What is broken off was never said."""
        turns = [*self.turns, {"role": "user", "content": text}]
        answer = _written(self.model, self.tokenizer, Prompt(turns, text), self.drawing, told)
        self.turns = [*turns, {"role": "assistant", "content": answer}]
        return answer


def open_conversation(
    run: RunFolder, drawing: Drawing, *, base: bool = False, system: str | None = None, stage: Told = lambda text: None
) -> Conversation:
    """Load the trained model of a run, or its base, to talk with.

    Raises:
        FinetuneError: model.no-chat-template, before any weight is loaded; kind "model".
    """
    recipe = weights.stored_recipe(run)
    tokenizer = weights.load_tokenizer(run)
    if tokenizer.chat_template is None:
        message = f"the tokenizer of {run.path} has no chat template, so there are no turns to talk in"
        raise FinetuneError("model.no-chat-template", message, f"scao-finetune generate {run.path} -p TEXT")
    device = weights.device_for(recipe)
    stage("loading the base" if base else "loading the trained model")
    model = weights.load_base(recipe, device) if base else weights.load_trained(run, recipe, device)
    return Conversation(model, tokenizer, drawing, system)
