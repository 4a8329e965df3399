"""State in fewer bits: what a hook sees, what is kept of it, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from problems import random_frame, random_matrix
from torch import Tensor

from scao_hf.optim.compression import INT8_BLOCK, STATE_DTYPES, compress, expand, write_back


def state() -> dict[str, Tensor]:
    return {
        "exp_avg": random_matrix(2, 5, 300),
        "exp_avg_sq": random_matrix(2, 5, 300, seed=1).square(),
        "vectors": random_frame(2, dim=5, rank=3),
        "exp_avg_sq_row": random_matrix(2, 5).square(),
        "values": random_matrix(2, 3),
        "rank": torch.tensor([3, 2]),
    }


WIDTHS: dict[str, dict[str, torch.dtype]] = {
    "float32": {},
    "bfloat16": {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16, "vectors": torch.bfloat16},
    "int8": {"exp_avg": torch.int8, "exp_avg_sq": torch.bfloat16, "vectors": torch.bfloat16},
}


def test_every_state_dtype_is_described_here() -> None:
    assert set(WIDTHS) == set(STATE_DTYPES)


@pytest.mark.parametrize("state_dtype", WIDTHS)
def test_moments_and_vectors_are_narrow_and_all_else_is_the_very_tensor(state_dtype: str) -> None:
    given = state()
    kept = compress(given, state_dtype, step=3)
    assert {name: kept[name].dtype for name in WIDTHS[state_dtype]} == WIDTHS[state_dtype]
    assert all(kept[name] is given[name] for name in given.keys() - WIDTHS[state_dtype].keys())
    scales = {"exp_avg_scale"} if state_dtype == "int8" else set()
    assert kept.keys() == given.keys() | scales
    if scales:
        assert INT8_BLOCK == 128
        assert kept["exp_avg_scale"].shape == (2, 5, 3)  # 300 entries in blocks of 128


@pytest.mark.parametrize("state_dtype", WIDTHS)
def test_what_a_hook_sees_is_float32_and_close_to_what_was_kept(state_dtype: str) -> None:
    given = state()
    kept = compress(given, state_dtype, step=3)
    seen = expand(kept)
    assert seen.keys() == given.keys()
    for name, tensor in given.items():
        assert seen[name].dtype == tensor.dtype
        assert (seen[name] is kept[name]) == (name not in WIDTHS[state_dtype])
        tolerance = tensor.abs().max() / 127 if WIDTHS[state_dtype].get(name) == torch.int8 else 2**-7 * tensor.abs()
        assert ((seen[name] - tensor).abs() <= tolerance * (1 + 1e-6)).all()


@pytest.mark.parametrize("state_dtype", WIDTHS)
def test_what_a_hook_changed_is_kept_in_the_same_storage(state_dtype: str) -> None:
    kept = compress(state(), state_dtype, step=0)
    before = {name: (tensor, tensor.clone()) for name, tensor in kept.items()}
    seen = expand(kept)
    for tensor in seen.values():
        tensor.mul_(2)
    write_back(kept, seen, state_dtype, step=1)
    assert kept.keys() == before.keys()
    for name, (tensor, old) in before.items():
        assert kept[name] is tensor
        # The codes of an average of twice the size are the same on a scale of twice the size.
        assert torch.equal(tensor, old) == (tensor.dtype == torch.int8)
    again = expand(kept)
    torch.testing.assert_close(again["exp_avg"], seen["exp_avg"], rtol=2**-7, atol=1e-6)
    assert torch.equal(again["values"], seen["values"])


@pytest.mark.parametrize("state_dtype", WIDTHS)
def test_moments_of_vectors_are_never_narrow(state_dtype: str) -> None:
    given = {"exp_avg": random_matrix(3, 7), "exp_avg_sq": random_matrix(3, 7).square()}
    kept = compress(given, state_dtype, step=1)
    assert kept.keys() == given.keys()
    assert all(kept[name] is tensor for name, tensor in given.items())


def test_a_scale_of_an_optimizers_own_is_left_alone() -> None:
    codes = {"left_codes": torch.ones(2, 4, 4, dtype=torch.int8), "left_scale": torch.ones(2, 1)}
    seen = expand(codes)
    assert seen.keys() == codes.keys()
    assert all(seen[name] is tensor for name, tensor in codes.items())
