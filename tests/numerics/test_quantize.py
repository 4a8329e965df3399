"""Blockwise int8 against float64 loops."""

from __future__ import annotations

import pytest
import reference
import torch
from problems import assert_close, random_matrix

from scao_hf.numerics.quantize import Quantized, dequantize, quantize


@pytest.mark.parametrize("length", [1, 7, 16, 33])
@pytest.mark.parametrize("block_size", [1, 4, 16, 100])
def test_each_block_is_rounded_on_its_own_scale(length: int, block_size: int) -> None:
    tensor = random_matrix(length) * torch.logspace(-3, 3, length)
    stored = quantize(tensor, block_size)
    assert stored.codes.dtype == torch.int8
    assert stored.codes.shape == tensor.shape
    assert stored.scales.dtype == torch.float32
    assert stored.scales.shape == (-(-length // block_size),)
    expected = reference.through_blockwise_int8(tensor, block_size)
    torch.testing.assert_close(dequantize(stored, block_size).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_rows_of_a_batch_share_no_scale(batch: tuple[int, ...]) -> None:
    tensor = random_matrix(*batch, 5, 4).flatten(-2)
    restored = dequantize(quantize(tensor))
    for row, result in zip(tensor.reshape(-1, 20), restored.reshape(-1, 20), strict=True):
        assert_close(result, reference.through_int8(row))


def test_the_error_is_at_most_half_a_code() -> None:
    tensor = random_matrix(64, 64, seed=3)
    error = (dequantize(quantize(tensor, 16), 16) - tensor).abs().reshape(64, 4, 16)
    half = tensor.abs().reshape(64, 4, 16).amax(-1, keepdim=True) / 254
    # One rounding of the code times the scale, 2^-24 of the largest element, comes on top.
    assert (error <= half * (1 + 254 * 2**-23)).all()
    assert error.max() > 0


def test_the_largest_magnitude_of_a_block_gets_the_largest_code() -> None:
    stored = quantize(torch.tensor([1.0, -4.0, 2.0, 0.5]), 2)
    assert stored.codes.tolist() == [32, -127, 127, 32]
    assert_close(stored.scales, torch.tensor([4 / 127, 2 / 127], dtype=torch.float64))


def test_zeros_come_back_as_zeros() -> None:
    stored = quantize(torch.zeros(2, 10), 4)
    assert not stored.codes.any()
    assert not dequantize(stored, 4).any()


def test_storing_twice_changes_nothing_more() -> None:
    once = dequantize(quantize(random_matrix(3, 40), 8), 8)
    assert_close(dequantize(quantize(once, 8), 8), once.double(), rtol=1e-6, atol=0)


def test_a_spoilt_entry_costs_itself_and_not_its_block() -> None:
    tensor = torch.tensor([0.5, float("nan"), -1.0, float("inf"), -float("inf"), 0.25])
    restored = dequantize(quantize(tensor))
    assert_close(restored, torch.tensor([0.5, 0.0, -1.0, 1.0, -1.0, 0.25]).double(), rtol=0, atol=1 / 254)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_stored_from_their_float32_value(dtype: torch.dtype) -> None:
    tensor = random_matrix(30).to(dtype)
    stored, expected = quantize(tensor, 8), quantize(tensor.float(), 8)
    assert torch.equal(stored.codes, expected.codes)
    assert torch.equal(stored.scales, expected.scales)
    assert dequantize(stored, 8).dtype == torch.float32


def test_a_strided_view_is_stored_like_its_copy() -> None:
    view = random_matrix(6, 9).mT
    assert not view.is_contiguous()
    stored = quantize(view, 4)
    assert torch.equal(stored.codes, quantize(view.contiguous(), 4).codes)
    assert stored.codes.is_contiguous()


def test_a_slow_average_kept_in_int8_stands_still() -> None:
    # The hazard that the documentation of use_int8_ema states: a step of (1 − 0.999) is below half a code.
    stored = quantize(torch.linspace(0.0, 1.0, 21))
    for _ in range(50):
        current = dequantize(stored)
        current[:-1].lerp_(torch.ones(20), 1e-3)
        stored = quantize(current)
    assert torch.equal(stored.codes, quantize(torch.linspace(0.0, 1.0, 21)).codes)
    assert isinstance(stored, Quantized)
