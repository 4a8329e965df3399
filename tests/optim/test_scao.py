"""SCAO: what it equals at its ends, what it holds in memory, and which bases it gives to which matrix.

Its trajectory against the float64 reference is in `test_scao_trajectory.py`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import reference
import torch
from optim.siblings import SHAPES, parameters, set_gradients, train
from problems import assert_close, random_frame, random_matrix, relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scao_hf.numerics.eigenbasis import orthonormalize
from scao_hf.numerics.precondition import coupling
from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.published import PublishedSCAO
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP

SECOND_MOMENTS = ["factored", "elementwise"]


def run(grads: list[Tensor], **settings: Any) -> tuple[SCAO, nn.Parameter]:
    """An optimizer of one matrix after given gradients."""
    param = nn.Parameter(torch.zeros(grads[0].shape))
    optimizer = SCAO([param], **{"weight_decay": 0.0, "k_min": 1, **settings})
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return optimizer, param


def moved_by_a_step(optimizer: KroneckerOptimizer, param: nn.Parameter, grad: Tensor) -> Tensor:
    """The direction of a step, from how far the parameter moves at lr = 1."""
    param.data.zero_()
    param.grad = grad.clone()
    optimizer.step()
    return -param.detach().clone()


# ------------------------------------------------------------------------------------------------ equal to AdamW

ADAM: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "settings",
    [
        {"sides": "none"},
        {"sides": "none", "second_moment": "elementwise"},
        {"warmup_steps": 100, "second_moment": "elementwise", "precond_freq": 4},
        {"min_precond_updates": 100, "warmup_steps": 0, "second_moment": "elementwise"},
        {"warmup_steps": 100, "second_moment": "elementwise", "max_precond_dim": 4},
    ],
    ids=["no sides", "no sides, elementwise", "still warming up", "too few updates", "warming up in blocks"],
)
def test_without_preconditioning_it_is_adamw(settings: dict[str, Any]) -> None:
    params, others = parameters(), parameters()
    optimizer, adamw = SCAO(params, **ADAM, **settings), torch.optim.AdamW(others, **ADAM)
    for step in range(1, 31):
        train(optimizer, params, [step])
        train(adamw, others, [step])
        for param, other in zip(params, others, strict=True):
            assert relative_error(param.detach(), other.detach()) < 1e-6


def test_with_preconditioning_it_is_not_adamw() -> None:
    params, others = parameters(), parameters()
    train(SCAO(params, **ADAM, warmup_steps=4), params, range(1, 31))
    train(torch.optim.AdamW(others, **ADAM), others, range(1, 31))
    for param, other in zip(params, others, strict=True):
        is_matrix = param.ndim > 1
        assert (relative_error(param.detach(), other.detach()) > 1e-3) == is_matrix


def test_one_dimensional_parameters_take_adamw_whatever_the_sides() -> None:
    for sides in ("both", "left", "right", "auto"):
        params, others = parameters([(7,), ()]), parameters([(7,), ()])
        train(SCAO(params, **ADAM, sides=sides, warmup_steps=1), params, range(1, 21))
        train(torch.optim.AdamW(others, **ADAM), others, range(1, 21))
        assert all(relative_error(p.detach(), q.detach()) < 1e-6 for p, q in zip(params, others, strict=True))


# ------------------------------------------------------------------------------------------------ equal to SOAP


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (4, 4), (4, 3, 2)], ids=str)
def test_at_full_rank_in_given_bases_its_direction_is_that_of_soap(shape: tuple[int, ...]) -> None:
    matrix = (shape[0], math.prod(shape[1:]))
    common: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.97), "eps": 1e-5, "weight_decay": 0.0}
    mine, soaps = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(matrix))
    scao = SCAO([mine], **common, warmup_steps=0, precond_freq=1000, second_moment="elementwise")
    soap = SOAP([soaps], **common, precondition_frequency=1000)
    for step in range(1, 8):
        mine.grad = random_matrix(*shape, seed=step)
        soaps.grad = mine.grad.reshape(matrix)
        scao.step()
        soap.step()
    # Give both the same bases and the same moments in them; SCAO's next refresh, and SOAP's, is at step 1000.
    state, other = scao.state[mine], soap.state[soaps]
    moments = random_matrix(*matrix, seed=20), random_matrix(*matrix, seed=21).square()
    for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        state[name].copy_(moment)
        other[name].copy_(moment)
    for dim, side in enumerate(("left", "right")):
        basis = orthonormalize(random_frame(dim=matrix[dim], rank=matrix[dim], seed=dim))
        state[f"{side}_vectors"].copy_(basis)
        state[f"{side}_rank"].fill_(matrix[dim])
        state[f"{side}_coupling"].copy_(coupling(basis, state[f"{side}_rank"]))
        other[f"basis_{dim}"].copy_(basis)
    for step in range(8, 14):
        grad = random_matrix(*shape, seed=step)
        direction = moved_by_a_step(scao, mine, grad)
        expected = moved_by_a_step(soap, soaps, grad.reshape(matrix))
        assert_close(direction.reshape(matrix), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ equal to dense maps


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize("sides", ["both", "left", "right"])
@pytest.mark.parametrize("active", [(3, 4), (1, 2), (0, 4)], ids=str)
def test_its_direction_in_given_frames_is_that_of_materialised_maps(
    second_moment: str, sides: str, active: tuple[int, int]
) -> None:
    shape, tracked, betas, eps = (9, 7), (3, 4), (0.9, 0.97), 1e-6
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SCAO(
        [param], lr=1.0, betas=betas, eps=eps, weight_decay=0.0, warmup_steps=0, precond_freq=1000, k_exact=0, k_max=4,
        k_min=1, second_moment=second_moment, sides=sides,
    )  # fmt: skip
    # Zero gradients leave the moments at zero; the last early refresh is at step 6.
    grads = [torch.zeros(shape)] * 6
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    state = optimizer.state[param]
    frames: list[tuple[Tensor, int] | None] = []
    for side, dim, width, rank in zip(("left", "right"), shape, tracked, active, strict=True):
        if sides not in ("both", side):
            frames.append(None)
            continue
        frame = orthonormalize(random_frame(dim=dim, rank=4, seed=dim + width))
        state[f"{side}_vectors"].copy_(frame)
        state[f"{side}_rank"].fill_(rank)
        state[f"{side}_coupling"].copy_(coupling(frame, torch.tensor(rank)))
        frames.append((frame.double(), rank))
    for step in range(7, 12):
        grads.append(random_matrix(*shape, seed=step))
        direction = moved_by_a_step(optimizer, param, grads[-1])
        expected = reference.partial_eigenbasis_adam(
            grads, *frames, betas=betas, eps=eps, factored=second_moment == "factored"
        )
        assert_close(direction, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ memory


def _side(dim: int, rank: int) -> int:
    return 2 * dim * rank + rank**2 + 1


def _documented_bytes(m: int, n: int, k: int, r: int, second_moment: str, blocks: int = 1) -> int:
    """The formula of SCAO's docstring, k and r the ranks of the sides, 0 for a side without a basis."""
    moments = m * n + m + n if second_moment == "factored" else 2 * m * n
    return blocks * (
        4 * (moments + (_side(m, k) if k else 0) + (_side(n, r) if r else 0) + 1) + 24 - 8 * [k, r].count(0)
    )


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize(
    ("sides", "ranks"), [("both", (4, 6)), ("left", (4, 0)), ("right", (0, 6)), ("none", (0, 0))], ids=lambda v: str(v)
)
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_state_has_the_documented_size(second_moment: str, sides: str, ranks: tuple[int, int], blocks: int) -> None:
    m, n = 11, 6
    param = nn.Parameter(torch.zeros((m, n) if blocks == 1 else (2 * m, 2 * n)))
    optimizer = SCAO([param], second_moment=second_moment, sides=sides, k_exact=6, k_max=4, k_min=1, max_precond_dim=11)
    param.grad = torch.ones(param.shape)
    optimizer.step()
    expected = _documented_bytes(m, n, *ranks, second_moment, blocks) if sides != "none" else 8 * param.numel()
    assert optimizer.diagnostics()["state_bytes"] == expected


