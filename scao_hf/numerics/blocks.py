"""Any tensor as a batch of matrix blocks of bounded size, and back."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class BlockShape(NamedTuple):
    """How a (rows, columns) matrix is cut: `grid` blocks down and across, each of `size`, the last ones zero-padded."""

    rows: int
    columns: int
    grid: tuple[int, int]
    size: tuple[int, int]

    @property
    def num_blocks(self) -> int:
        """Blocks per matrix."""
        return self.grid[0] * self.grid[1]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix a tensor is folded to: first dimension by the product of the others; a vector is one row.

    A scalar is (1, 1); a convolution (out, in, h, w) is (out, in·h·w), as its forward pass multiplies it.
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def block_shape(shape: tuple[int, ...], max_dim: int) -> BlockShape:
    """Cut a folded tensor into equal contiguous blocks with no side longer than `max_dim`.

        blocks along a side of length d: c = ⌈d / max_dim⌉, each of ⌈d / c⌉

    Args:
        shape: of the tensor; folded by `matrix_shape`.
        max_dim: longest side of a block, ≥ 1.

    Returns:
        The cut; one block of the matrix itself when nothing is too long.
    """
    rows, columns = matrix_shape(shape)
    grid = (max(1, math.ceil(rows / max_dim)), max(1, math.ceil(columns / max_dim)))
    size = (math.ceil(rows / grid[0]), math.ceil(columns / grid[1]))
    return BlockShape(rows, columns, grid, size)


def to_blocks(tensor: Tensor, cut: BlockShape) -> Tensor:
    """Cut a tensor into its blocks.

    Args:
        tensor: of the shape `cut` was made for.
        cut: from `block_shape`.

    Returns:
        (cut.num_blocks, *cut.size), row of blocks by row of blocks; a view where nothing has to be padded or moved.
    """
    matrix = tensor.reshape(cut.rows, cut.columns)
    if cut.num_blocks == 1:
        return matrix.unsqueeze(0)
    (down, across), (height, width) = cut.grid, cut.size
    padded = F.pad(matrix, (0, across * width - cut.columns, 0, down * height - cut.rows))
    return padded.reshape(down, height, across, width).transpose(1, 2).reshape(cut.num_blocks, height, width)


def from_blocks(blocks: Tensor, cut: BlockShape, shape: tuple[int, ...]) -> Tensor:
    """Put blocks together again; the inverse of `to_blocks`, padding dropped.

    Args:
        blocks: (cut.num_blocks, *cut.size).
        cut: from `block_shape`.
        shape: of the tensor to give back.

    Returns:
        A tensor of `shape`; a view where possible.
    """
    if cut.num_blocks == 1:
        return blocks.reshape(shape)
    (down, across), (height, width) = cut.grid, cut.size
    padded = blocks.reshape(down, across, height, width).transpose(1, 2).reshape(down * height, across * width)
    return padded[: cut.rows, : cut.columns].reshape(shape)
