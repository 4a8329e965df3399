"""Whether rows that are packed into one sequence see only themselves, asked of the model itself."""

from __future__ import annotations

from typing import Any

import torch

from scao_hf.finetune.errors import FinetuneError

_LENGTH = 8
_TOLERATED = 0.1
"""Of the change that an earlier row makes where it is seen. But for rounding in quantized layers it is 0 or 1."""


def check_isolation(trainer: Any) -> None:
    """Refuse packing where a row's predictions change with the row before it.

    Attention implementations tell packed rows apart by their positions, or not at all, and state-space layers have
    ways of their own, so the model is asked instead of its name: two rows packed as the trainer packs them, then with
    another first row. Packing with `packing_strategy: wrapped` is running text, where each part is meant to be seen.

    Raises:
        FinetuneError: data.packing.
    """
    shapes_only = next(trainer.accelerator.unwrap_model(trainer.model).parameters()).is_meta
    if trainer.args.packing_strategy == "wrapped" or shapes_only:  # Weights that are not there cannot be asked.
        return
    packed, joined = (_influence(trainer, lengths) for lengths in ([_LENGTH, _LENGTH], [2 * _LENGTH]))
    if packed > _TOLERATED * joined:
        kind = trainer.accelerator.unwrap_model(trainer.model).config._attn_implementation
        message = f"with the attention implementation {kind}, packed rows of this model see the rows before them"
        hint = "data.packing=false, or model.attn_implementation=flash_attention_2 where it is installed"
        raise FinetuneError("data.packing", message, hint)


@torch.no_grad()
def _influence(trainer: Any, lengths: list[int]) -> float:
    """How much the logits at the last `_LENGTH` tokens change with the tokens before them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    try:
        first, second = (_logits(model, trainer, start, lengths) for start in (1, _LENGTH + 1))
    finally:
        model.train(was_training)
    return float((first - second).abs().max())


def _logits(model: Any, trainer: Any, start: int, lengths: list[int]) -> torch.Tensor:
    ids = [*range(start, start + _LENGTH), *range(1, _LENGTH + 1)]
    batch = trainer.data_collator([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    inputs.pop("labels")
    args = trainer.args
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    with torch.autocast(device.type, dtype=dtype, enabled=args.bf16 or args.fp16):
        return model(**inputs, use_cache=False).logits[0, -_LENGTH:].float()
