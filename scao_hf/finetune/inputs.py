"""What a run is made of, as far as it can be had and checked without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scao_hf.finetune import model, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.data import Rows, prepare_rows
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.templates import check_chats, with_template

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Configuration, tokenizer and rows of a run, and TRL's arguments for it."""

    device: torch.device
    reference: str
    """What to give to `from_pretrained`."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    args: Any
    """`trl.SFTConfig`; the warm-ups are not filled in yet."""


def load_inputs(recipe: Recipe, seed: int, observer: Observer) -> Inputs:
    """Load all that needs no weights, and tell the observer what should be known of it.

    Args:
        recipe: complete.
        seed: decides which rows are held out.

    Raises:
        FinetuneError: kinds "model", "data" and "config".
    """
    device = model.device_of(bool(recipe.training.get("use_cpu")))
    reference = model.model_reference(recipe.model)
    observer.stage("loading the tokenizer")
    config = model.load_config(recipe.model, reference)
    model.check_lengths(config, recipe.data.max_length)
    tokenizer = model.load_tokenizer(recipe.model, reference)
    observer.stage("reading the data")
    template_path = recipe.training.get("chat_template_path")
    template = model.chat_template(tokenizer, template_path)
    rows = prepare_rows(recipe.data, seed, template)
    if not rows.conversational and tokenizer.eos_token is None:
        message = "the tokenizer has no end-of-text token, so the model could not learn where a row ends"
        raise FinetuneError("model.no-eos-token", message, "set eos_token in its tokenizer_config.json")
    if rows.conversational:
        check_chats(with_template(tokenizer, template_path), zip(rows.train, rows.places, strict=True))
    for notice in rows.notices:
        observer.notice(notice)
    args = settings.sft_arguments(recipe, rows.loss_on, model.computes_in_bfloat16(device))
    check_packing(args, rows)
    return Inputs(device=device, reference=reference, config=config, tokenizer=tokenizer, rows=rows, args=args)


def check_packing(args: Any, rows: Rows) -> None:
    """Refuse packing that cuts rows anywhere and lets each see the one before it, except for running text.

    Raises:
        FinetuneError: data.packing.
    """
    if args.packing and args.packing_strategy == "wrapped" and rows.format != "text":
        message = (
            f"training.packing_strategy=wrapped would let rows of format {rows.format} see and complete each other"
        )
        raise FinetuneError("data.packing", message, "training.packing_strategy=bfd keeps rows whole and apart")
