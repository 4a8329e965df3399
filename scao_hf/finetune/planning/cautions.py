"""What a plan warns of."""

from __future__ import annotations

from collections.abc import Iterator

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.observer import RunInfo
from scao_hf.finetune.planning.disk import shortage
from scao_hf.finetune.planning.outcome import Caution, Disk, Memory, Tokens
from scao_hf.finetune.units import byte_size

_FEW_HELD_OUT = 100
_MANY_CUT = 0.05
_FEW_SUPERVISED = 0.02
_MUCH_STATE = 4
_NEARLY_FULL = 0.9


def cautions(recipe: Recipe, info: RunInfo, tokens: Tokens, memory: Memory, disk: Disk) -> Iterator[Caution]:
    """Everything worth a second look, the most serious first."""
    yield from _memory(recipe, memory)
    yield from _disk(disk)
    yield from _output(info)
    yield from _phase(info)
    yield from _state(info, memory)
    yield from _rows(recipe, info, tokens)


def _memory(recipe: Recipe, memory: Memory) -> Iterator[Caution]:
    if memory.total <= _NEARLY_FULL * memory.available:
        return
    size = recipe.training.get("per_device_train_batch_size", 8)
    accumulation = recipe.training.get("gradient_accumulation_steps", 1)
    if size > 1:
        hint = f"per_device_train_batch_size={size // 2} gradient_accumulation_steps={accumulation * 2}"
    elif not recipe.training.get("gradient_checkpointing"):
        hint = "gradient_checkpointing=true"
    else:
        hint = "a smaller data.max_length, or a smaller model"
    message = f"~{byte_size(memory.total)} are needed, and {memory.device} has {byte_size(memory.available)} free"
    yield Caution(code="memory", message=message, hint=hint)


def _disk(disk: Disk) -> Iterator[Caution]:
    short = shortage(disk)
    if short is not None:
        message, hint = short
        yield Caution(code="disk", message=message, hint=hint)


def _output(info: RunInfo) -> Iterator[Caution]:
    if info.output_dir.is_dir() and any(info.output_dir.iterdir()):
        message = f"{info.output_dir} exists and is not empty"
        yield Caution(code="output-exists", message=message, hint="training.output_dir=NEW, or train --overwrite")


def _phase(info: RunInfo) -> Iterator[Caution]:
    if info.adam_steps is not None and info.adam_steps >= info.total_steps:
        message = f"no step is preconditioned: all {info.total_steps} belong to the Adam phase of {info.optimizer}"
        yield Caution(code="adam-only", message=message, hint="scao.warmup_steps=auto, or more steps")


def _state(info: RunInfo, memory: Memory) -> Iterator[Caution]:
    if memory.optimizer is None or info.adam_steps is None or memory.optimizer < 0.05 * memory.total:
        return
    if memory.optimizer > _MUCH_STATE * memory.adamw:
        message = f"the state of {info.optimizer} is {memory.optimizer / memory.adamw:.1f} times AdamW's"
        yield Caution(code="state", message=message, hint="scao.state_dtype=bfloat16")


def _rows(recipe: Recipe, info: RunInfo, tokens: Tokens) -> Iterator[Caution]:
    if info.eval_rows == 0:
        yield Caution(code="no-eval", message="no rows are held out: only the training loss will be known")
    elif info.eval_rows < _FEW_HELD_OUT:
        message = f"{info.eval_rows} held-out rows make a noisy loss"
        yield Caution(code="few-eval", message=message, hint=f"hold out {_FEW_HELD_OUT} or more where there are enough")
    if tokens.sampled and tokens.longest != recipe.data.max_length:
        limit = recipe.data.max_length
        longer = "a longer one" if limit is None else f"one of data.max_length={limit}"
        message = f"the longest of {tokens.rows} rows has {tokens.longest} tokens: {longer} takes more memory"
        yield Caution(code="sample", message=message, hint=f"data.max_length={tokens.longest} cuts it")
    if not recipe.data.packing and tokens.full_rows > _MANY_CUT * tokens.rows:
        message = f"{tokens.full_rows} of {tokens.rows} rows fill data.max_length={recipe.data.max_length}"
        yield Caution(code="cut", message=f"{message}: they are cut there", hint="a larger data.max_length")
    if tokens.supervised_share < _FEW_SUPERVISED:
        message = f"the loss counts {tokens.supervised_share:.1%} of the tokens"
        yield Caution(code="few-supervised", message=message, hint="check the format, or data.loss_on=all")
