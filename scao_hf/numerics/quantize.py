"""Blockwise symmetric int8 storage of floating tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_CODE = 127


class Quantized(NamedTuple):
    """Int8 `codes` of the tensor's shape (..., N), and one float32 `scale` a block, (..., ⌈N / block_size⌉)."""

    codes: Tensor
    scales: Tensor


def quantize(tensor: Tensor, block_size: int | None = None) -> Quantized:
    """Store a tensor in int8, each block of its last dimension on a scale of its own.

        scale = max|x| / 127,    code = round(x / scale)

    The largest relative error, against the block's largest element, is 1/254. NaN is stored as 0 and an infinity as
    the largest finite value of its block, so a spoilt entry costs itself and not its block.

    Args:
        tensor: (..., N), floating.
        block_size: elements that share a scale, ≥ 1; None is the whole last dimension.

    Returns:
        Codes and scales, new.
    """
    blocks = _to_blocks(tensor.float(), block_size)
    magnitude = torch.where(torch.isfinite(blocks), blocks.abs(), torch.zeros_like(blocks))
    scales = magnitude.amax(-1) / MAX_CODE
    # The scale of an all-zero block is 0, and its codes are 0 whatever they are divided by.
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(-1)
    codes = (blocks / divisor).nan_to_num(0.0).clamp(-MAX_CODE, MAX_CODE).round().to(torch.int8)
    return Quantized(codes.flatten(-2)[..., : tensor.shape[-1]].contiguous(), scales)


def dequantize(quantized: Quantized, block_size: int | None = None) -> Tensor:
    """Restore a tensor from its int8 storage: code · scale.

    Args:
        quantized: from `quantize`.
        block_size: as given to `quantize`.

    Returns:
        (..., N), float32, new.
    """
    blocks = _to_blocks(quantized.codes.float(), block_size)
    return (blocks * quantized.scales.unsqueeze(-1)).flatten(-2)[..., : quantized.codes.shape[-1]].contiguous()


def _to_blocks(tensor: Tensor, block_size: int | None) -> Tensor:
    length = tensor.shape[-1]
    size = block_size or max(length, 1)
    count = max(1, math.ceil(length / size))
    return F.pad(tensor, (0, count * size - length)).unflatten(-1, (count, size))
