"""State held in fewer bits between steps: an optimizer's hooks see float32, and what lies in `state[p]` is narrow."""

from __future__ import annotations

from torch import Tensor

from scao_hf.numerics.quantize import Quantized, dequantize, dither, quantize, to_bfloat16
from scao_hf.optim.stack import Storage

STATE_DTYPES = ("float32", "bfloat16", "int8")
"""Of the moments and the tracked vectors: 4, 2, and 1 byte an entry (2 for second moments and vectors)."""
INT8_BLOCK = 128
"""Entries along the last dimension that share a scale."""
_SCALE = "_scale"
_NARROW = frozenset({"exp_avg", "exp_avg_sq", "vectors"})
_NEVER_INT8 = frozenset({"exp_avg_sq", "vectors"})  # a root divides by the first; the second is to be orthonormal


def compress(storage: Storage, state_dtype: str, step: int) -> Storage:
    """What is kept of a float32 state.

    Matrices among the moments and vectors become bfloat16, or int8 with a scale for each `INT8_BLOCK` entries of a row
    under the name with "_scale"; everything else, and the moments of vectors, stays as it is.

    Args:
        storage: (rows, …) by name.
        state_dtype: one of `STATE_DTYPES`.
        step: chooses the rounding offsets.
    """
    kept: Storage = {}
    for name, tensor in storage.items():
        if state_dtype == "float32" or name not in _NARROW or tensor.ndim < 3:
            kept[name] = tensor
        elif state_dtype == "int8" and name not in _NEVER_INT8:
            kept[name], kept[name + _SCALE] = quantize(tensor, INT8_BLOCK, _offsets(tensor, step))
        else:
            kept[name] = to_bfloat16(tensor, _offsets(tensor, step))
    return kept


def expand(storage: Storage) -> Storage:
    """The float32 state: new tensors for what is kept narrow, the very same ones for the rest."""
    scales = {name + _SCALE for name in _NARROW}
    return {name: _expanded(storage, name, tensor) for name, tensor in storage.items() if name not in scales}


def write_back(storage: Storage, state: Storage, state_dtype: str, step: int) -> None:
    """Keep the narrow part of an expanded state, in place of what `storage` held of it."""
    narrow = {name: tensor for name, tensor in state.items() if tensor is not storage[name]}
    for name, tensor in compress(narrow, state_dtype, step).items():
        storage[name].copy_(tensor)


def _expanded(storage: Storage, name: str, tensor: Tensor) -> Tensor:
    if name + _SCALE in storage:
        return dequantize(Quantized(tensor, storage[name + _SCALE]), INT8_BLOCK)
    return tensor.float() if name in _NARROW else tensor


def _offsets(tensor: Tensor, step: int) -> Tensor:
    return dither(tuple(tensor.shape), step, tensor.device)