def test_the_state_of_several_layers_is_the_sum_of_theirs() -> None:
    params = parameters()
    optimizer = SCAO(params)
    train(optimizer, params, [1])
    matrices = [(6, 5), (6, 5), (9, 4), (6, 5), (4, 12)]
    vectors = [5, 5, 1]
    expected = sum(_documented_bytes(m, n, m, n, "factored") for m, n in matrices) + sum(8 * n for n in vectors)
    assert optimizer.diagnostics()["state_bytes"] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_state_is_float32_whatever_the_parameters_are(dtype: torch.dtype) -> None:
    params, others = parameters(dtype=dtype), parameters()
    optimizer, other = SCAO(params), SCAO(others)
    train(optimizer, params, [1])
    train(other, others, [1])
    assert optimizer.diagnostics()["state_bytes"] == other.diagnostics()["state_bytes"]


@pytest.mark.parametrize("use_int8_ema", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_published_state_has_the_documented_size(use_int8_ema: bool, blocks: int) -> None:
    m, n, k, r = 11, 6, 7, 6
    param = nn.Parameter(torch.zeros((m, n) if blocks == 1 else (2 * m, 2 * n)))
    optimizer = PublishedSCAO([param], k_max=7, k_min=1, max_precond_dim=11, use_int8_ema=use_int8_ema)
    param.grad = torch.ones(param.shape)
    optimizer.step()
    factors = m**2 + n**2 + 8 if use_int8_ema else 4 * (m**2 + n**2)
    per_block = 8 * m * n + factors + 4 * ((m + 1) * k + (n + 1) * r) + 40
    assert optimizer.diagnostics()["state_bytes"] == blocks * per_block


@pytest.mark.parametrize("shape", [(6, 5), (7, 3, 2), (9, 40)], ids=str)
def test_the_state_of_soap_has_the_documented_size(shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SOAP([param], max_precond_dim=16)
    param.grad = torch.ones(shape)
    optimizer.step()
    based = [size for size in shape if size <= 16]
    expected = 8 * math.prod(shape) + 8 * sum(size**2 for size in based) + 4 * len(based) + 8
    assert optimizer.diagnostics()["state_bytes"] == expected


class _LargestSquare(TorchDispatchMode):
    """Watches for results with two dimensions of the lengths given, or as many elements as such a square has."""

    def __init__(self, sides: tuple[int, ...], allowed: int) -> None:
        super().__init__()
        self.sides, self.allowed, self.found = sides, allowed, set[tuple[int, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                square = any(tensor.shape.count(side) > 1 for side in self.sides)
                if square or tensor.numel() > self.allowed:
                    self.found.add(tuple(tensor.shape))
        return result


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (40, 400)], ids=str)
def test_no_square_of_a_tracked_side_is_ever_formed(shape: tuple[int, int], second_moment: str) -> None:
    params = parameters([shape])
    optimizer = SCAO(params, k_exact=16, k_max=12, warmup_steps=2, precond_freq=3, second_moment=second_moment)
    watch = _LargestSquare(shape, allowed=math.prod(shape))
    for step in range(1, 9):
        set_gradients(params, step)
        with watch:
            optimizer.step()
    assert watch.found == set()
    for name, value in optimizer.state[params[0]].items():
        if isinstance(value, Tensor) and name not in ("exp_avg", "exp_avg_sq"):
            assert value.numel() <= 12 * max(shape), name
            assert all(value.shape.count(side) < 2 for side in shape), name


def test_the_watch_for_squares_sees_those_of_the_published_rule() -> None:
    params = parameters([(96, 80)])
    optimizer = PublishedSCAO(params)
    set_gradients(params, 1)
    watch = _LargestSquare((96, 80), allowed=96 * 80)
    with watch:
        optimizer.step()
    assert {shape[-2:] for shape in watch.found} >= {(96, 96), (80, 80)}


# ------------------------------------------------------------------------------------------------ sides and ranks


@pytest.mark.parametrize(
    ("shape", "group", "left", "right"),
    [
        ((48, 40), {}, 48, 40),
        ((65, 40), {}, 32, 40),
        ((300, 200), {}, 64, 32),
        ((300, 10), {}, 20, 10),
        ((80, 10), {}, 20, 10),
        ((2000, 100), {}, 0, 32),
        ((100, 2000), {}, 32, 0),
        ((1600, 100), {}, 0, 32),
        ((1599, 100), {}, 64, 32),
        ((2000, 64), {}, 64, 64),
        ((2000, 100), {"kind": "matrix"}, 64, 32),
        ((200, 100), {"kind": "embedding"}, 0, 32),
        ((200, 100), {"kind": "head"}, 0, 32),
        ((200, 100), {"kind": "vector"}, 0, 0),
        ((8, 300), {"kind": "lora_a"}, 8, 16),
        ((300, 8), {"kind": "lora_b"}, 16, 8),
        ((200, 100), {"kind": "embedding", "sides": "both"}, 32, 32),
        ((200, 100), {"sides": "left"}, 32, 0),
        ((200, 100), {"sides": "right"}, 0, 32),
        ((200, 100), {"sides": "none"}, 0, 0),
        ((1, 100), {"sides": "both"}, 0, 0),
        ((100, 1), {"sides": "both"}, 0, 0),
        ((100,), {"sides": "both"}, 0, 0),
        ((16, 3, 3, 3), {}, 16, 27),
        ((200, 100), {"k_exact": 128}, 32, 100),
        ((200, 100), {"k_max": 50}, 50, 50),
        ((200, 100), {"k_max": 500}, 200, 100),
    ],
    ids=str,
)
def test_the_columns_tracked_on_each_side(shape: tuple[int, ...], group: dict[str, Any], left: int, right: int) -> None:
    param = nn.Parameter(torch.zeros(shape))
    optimizer = SCAO([{"params": [param], **group}])
    param.grad = torch.ones(shape)
    optimizer.step()
    state = optimizer.state[param]
    columns = [state[name].shape[-1] if name in state else 0 for name in ("left_vectors", "right_vectors")]
    assert columns == [left, right]


def test_sides_given_to_the_constructor_hold_for_groups_that_name_none() -> None:
    params = parameters([(6, 5), (6, 5)])
    optimizer = SCAO([{"params": params[:1]}, {"params": params[1:], "sides": "right"}], sides="left")
    train(optimizer, params, [1])
    found = [{name.split("_")[0] for name in optimizer.state[p] if name.endswith("vectors")} for p in params]
    assert found == [{"left"}, {"right"}]


def _spiked(shape: tuple[int, int], spikes: list[float], noise: float, seed: int) -> Tensor:
    left, right = (
        random_frame(dim=shape[0], rank=len(spikes), seed=1),
        random_frame(dim=shape[1], rank=len(spikes), seed=2),
    )
    return (left * torch.tensor(spikes)) @ right.mT + noise * random_matrix(*shape, seed=seed)


@pytest.mark.parametrize(("k_min", "k_max"), [(1, 8), (5, 8), (1, 2), (8, 8)])
@pytest.mark.parametrize("epsilon_sparse", [0.0, 0.01, 0.3, 0.9])
def test_the_active_rank_is_the_least_that_holds_the_excess_mass(k_min: int, k_max: int, epsilon_sparse: float) -> None:
    shape, rho = (24, 16), 0.8
    grads = [_spiked(shape, [4.0, 2.0, 1.0], 0.05, seed) for seed in range(12)]
    optimizer, param = run(
        grads,
        k_min=k_min,
        k_max=k_max,
        k_exact=0,
        epsilon_sparse=epsilon_sparse,
        warmup_steps=2,
        precond_freq=4,
        rho=rho,
    )
    state = optimizer.state[param]
    unbias = 1 - rho**12
    for side, dim in zip(("left", "right"), shape, strict=True):
        vectors, product = state[f"{side}_vectors"].double(), state[f"{side}_product"].double()
        values = sorted(
            (max(0.0, float(u @ y) / unbias) for u, y in zip(vectors.T, product.T, strict=True)), reverse=True
        )
        tail = max(0.0, reference.tail_level(float(state["trace"]) / unbias, values, dim))
        wanted = reference.rank_by_excess(values, tail, epsilon_sparse)
        assert int(state[f"{side}_rank"]) == reference.clamp_rank(wanted, k_min, k_max, dim)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_rank_follows_the_number_of_spikes_at_every_scale(scale: float) -> None:
    for count in (1, 2, 4):
        grads = [scale * _spiked((24, 16), [3.0] * count, 0.01, seed) for seed in range(20)]
        optimizer, param = run(grads, k_max=8, k_exact=0, epsilon_sparse=0.01, warmup_steps=2, precond_freq=4)
        assert int(optimizer.state[param]["left_rank"]) == count
        assert int(optimizer.state[param]["right_rank"]) == count


def test_a_side_of_at_most_k_exact_keeps_all_its_columns() -> None:
    grads = [_spiked((24, 8), [3.0], 0.01, seed) for seed in range(8)]
    optimizer, param = run(grads, k_max=6, k_exact=8, epsilon_sparse=0.5, warmup_steps=2, precond_freq=4)
    assert int(optimizer.state[param]["right_rank"]) == 8
    assert int(optimizer.state[param]["left_rank"]) == 1


def test_the_active_rank_grows_along_the_ramp_from_zero() -> None:
    param = nn.Parameter(torch.zeros(6, 12))
    optimizer = SCAO([param], warmup_steps=3, blend_steps=6, precond_freq=1)
    ranks = []
    for step in range(1, 12):
        param.grad = random_matrix(6, 12, seed=step)
        optimizer.step()
        ranks.append((int(optimizer.state[param]["left_rank"]), int(optimizer.state[param]["right_rank"])))
    # The rank after step t acts in step t + 1, of which t + 1 − 3 of six ramp steps have passed, rounded up.
    weights = [max(0, min(6, step + 1 - 3)) for step in range(1, 12)]
    weights[:2] = [0, 0]
    assert ranks == [(math.ceil(6 * w / 6), math.ceil(12 * w / 6)) for w in weights]


def test_without_a_ramp_the_whole_rank_acts_after_the_last_adam_step() -> None:
    param = nn.Parameter(torch.zeros(6, 5))
    optimizer = SCAO([param], warmup_steps=3, blend_steps=0, precond_freq=100)
    ranks = []
    for step in range(1, 6):
        param.grad = random_matrix(6, 5, seed=step)
        optimizer.step()
        ranks.append(int(optimizer.state[param]["left_rank"]))
    assert ranks == [0, 0, 6, 6, 6]


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_a_cut_weight_behaves_as_its_blocks(second_moment: str) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "warmup_steps": 2, "precond_freq": 3, "second_moment": second_moment}
    whole = nn.Parameter(random_matrix(8, 5))
    pieces = [nn.Parameter(block.clone()) for _, _, block in reference.cut(whole.detach(), 4)]
    assert [tuple(piece.shape) for piece in pieces] == [(4, 3)] * 4
    optimizer, other = SCAO([whole], max_precond_dim=4, **settings), SCAO(pieces, **settings)
    for step in range(1, 13):
        whole.grad = random_matrix(8, 5, seed=step)
        for piece, (_, _, block) in zip(pieces, reference.cut(whole.grad, 4), strict=True):
            piece.grad = block.clone()
        optimizer.step()
        other.step()
    places = [(down, across) for down, across, _ in reference.cut(whole.detach(), 4)]
    pasted = reference.paste([(*place, piece.detach()) for place, piece in zip(places, pieces, strict=True)], (8, 5))
    assert torch.equal(whole.detach().double(), pasted)


# ------------------------------------------------------------------------------------------------ second moment


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_a_column_newly_taken_in_starts_from_its_eigenvalue(second_moment: str) -> None:
    u, v = random_frame(dim=10, rank=1, seed=1)[:, 0], random_frame(dim=7, rank=1, seed=2)[:, 0]
    grad = 3.0 * torch.outer(u, v)
    optimizer, param = run(
        [grad] * 4, betas=(0.9, 0.8), warmup_steps=4, precond_freq=2, k_exact=0, k_max=1, second_moment=second_moment,
        sides="left",
    )  # fmt: skip
    state = optimizer.state[param]
    # The average of R² over the seven columns of the taken row is 9 / 7, with Adam's bias (1 − 0.8⁴) in it.
    mean = 9 / 7 * (1 - 0.8**4)
    if second_moment == "factored":
        assert_close(state["exp_avg_sq_row"][0], mean, rtol=1e-5)
    else:
        # Spread along the row as the columns' means are: here as v².
        assert_close(state["exp_avg_sq"][0], mean * 7 * v.double().square(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_the_second_moment_follows_its_column_where_the_order_changes(second_moment: str) -> None:
    # Two directions along axes, whose strengths swap: the columns change places at the refresh of step 40.
    first, second = torch.zeros(6, 5), torch.zeros(6, 5)
    first[0, 0], first[1, 1] = 4.0, 1.0
    second[0, 0], second[1, 1] = 0.5, 4.0
    settings: dict[str, Any] = {
        "betas": (0.9, 0.99), "rho": 0.7, "warmup_steps": 1, "precond_freq": 20, "k_exact": 0, "k_max": 2, "k_min": 2,
        "sides": "left", "second_moment": second_moment,
    }  # fmt: skip
    before, param = run([first] * 20 + [second] * 19, **settings)
    name = "exp_avg_sq_row" if second_moment == "factored" else "exp_avg_sq"
    old_vectors = before.state[param]["left_vectors"].clone()
    moment, beta = before.state[param][name].clone(), 0.99
    after, other = run([first] * 20 + [second] * 20, **settings)
    vectors = after.state[other]["left_vectors"]
    cosines = (old_vectors.mT @ vectors).abs()
    assert cosines[0, 1] > 0.999
    assert cosines[1, 0] > 0.999
    # The last gradient, seen in the old columns, then the swap.
    rotated = reference.householder_completion(old_vectors.double(), 2).T @ second.double()
    seen = rotated.square().mean(1) if second_moment == "factored" else rotated.square()
    expected = beta * moment.double() + (1 - beta) * seen
    expected[[0, 1]] = expected[[1, 0]]
    assert_close(after.state[other][name], expected, rtol=1e-5, atol=1e-6)


def test_the_momentum_moves_with_the_basis() -> None:
    settings: dict[str, Any] = {"warmup_steps": 1, "k_exact": 0, "k_max": 3, "betas": (0.9, 0.95), "lr": 0.0}
    grads = [random_matrix(9, 7, seed=step) for step in range(12)]
    optimizer, param = run(grads, precond_freq=4, **settings)
    state = optimizer.state[param]
    maps = [
        reference.householder_completion(state[f"{side}_vectors"].double(), int(state[f"{side}_rank"]))
        for side in ("left", "right")
    ]
    momentum = torch.zeros(9, 7, dtype=torch.float64)
    for grad in grads:
        momentum = 0.9 * momentum + 0.1 * grad.double()
    assert_close(reference.unrotate(state["exp_avg"].double(), *maps), momentum, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ scale and settings


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
@pytest.mark.parametrize("power", [-20, 20])
def test_the_steps_do_not_depend_on_the_scale_of_the_loss(power: int, second_moment: str) -> None:
    grads = [random_matrix(9, 7, seed=step) for step in range(16)]
    settings: dict[str, Any] = {"eps": 0.0, "lr": 0.01, "warmup_steps": 3, "k_exact": 0, "k_max": 4, "precond_freq": 4}
    _, plain = run(grads, second_moment=second_moment, **settings)
    _, scaled = run([grad * 2.0**power for grad in grads], second_moment=second_moment, **settings)
    assert relative_error(scaled.detach(), plain.detach()) < 1e-5


@pytest.mark.parametrize("second_moment", SECOND_MOMENTS)
def test_the_transpose_moves_as_the_transpose(second_moment: str) -> None:
    grads = [random_matrix(9, 7, seed=step) for step in range(16)]
    settings: dict[str, Any] = {"lr": 0.01, "warmup_steps": 3, "precond_freq": 4, "second_moment": second_moment}
    _, upright = run(grads, **settings)
    _, flat = run([grad.mT.contiguous() for grad in grads], **settings)
    assert relative_error(flat.detach().mT, upright.detach()) < 1e-4


@pytest.mark.parametrize("num_params", [0, 1_000_000, 124_000_000, 1_500_000_000, 70_000_000_000])
@pytest.mark.parametrize("cls", [SCAO, PublishedSCAO])
def test_recommended_settings_are_arguments_of_the_constructor(cls: Any, num_params: int) -> None:
    optimizer = cls(parameters(SHAPES[:1]), **cls.recommended(num_params))
    for name, value in cls.recommended(num_params).items():
        assert optimizer.param_groups[0][name] == value


def test_larger_models_warm_up_longer_and_refresh_less_often() -> None:
    settings = [SCAO.recommended(10**power) for power in range(6, 12)]
    for smaller, larger in itertools.pairwise(settings):
        assert smaller["warmup_steps"] <= larger["warmup_steps"]
        assert smaller["precond_freq"] <= larger["precond_freq"]
