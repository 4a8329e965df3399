"""Floating tensors in fewer bits: blockwise symmetric int8, and bfloat16, rounded so that averages stay unbiased."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_CODE = 127
_GOLDEN = 1.2207440846057596
_ALPHA = (1 / _GOLDEN, 1 / _GOLDEN**2, 1 / _GOLDEN**3)


class Quantized(NamedTuple):
    """Int8 `codes` of the tensor's shape (..., N), and one float32 `scale` a block, (..., ⌈N / block_size⌉)."""

    codes: Tensor
    scales: Tensor


def dither(shape: tuple[int, ...], step: int, device: torch.device) -> Tensor:
    """Offsets in [0, 1) that fill the interval evenly over steps, for every entry of a tensor of its own.

        u_ij = frac(i α₁ + j α₂ + step α₃),   α_l = g^{-l},  g⁴ = g + 1

    An average that is rounded down after adding them at every step loses nothing on the way: what is cut off at one
    step is added at another. Unlike random numbers they need no state, cost one pass, and are the same on every device.

    Args:
        shape: (..., m, n); all matrices of a batch share the offsets.
        step: from 1.
        device: where.

    Returns:
        (m, n), float32, new.

    Source: the additive recurrence R₃ of M. Roberts (2018), "The unreasonable effectiveness of quasirandom sequences".
    """
    rows = torch.arange(shape[-2], device=device, dtype=torch.float32).mul_(_ALPHA[0]).frac_()
    columns = torch.arange(shape[-1], device=device, dtype=torch.float32).mul_(_ALPHA[1])
    return (rows.unsqueeze(-1) + columns.add_(step * _ALPHA[2] % 1).frac_()).frac_()


def to_bfloat16(tensor: Tensor, offsets: Tensor) -> Tensor:
    """Round float32 to bfloat16 along given offsets: up where the share of a unit that is cut off exceeds 1 − u.

    Args:
        tensor: (..., m, n), float32. NaN and infinities stay what they are; what bfloat16 holds exactly stays, too.
        offsets: u (m, n) in [0, 1), from `dither`.

    Returns:
        bfloat16, new.
    """
    carried = (tensor.view(torch.int32) + (offsets * 65536).to(torch.int32)) & -65536
    rounded = carried.view(torch.float32)
    return torch.where(torch.isfinite(tensor), rounded, tensor).to(torch.bfloat16)


def quantize(tensor: Tensor, block_size: int | None = None, offsets: Tensor | None = None) -> Quantized:
    """Store a tensor in int8, each block of its last dimension on a scale of its own.

        scale = max|x| / 127,    code = round(x / scale), or ⌊x / scale + u⌋ with offsets u

    The largest relative error, against the block's largest element, is 1/254. NaN is stored as 0 and an infinity as
    the largest finite value of its block, so a spoilt entry costs itself and not its block.

    Args:
        tensor: (..., N), floating.
        block_size: elements that share a scale, ≥ 1; None is the whole last dimension.
        offsets: u in [0, 1), broadcastable to the tensor, from `dither`; None rounds to nearest.

    Returns:
        Codes and scales, new.
    """
    blocks = _to_blocks(tensor.float(), block_size)
    magnitude = torch.where(torch.isfinite(blocks), blocks.abs(), torch.zeros_like(blocks))
    scales = magnitude.amax(-1) / MAX_CODE
    # The scale of an all-zero block is 0, and its codes are 0 whatever they are divided by.
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(-1)
    codes = (blocks / divisor).nan_to_num(0.0).clamp(-MAX_CODE, MAX_CODE)
    codes = codes.round() if offsets is None else codes.add_(_to_blocks(offsets, block_size)).floor_()
    codes = codes.clamp_(max=MAX_CODE).to(torch.int8)
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
