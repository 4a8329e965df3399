"""Cutting tensors into blocks and putting them together."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import random_matrix

from scao_hf.numerics.blocks import block_shape, from_blocks, matrix_shape, to_blocks

TENSORS = [((10, 6), 4), ((6, 10), 4), ((8, 2), 4), ((3, 5), 8), ((7, 7), 3), ((1, 9), 2), ((9, 1), 2), ((5, 2, 3), 4)]


@pytest.mark.parametrize(
    ("shape", "folded"),
    [((), (1, 1)), ((7,), (1, 7)), ((3, 5), (3, 5)), ((4, 3, 2, 2), (4, 12)), ((2, 3, 4), (2, 12))],
)
def test_tensors_fold_to_first_dimension_by_the_rest(shape: tuple[int, ...], folded: tuple[int, int]) -> None:
    assert matrix_shape(shape) == folded


@pytest.mark.parametrize(("shape", "max_dim"), TENSORS)
def test_blocks_are_contiguous_pieces_in_reading_order(shape: tuple[int, ...], max_dim: int) -> None:
    tensor = random_matrix(*shape)
    cut = block_shape(shape, max_dim)
    blocks = to_blocks(tensor, cut)
    pieces = reference.cut(tensor.reshape(matrix_shape(shape)), max_dim)
    assert cut.num_blocks == len(pieces)
    assert blocks.shape == (cut.num_blocks, *cut.size)
    assert max(cut.size) <= max_dim
    for block, (_, _, piece) in zip(blocks, pieces, strict=True):
        assert torch.equal(block, piece)


@pytest.mark.parametrize(("shape", "max_dim"), [*TENSORS, ((), 4), ((11,), 4), ((4, 3, 2, 2), 5)])
def test_putting_blocks_together_gives_the_tensor_back(shape: tuple[int, ...], max_dim: int) -> None:
    tensor = random_matrix(*shape)
    cut = block_shape(shape, max_dim)
    assert torch.equal(from_blocks(to_blocks(tensor, cut), cut, shape), tensor)


def test_a_known_matrix_is_cut_as_drawn() -> None:
    tensor = torch.arange(10.0).reshape(2, 5)
    cut = block_shape((2, 5), 2)
    assert (cut.grid, cut.size) == ((1, 3), (2, 2))
    expected = [[[0, 1], [5, 6]], [[2, 3], [7, 8]], [[4, 0], [9, 0]]]
    assert to_blocks(tensor, cut).tolist() == expected


def test_what_the_padding_holds_is_dropped() -> None:
    cut = block_shape((10, 6), 4)
    blocks = to_blocks(torch.zeros(10, 6), cut) + 1
    assert torch.equal(from_blocks(blocks, cut, (10, 6)), torch.ones(10, 6))


def test_a_matrix_that_fits_is_not_copied() -> None:
    tensor = random_matrix(3, 5)
    assert to_blocks(tensor, block_shape((3, 5), 5)).data_ptr() == tensor.data_ptr()


def test_a_transposed_view_is_cut_by_its_own_rows() -> None:
    view = random_matrix(6, 10).mT
    cut = block_shape(tuple(view.shape), 4)
    assert torch.equal(to_blocks(view, cut), to_blocks(view.contiguous(), cut))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_blocks_keep_the_dtype(dtype: torch.dtype) -> None:
    tensor = random_matrix(5, 3).to(dtype)
    cut = block_shape((5, 3), 2)
    blocks = to_blocks(tensor, cut)
    assert blocks.dtype == dtype
    assert torch.equal(from_blocks(blocks, cut, (5, 3)), tensor)
