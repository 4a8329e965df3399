"""Blockwise int8 against float64 loops, and rounding along offsets against the averages it must keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from problems import assert_close, random_matrix, relative_error
from torch import Tensor

from scao_hf.numerics.quantize import Quantized, dequantize, dither, quantize, to_bfloat16

CPU = torch.device("cpu")


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


# ------------------------------------------------------------------------------------------------ offsets

STEPS = 1000


def offsets(shape: tuple[int, ...], steps: int = STEPS) -> list[Tensor]:
    return [dither(shape, step, CPU) for step in range(1, steps + 1)]


def test_offsets_are_one_matrix_in_the_unit_interval_that_depends_on_shape_and_step_alone() -> None:
    for step in (1, 2, 1000, 10**6):
        drawn = dither((3, 5, 7), step, CPU)
        assert drawn.shape == (5, 7)
        assert drawn.dtype == torch.float32
        assert float(drawn.min()) >= 0
        assert float(drawn.max()) < 1
        assert torch.equal(drawn, dither((5, 7), step, CPU))
    assert not torch.equal(dither((5, 7), 1, CPU), dither((5, 7), 2, CPU))


def test_over_steps_the_offsets_of_every_entry_fill_the_interval_evenly() -> None:
    ordered = torch.stack(offsets((6, 9))).double().sort(0).values
    even = torch.arange(STEPS, dtype=torch.float64)[:, None, None] / STEPS
    # The share below t is t to within 4 / 1000; of random numbers it would be to within 1 / √1000 = 32 / 1000.
    assert float((ordered - even).abs().max()) < 4 / STEPS


def test_over_entries_the_offsets_of_a_step_fill_the_interval_evenly() -> None:
    ordered = dither((64, 64), 7, CPU).double().flatten().sort().values
    assert float((ordered - torch.arange(64 * 64) / 64**2).abs().max()) < 1 / 64 / 4


@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_numbers_rounded_to_bfloat16_is_the_number_far_closer_than_by_chance(sign: int) -> None:
    tensor = sign * random_matrix(6, 9).abs()
    mean = torch.stack([to_bfloat16(tensor, u).double() for u in offsets((6, 9))]).mean(0)
    unit = 2 ** (tensor.double().abs().log2().floor() - 7)
    # By chance the largest of 54 would be near 3 · 0.5 / √1000 = 0.05 of a unit.
    assert float(((mean - tensor.double()).abs() / unit).max()) < 4 / STEPS


def test_the_mean_of_numbers_rounded_to_int8_is_the_number_far_closer_than_by_chance() -> None:
    tensor = random_matrix(6, 9)
    stored = [quantize(tensor, 4, u) for u in offsets((6, 9))]
    mean = torch.stack([dequantize(each, 4).double() for each in stored]).mean(0)
    unit = stored[0].scales.repeat_interleave(4, -1)[:, :9].double()
    assert float(((mean - tensor.double()).abs() / unit).max()) < 4 / STEPS


def test_a_number_is_rounded_up_along_an_offset_above_what_is_left_to_the_next() -> None:
    # Between 1 and 1 + 2^-7 a quarter of the way: up along offsets from 3/4 on.
    tensor = torch.full((2, 3), 1 + 2.0**-9)
    given = torch.tensor([[0.0, 0.5, 0.7499], [0.75, 0.9, 0.9999]])
    expected = torch.tensor([[1.0, 1.0, 1.0], [1 + 2.0**-7] * 3])
    assert torch.equal(to_bfloat16(tensor, given).float(), expected)
    assert torch.equal(to_bfloat16(-tensor, given).float(), -expected)
    # A quarter of the way from code 1 to 2, and from −2 to −1, on the scale 1.
    tensor = torch.tensor([[127.0, 1.25, -1.75]]).expand(6, 3)
    given = torch.tensor([0.0, 0.5, 0.7499, 0.75, 0.9, 0.9999]).unsqueeze(-1).expand(6, 3)
    codes = quantize(tensor, None, given).codes
    assert codes[:, 0].tolist() == [127] * 6
    assert codes[:, 1].tolist() == [1, 1, 1, 2, 2, 2]
    assert codes[:, 2].tolist() == [-2, -2, -2, -1, -1, -1]


def test_what_is_held_exactly_stays_exactly() -> None:
    exact = torch.tensor([[0.0, -0.0, 1.0, -1.5, 2.0**-126, 2.0**-130, 3e38, 255.0]]).bfloat16()
    grid = torch.arange(-127, 128, dtype=torch.float32).reshape(3, 85) / 8
    grid[:, 0] = 127 / 8  # every row has the scale 1/8
    for step in range(1, 200):
        assert torch.equal(to_bfloat16(exact.float(), dither((1, 8), step, CPU)), exact)
        stored = quantize(grid, None, dither((3, 85), step, CPU))
        assert torch.equal(dequantize(stored), grid)


@pytest.mark.parametrize("step", [1, 2, 3, 50])
def test_nan_and_infinities_stay_in_bfloat16_and_cost_only_themselves_in_int8(step: int) -> None:
    nan, inf = float("nan"), float("inf")
    tensor = torch.tensor([[nan, inf, -inf, 0.5, -1.0, 0.25]])
    u = dither((1, 6), step, CPU)
    rounded = to_bfloat16(tensor, u).float()
    torch.testing.assert_close(rounded, tensor, rtol=0, atol=0, equal_nan=True)
    restored = dequantize(quantize(tensor, None, u), None)
    assert_close(restored, torch.tensor([[0.0, 1.0, -1.0, 0.5, -1.0, 0.25]]).double(), rtol=0, atol=1 / 127)


def test_rows_of_a_batch_are_rounded_along_the_same_offsets() -> None:
    tensor, u = random_matrix(3, 5, 8), dither((3, 5, 8), 4, CPU)
    stored = quantize(tensor, 4, u)
    for row in range(3):
        assert torch.equal(to_bfloat16(tensor, u)[row], to_bfloat16(tensor[row], u))
        assert torch.equal(stored.codes[row], quantize(tensor[row], 4, u).codes)


# ------------------------------------------------------------------------------------------------ averages

Keep = Callable[[Tensor, int], Tensor]

KEPT: dict[str, tuple[Keep, Keep]] = {
    "bfloat16": (
        lambda average, step: average.bfloat16().float(),
        lambda average, step: to_bfloat16(average, dither((8, 64), step, CPU)).float(),
    ),
    "int8": (
        lambda average, step: dequantize(quantize(average, 16), 16),
        lambda average, step: dequantize(quantize(average, 16, dither((8, 64), step, CPU)), 16),
    ),
}
"""What is left of an average after a step: rounded to the nearest, and along the offsets."""


@pytest.mark.parametrize("name", KEPT)
def test_a_slow_average_follows_float32_along_the_offsets_where_the_nearest_number_freezes_it(name: str) -> None:
    beta, steps = 0.999, 2000
    start, target = random_matrix(8, 64), random_matrix(8, 64, seed=1)
    noise = random_matrix(steps, 8, 64, seed=2)
    exact, frozen, followed = start.clone(), start.clone(), start.clone()
    nearest, dithered = KEPT[name]
    for step in range(1, steps + 1):
        seen = target + noise[step - 1]
        exact.lerp_(seen, 1 - beta)
        frozen = nearest(frozen.lerp(seen, 1 - beta), step)
        followed = dithered(followed.lerp(seen, 1 - beta), step)
    assert relative_error(frozen, exact) > 0.5
    assert relative_error(followed, exact) < (0.05 if name == "bfloat16" else 0.1)
    # Neither too small nor too large on the whole, by a part of a hundred; the frozen one is, by five times as much.
    excess = [float(((kept - exact) * exact.sign()).sum() / exact.abs().sum()) for kept in (followed, frozen)]
    assert abs(excess[0]) < 0.01
    assert abs(excess[1]) > 0.05


@pytest.mark.parametrize("name", KEPT)
def test_an_average_of_positive_numbers_is_not_biased_along_the_offsets(name: str) -> None:
    exact = followed = torch.zeros(8, 64)
    squares = random_matrix(500, 8, 64, seed=3).square()
    for step, seen in enumerate(squares, start=1):
        exact = exact.lerp(seen, 0.05)
        followed = KEPT[name][1](followed.lerp(seen, 0.05), step)
    assert float(followed.mean() / exact.mean()) == pytest.approx(1.0, abs=2e-3)
