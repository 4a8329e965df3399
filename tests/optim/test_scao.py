"""SCAO: what it equals at its ends, what it holds in memory, which side of a matrix it whitens, how far it steps.

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
from problems import assert_close, assert_orthonormal, random_frame, random_matrix, relative_error
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from scao_hf.optim import scao
from scao_hf.optim.compression import INT8_BLOCK, STATE_DTYPES
from scao_hf.optim.kronecker import Group, KroneckerOptimizer
from scao_hf.optim.published import PublishedSCAO
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP

SHARE = 2.0
"""c of the docstring, for a square matrix."""


def run(grads: list[Tensor], group: Group | None = None, **settings: Any) -> tuple[SCAO, nn.Parameter]:
    """An optimizer of one matrix, whose steps have no upper limit, after given gradients."""
    param = nn.Parameter(torch.zeros(grads[0].shape))
    optimizer = SCAO([{"params": [param], **(group or {})}], **{"weight_decay": 0.0, "tau": None, **settings})
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


def noise(*shape: int, steps: int = 16) -> list[Tensor]:
    return [random_matrix(*shape, seed=step) for step in range(steps)]


# ------------------------------------------------------------------------------------------------ equal to AdamW

ADAM: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def is_adamw(shape: tuple[int, ...], group: Group, **settings: Any) -> bool:
    """Whether a parameter follows torch's AdamW for twenty steps; one that does not is far away."""
    params, others = parameters([shape]), parameters([shape])
    (moved,) = train(SCAO([{"params": params, **group}], **ADAM, **settings), params, range(1, 21))
    (expected,) = train(torch.optim.AdamW(others, **ADAM), others, range(1, 21))
    error = relative_error(moved, expected)
    assert error < 1e-6 or error > 1e-2
    return error < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_sides_every_parameter_takes_adamw(shape: tuple[int, ...]) -> None:
    assert is_adamw(shape, {"sides": "none"})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_its_defaults_matrices_alone_do_not_take_adamw(shape: tuple[int, ...]) -> None:
    assert is_adamw(shape, {}) == (len(shape) < 2)


@pytest.mark.parametrize("sides", ["auto", "both", "left", "right"])
@pytest.mark.parametrize("shape", [(7,), (), (1, 7), (7, 1)], ids=str)
def test_one_dimensional_parameters_take_adamw_whatever_the_sides(shape: tuple[int, ...], sides: str) -> None:
    assert is_adamw(shape, {"sides": sides})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("embedding", True), ("head", True), ("vector", True), ("matrix", False), ("lora_a", False), ("lora_b", False)],
)
def test_embeddings_heads_and_vectors_take_adamw_by_their_kind(kind: str, expected: bool) -> None:
    assert is_adamw((6, 5), {"kind": kind}) == expected


@pytest.mark.parametrize("kind", ["embedding", "head"])
def test_embeddings_and_heads_are_whitened_when_asked_for(kind: str) -> None:
    assert not is_adamw((6, 5), {"kind": kind, "sides": "both"})


@pytest.mark.parametrize(
    ("shape", "group", "expected"),
    [
        ((64, 4), {}, True),
        ((4, 64), {}, True),
        ((63, 4), {}, False),
        ((64, 4), {"kind": "matrix"}, False),
        ((64, 4), {"sides": "both"}, False),
        ((64, 4), {"k_exact": 4}, False),
    ],
    ids=str,
)
def test_what_is_shaped_like_a_table_and_of_no_kind_takes_adamw(
    shape: tuple[int, int], group: Group, expected: bool
) -> None:
    assert is_adamw(shape, {"k_exact": 3, **group}) == expected


# ------------------------------------------------------------------------------------------------ the first phase


@pytest.mark.parametrize("first_phase", [{"warmup_steps": 100}, {"min_precond_updates": 100}], ids=str)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (4, 3, 2)], ids=str)
def test_the_first_phase_is_adam_with_a_second_moment_of_rank_one(
    shape: tuple[int, ...], first_phase: dict[str, int]
) -> None:
    betas, eps, grads = (0.8, 0.95), 1e-3, noise(*shape, steps=8)
    optimizer, param = run([grads[0]], lr=1.0, betas=betas, eps=eps, precond_freq=3, **first_phase)
    momentum = 0.2 * grads[0].double()
    for step in range(2, 9):
        direction = moved_by_a_step(optimizer, param, grads[step - 1])
        momentum = 0.8 * momentum + 0.2 * grads[step - 1].double()
        seen = [grad.reshape(shape[0], -1) for grad in grads[:step]]
        second = reference.factored_second_moment(seen, 0.95)[2].reshape(shape)
        assert_close(direction, momentum / (1 - 0.8**step) / (second.sqrt() + eps))


def test_where_the_squares_have_rank_one_the_first_phase_is_adam() -> None:
    rows, columns = random_matrix(6, seed=1), random_matrix(5, seed=2)
    signs = [random_matrix(6, 5, seed=seed).sign() for seed in range(10)]
    grads = [sign * torch.outer(rows, columns).abs() for sign in signs]
    _, param = run(grads, **ADAM | {"weight_decay": 0.0}, warmup_steps=100)
    other = reference.AdamW(torch.zeros(6, 5), **ADAM | {"weight_decay": 0.0})
    for grad in grads:
        other.step(grad)
    assert relative_error(param.detach(), other.parameter) < 1e-5


def test_along_the_ramp_the_direction_is_a_mixture_of_both_phases() -> None:
    grads = noise(6, 9, steps=6)
    directions = []
    # The last of six steps: still Adam, a quarter of the way, all the way.
    for warmup_steps, blend_steps in ((6, 0), (5, 4), (5, 0)):
        optimizer, param = run(grads[:5], lr=1.0, warmup_steps=warmup_steps, blend_steps=blend_steps)
        directions.append(moved_by_a_step(optimizer, param, grads[5]).double())
    adam, mixture, whitened = directions
    assert_close(mixture, 0.75 * adam + 0.25 * whitened)


# ------------------------------------------------------------------------------------------------ the second phase


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (4, 3, 3)], ids=str)
def test_tracked_whole_the_direction_is_orthogonal_but_for_the_evening_of_its_long_side(shape: tuple[int, ...]) -> None:
    grads = noise(*shape, steps=5)
    optimizer, param = run(grads[:4], lr=1.0, damping=1e-6)
    direction = moved_by_a_step(optimizer, param, grads[4]).double().reshape(shape[0], -1)
    flat = direction if direction.shape[0] <= direction.shape[1] else direction.T
    singular = torch.linalg.svdvals(flat * optimizer.state[param]["whitened_sq"].double().sqrt())
    # δ / λ for the least eigenvalue, about a thousandth of the mean.
    assert float(singular.max() / singular.min()) < 1 + 1e-2
    raw = torch.linalg.svdvals(grads[4].double().reshape(shape[0], -1))
    assert float(raw.max() / raw.min()) > 1.5


@pytest.mark.parametrize(
    ("shape", "group", "expected"),
    [
        ((6, 6), {}, SHARE),
        ((6, 24), {}, SHARE / 2),
        ((24, 6), {}, SHARE * 2),
        ((24, 6), {"kind": "matrix"}, SHARE * 2),
        ((6, 24), {"sides": "right"}, SHARE / 2),
        ((16, 2, 2), {}, SHARE * 2),
        ((6, 24), {"kind": "lora_a"}, SHARE),
        ((24, 6), {"kind": "lora_b"}, SHARE),
        ((24, 6), {"max_precond_dim": 6}, SHARE),
        ((6, 24), {"k_exact": 2, "k_max": 3, "block_rows": 2}, SHARE / 2),
    ],
    ids=str,
)
def test_the_root_mean_square_of_every_step(shape: tuple[int, ...], group: Group, expected: float) -> None:
    optimizer, param = run(noise(*shape, steps=1), group, lr=1.0)
    for step in range(2, 8):
        direction = moved_by_a_step(optimizer, param, random_matrix(*shape, seed=step))
        assert float(direction.square().mean().sqrt()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("power", [-40, -20, 20, 40])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_the_steps_do_not_depend_on_the_scale_of_the_loss(power: int, state_dtype: str) -> None:
    settings: dict[str, Any] = {
        "eps": 0.0, "lr": 0.01, "warmup_steps": 3, "k_exact": 0, "k_max": 4, "precond_freq": 4, "block_rows": 3,
        "state_dtype": state_dtype,
    }  # fmt: skip
    _, plain = run(noise(9, 7), **settings)
    _, scaled = run([grad * 2.0**power for grad in noise(9, 7)], **settings)
    assert relative_error(scaled.detach(), plain.detach()) < 1e-5


TRACKING = [{}, {"k_exact": 0, "k_max": 3, "block_rows": 2, "epsilon_sparse": 0.2}]


@pytest.mark.parametrize("tracking", TRACKING, ids=["whole", "tracked"])
def test_the_transpose_moves_as_the_transpose_but_for_the_scale_of_its_step(tracking: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "precond_freq": 4, **tracking}
    _, tall = run(noise(9, 7), **settings)
    _, wide = run([grad.mT.contiguous() for grad in noise(9, 7)], **settings)
    # 0.4 √(9 / 7) and 0.4 √(7 / 9)
    assert relative_error(wide.detach().mT * 9 / 7, tall.detach()) < 1e-4


@pytest.mark.parametrize("tracking", TRACKING, ids=["whole", "tracked"])
def test_in_the_first_phase_and_as_low_rank_factors_transposes_move_alike(tracking: dict[str, Any]) -> None:
    for group, warmup_steps in (({}, 100), ({"kind": "lora_a"}, 0)):
        settings: dict[str, Any] = {"lr": 0.01, "precond_freq": 4, "warmup_steps": warmup_steps, **tracking}
        _, tall = run(noise(9, 7), group, **settings)
        _, wide = run([grad.mT.contiguous() for grad in noise(9, 7)], group, **settings)
        assert relative_error(wide.detach().mT, tall.detach()) < 1e-4


def test_the_momentum_is_the_average_of_the_gradients_in_the_place_of_the_parameter() -> None:
    for shape in ((9, 7), (7, 9), (4, 3, 2)):
        grads = noise(*shape)
        optimizer, param = run(grads, betas=(0.9, 0.95), k_exact=0, k_max=3)
        momentum = torch.zeros(shape, dtype=torch.float64)
        for grad in grads:
            momentum = 0.9 * momentum + 0.1 * grad.double()
        assert_close(optimizer.state[param]["exp_avg"].reshape(shape), momentum)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_a_narrow_state_takes_nearly_the_steps_of_float32(state_dtype: str) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "k_exact": 0, "k_max": 4, "precond_freq": 4, "block_rows": 3}
    grads = [_spiked((12, 9), [3.0, 2.0], 0.5, seed) for seed in range(60)]
    _, plain = run(grads, **settings)
    _, narrow = run(grads, state_dtype=state_dtype, **settings)
    error = relative_error(narrow.detach(), plain.detach())
    assert 1e-6 < error < 0.1


# ------------------------------------------------------------------------------------------------ the longest step

LIMITED: dict[str, Any] = {"weight_decay": 0.0, "tau": 0.02, "precond_freq": 3}


@pytest.mark.parametrize("lr", [1e-4, 0.02, 3.0])
@pytest.mark.parametrize("settings", [{}, {"warmup_steps": 100}, {"k_exact": 0, "k_max": 2}], ids=str)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 3, 2)], ids=str)
def test_a_step_is_shortened_by_its_length_over_the_longest(
    shape: tuple[int, ...], settings: dict[str, Any], lr: float
) -> None:
    params, others = parameters([shape]), parameters([shape])
    optimizer = SCAO(params, lr=lr, **LIMITED, **settings)
    free = SCAO(others, lr=lr, **LIMITED | {"tau": None}, **settings)
    for step in range(1, 9):
        # Where the step goes depends on the gradients alone.
        before, elsewhere = params[0].detach().clone(), others[0].detach().clone()
        (after,), (moved,) = train(optimizer, params, [step]), train(free, others, [step])
        unlimited, longest = float((moved - elsewhere).norm()), 0.02 * float(before.norm())
        assert float((after - before).norm()) == pytest.approx(1 / (1 / unlimited + 1 / longest), rel=1e-3)


@pytest.mark.parametrize("warmup_steps", [0, 100])
@pytest.mark.parametrize(("total_steps", "share"), [(None, 1.0), (1000, 1.0), (200, 1.0), (199, 1.0025), (50, 2.0)])
def test_steps_are_longer_where_the_run_is_short(total_steps: int | None, share: float, warmup_steps: int) -> None:
    params = parameters([(6, 9)])
    optimizer = SCAO(params, lr=3e5, **LIMITED, warmup_steps=warmup_steps, total_steps=total_steps)
    before = params[0].detach().clone()
    (after,) = train(optimizer, params, [1])
    assert float((after - before).norm() / before.norm()) == pytest.approx(share * 0.02, rel=1e-3)


def shares(optimizer: SCAO) -> list[float]:
    """Of `tau`, the length of a first step of each parameter in units of its norm; the rate has to be large."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in params]
    after = train(optimizer, params, [1])
    return [float((new - old).norm() / old.norm()) / 0.02 for new, old in zip(after, before, strict=True)]


def test_the_length_of_the_run_is_told_to_the_groups_that_have_none() -> None:
    own, other = parameters([(6, 9), (9, 6)])
    groups = [{"params": [own], "total_steps": 100}, {"params": [other]}]
    optimizer = SCAO(groups, lr=3e5, **LIMITED)
    optimizer.set_total_steps(8)
    optimizer.set_total_steps(50)
    assert shares(optimizer) == pytest.approx([2**0.5, 2.0], rel=1e-3)
    with pytest.raises(ValueError, match="steps must be"):
        optimizer.set_total_steps(0)
    with pytest.raises(TypeError, match="steps must be"):
        optimizer.set_total_steps(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("told", "share"), [(None, 2.0), (200, 1.0)])
def test_a_told_length_is_saved_and_one_told_before_loading_stays(told: int | None, share: float) -> None:
    saved = SCAO(parameters([(6, 9)]), lr=3e5, **LIMITED)
    saved.set_total_steps(50)
    resumed = SCAO(parameters([(6, 9)]), lr=3e5, **LIMITED)
    if told is not None:
        resumed.set_total_steps(told)
    resumed.load_state_dict(saved.state_dict())
    assert shares(resumed) == pytest.approx([share], rel=1e-3)


@pytest.mark.parametrize("warmup_steps", [0, 100])
@pytest.mark.parametrize("rates", [(3.0, 0.3, 0.6), (0.3, 3.0, 0.6)], ids=str)
def test_the_longest_step_follows_the_schedule(rates: tuple[float, ...], warmup_steps: int) -> None:
    params, others = parameters([(6, 9)]), parameters([(6, 9)])
    settings = LIMITED | {"warmup_steps": warmup_steps}
    optimizer, free = SCAO(params, **settings), SCAO(others, **settings | {"tau": None})
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = free.param_groups[0]["lr"] = rate
        before, elsewhere = params[0].detach().clone(), others[0].detach().clone()
        (after,), (moved,) = train(optimizer, params, [step + 1]), train(free, others, [step + 1])
        unlimited = float((moved - elsewhere).norm())
        longest = 0.02 * float(before.norm()) * rate / max(rates[: step + 1])
        assert float((after - before).norm()) == pytest.approx(1 / (1 / unlimited + 1 / longest), rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_weights_of_zero_count_as_a_tenth_over_the_root_of_the_columns(shape: tuple[int, int]) -> None:
    _, param = run([random_matrix(*shape)], lr=3e4, tau=0.02)
    rows, columns = shape
    assert float(param.detach().norm()) == pytest.approx(0.02 * 0.1 / columns**0.5 * (rows * columns) ** 0.5, rel=1e-4)


def test_every_block_is_limited_by_its_own_weights() -> None:
    param = nn.Parameter(torch.cat([random_matrix(4, 8), 100 * random_matrix(4, 8, seed=1)]))
    before = param.detach().clone()
    optimizer = SCAO([param], lr=3e5, **LIMITED, max_precond_dim=4)
    param.grad = random_matrix(8, 8, seed=2)
    optimizer.step()
    for (_, _, block), (_, _, old) in zip(reference.cut(param.detach(), 4), reference.cut(before, 4), strict=True):
        assert float((block - old).norm() / old.norm()) == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("tau", [0.0, 0.02])
def test_a_gradient_of_zero_moves_nothing(tau: float) -> None:
    _, param = run([torch.zeros(6, 9)], lr=3.0, tau=tau)
    assert not param.detach().any()


@pytest.mark.parametrize(("shape", "group"), [((7,), {}), ((6, 5), {"kind": "head"}), ((6, 5), {"sides": "none"})])
def test_the_steps_of_adamw_are_not_limited(shape: tuple[int, ...], group: Group) -> None:
    assert is_adamw(shape, group, tau=1e-6)


# ------------------------------------------------------------------------------------------------ memory


def _documented_bytes(m: int, n: int, k: int) -> int:
    """The formula of SCAO's docstring, for one block with m ≤ n."""
    return 4 * (m * n + m * k + m + 2 * n + k + 3) + 16


@pytest.mark.parametrize(
    ("shape", "settings", "block", "rank", "blocks"),
    [
        ((6, 11), {}, (6, 11), 6, 1),
        ((11, 6), {}, (6, 11), 6, 1),
        ((11, 6), {"k_exact": 5, "k_max": 4}, (6, 11), 4, 1),
        ((7, 7), {"k_exact": 0, "k_max": 1}, (7, 7), 1, 1),
        ((5, 3, 4), {}, (5, 12), 5, 1),
        ((200, 300), {}, (200, 300), 64, 1),
        ((22, 12), {"max_precond_dim": 11, "k_exact": 5, "k_max": 4}, (6, 11), 4, 4),
        ((12, 23), {"max_precond_dim": 8}, (6, 8), 6, 6),
        ((11, 6), {"sides": "both"}, (6, 11), 6, 1),
    ],
    ids=str,
)
def test_the_state_has_the_documented_size(
    shape: tuple[int, ...], settings: dict[str, Any], block: tuple[int, int], rank: int, blocks: int
) -> None:
    optimizer, _ = run([torch.ones(shape)], **settings)
    expected = blocks * _documented_bytes(*block, rank)
    assert optimizer.diagnostics()["state_bytes"] == expected
    assert SCAO.state_bytes([nn.Parameter(torch.empty(shape, device="meta"))], **settings) == expected


@pytest.mark.parametrize(("sides", "side", "rank"), [("left", 11, 4), ("right", 6, 4)])
def test_a_chosen_side_pays_for_its_own_subspace(sides: str, side: int, rank: int) -> None:
    optimizer, _ = run([torch.ones(11, 6)], sides=sides, k_exact=5, k_max=4)
    other = 11 * 6 // side
    expected = 4 * (11 * 6 + side * rank + side + 2 * other + rank + 3) + 16
    assert optimizer.diagnostics()["state_bytes"] == expected


@pytest.mark.parametrize("sides", ["auto", "none"])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_a_narrow_state_has_the_documented_size(state_dtype: str, sides: str) -> None:
    m, n, k = 40, 300, 8
    optimizer, _ = run([torch.ones(m, n)], state_dtype=state_dtype, sides=sides, k_exact=0, k_max=k)
    scales = 4 * m * math.ceil(n / INT8_BLOCK) if state_dtype == "int8" else 0
    momentum = {"float32": 4, "bfloat16": 2, "int8": 1}[state_dtype] * m * n + scales
    narrow = {"float32": 4, "bfloat16": 2, "int8": 2}[state_dtype]
    rest = narrow * m * n if sides == "none" else narrow * m * k + 4 * (m + 2 * n + k + 3) + 16
    assert optimizer.diagnostics()["state_bytes"] == momentum + rest


def test_the_state_of_several_layers_is_the_sum_of_theirs() -> None:
    params = parameters()
    optimizer = SCAO(params)
    train(optimizer, params, [1])
    matrices = [(5, 6), (5, 6), (4, 9), (5, 6), (4, 12)]
    vectors = [5, 5, 1]
    expected = sum(_documented_bytes(m, n, m) for m, n in matrices) + sum(8 * n for n in vectors)
    assert optimizer.diagnostics()["state_bytes"] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_the_state_is_as_wide_whatever_the_parameters_are(dtype: torch.dtype, state_dtype: str) -> None:
    params, others = parameters(dtype=dtype), parameters()
    optimizer, other = SCAO(params, state_dtype=state_dtype), SCAO(others, state_dtype=state_dtype)
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


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (40, 400)], ids=str)
def test_no_square_of_a_side_is_ever_formed(shape: tuple[int, int], state_dtype: str) -> None:
    params = parameters([shape])
    settings: dict[str, Any] = {"k_exact": 16, "k_max": 12, "block_rows": 8, "warmup_steps": 2, "precond_freq": 3}
    optimizer = SCAO(params, **settings, state_dtype=state_dtype)
    # Rows are filled up to whole blocks where they are turned into int8.
    length = math.ceil(shape[1] / INT8_BLOCK) * INT8_BLOCK if state_dtype == "int8" else shape[1]
    watch = _LargestSquare(shape, allowed=shape[0] * length)
    for step in range(1, 9):
        set_gradients(params, step)
        with watch:
            optimizer.step()
    assert watch.found == set()
    for name, value in optimizer.state[params[0]].items():
        if isinstance(value, Tensor) and name != "exp_avg":
            assert value.numel() <= 12 * max(shape), name


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
    ("shape", "group", "side", "rank"),
    [
        ((48, 40), {}, 40, 40),
        ((40, 48), {}, 40, 40),
        ((64, 300), {}, 64, 64),
        ((65, 300), {}, 65, 64),
        ((300, 200), {}, 200, 64),
        ((300, 400), {}, 300, 64),
        ((300, 10), {}, 10, 10),
        ((2000, 64), {}, 64, 64),
        ((1599, 100), {}, 100, 64),
        ((2000, 100), {"kind": "matrix"}, 100, 64),
        ((8, 300), {"kind": "lora_a"}, 8, 8),
        ((300, 8), {"kind": "lora_b"}, 8, 8),
        ((200, 100), {"kind": "embedding", "sides": "both"}, 100, 64),
        ((200, 100), {"kind": "embedding", "sides": "right"}, 100, 64),
        ((200, 100), {"sides": "left"}, 200, 64),
        ((200, 100), {"sides": "right"}, 100, 64),
        ((200, 30), {"sides": "left"}, 200, 30),
        ((60, 10), {"sides": "left"}, 60, 10),
        ((16, 3, 3, 3), {}, 16, 16),
        ((200, 100), {"k_exact": 128}, 100, 100),
        ((200, 100), {"k_max": 50}, 100, 50),
        ((200, 100), {"k_max": 500}, 100, 100),
    ],
    ids=str,
)
def test_the_side_that_is_whitened_and_the_columns_tracked(
    shape: tuple[int, ...], group: Group, side: int, rank: int
) -> None:
    optimizer, param = run([torch.ones(shape)], group)
    assert tuple(optimizer.state[param]["vectors"].shape) == (side, rank)


def test_sides_given_to_the_constructor_hold_for_groups_that_name_none() -> None:
    params = parameters([(6, 5), (6, 5)])
    optimizer = SCAO([{"params": params[:1]}, {"params": params[1:], "sides": "right"}], sides="left")
    train(optimizer, params, [1])
    assert [len(optimizer.state[param]["vectors"]) for param in params] == [6, 5]


@pytest.mark.parametrize(
    ("precond_freq", "expected"), [(10, {2, 3, 6, 10, 20}), (4, {2, 3, 4, 8, 12, 16, 20}), (1, set(range(2, 22)))]
)
def test_the_subspace_turns_at_regular_steps_and_early_ones(precond_freq: int, expected: set[int]) -> None:
    params = parameters([(12, 9)])
    optimizer = SCAO(params, precond_freq=precond_freq, k_exact=0, k_max=4)
    train(optimizer, params, [1])
    turned = set()
    for step in range(2, 22):
        before = optimizer.state[params[0]]["vectors"].clone()
        train(optimizer, params, [step])
        after = optimizer.state[params[0]]["vectors"]
        assert_orthonormal(after)
        if not torch.equal(before, after):
            turned.add(step)
    assert turned == expected & set(range(2, 22))


def test_a_turn_is_an_orthogonal_iteration_with_the_momentum_that_looks_ahead() -> None:
    grads = noise(12, 9, steps=8)
    settings: dict[str, Any] = {"betas": (0.8, 0.95), "precond_freq": 8, "k_exact": 0, "k_max": 4}
    before, param = run(grads[:7], **settings)
    old = before.state[param]["vectors"].double()
    after, other = run(grads, **settings)
    momentum = torch.zeros(12, 9, dtype=torch.float64)
    for grad in grads:
        momentum = 0.8 * momentum + 0.2 * grad.double()
    ahead = (0.8 * momentum + 0.2 * grads[-1].double()).T  # the short side first
    state = after.state[other]
    assert_close(state["values"], torch.diag(old.T @ ahead @ ahead.T @ old), rtol=1e-4)
    assert_close(state["trace"], float((ahead**2).sum()), rtol=1e-5)
    expected = torch.linalg.qr(ahead @ ahead.T @ old).Q
    assert_close(reference.projector(state["vectors"]), reference.projector(expected), atol=1e-4)


def _spiked(shape: tuple[int, int], spikes: list[float], noise: float, seed: int) -> Tensor:
    left, right = (
        random_frame(dim=shape[0], rank=len(spikes), seed=1),
        random_frame(dim=shape[1], rank=len(spikes), seed=2),
    )
    return (left * torch.tensor(spikes)) @ right.mT + noise * random_matrix(*shape, seed=seed)


@pytest.mark.parametrize(("k_min", "k_max"), [(1, 8), (5, 8), (1, 2), (8, 8)])
@pytest.mark.parametrize("epsilon_sparse", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)], ids=str)
def test_the_active_rank_is_the_least_that_holds_the_excess_mass(
    shape: tuple[int, int], k_min: int, k_max: int, epsilon_sparse: float
) -> None:
    grads = [_spiked(shape, [4.0, 2.0, 1.0], 0.5, seed) for seed in range(12)]
    optimizer, param = run(
        grads, k_min=k_min, k_max=k_max, k_exact=0, epsilon_sparse=epsilon_sparse, warmup_steps=2, precond_freq=4
    )
    state = optimizer.state[param]
    values = sorted(state["values"].double().tolist(), reverse=True)
    tail = max(0.0, reference.tail_level(float(state["trace"]), values, 16))
    wanted = reference.rank_by_excess(values, tail, epsilon_sparse)
    assert int(state["rank"]) == reference.clamp_rank(wanted, k_min, k_max, 16)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_rank_follows_the_number_of_spikes_at_every_scale(scale: float) -> None:
    for count in (1, 2, 4):
        grads = [scale * _spiked((24, 16), [3.0] * count, 0.01, seed) for seed in range(20)]
        optimizer, param = run(grads, k_max=8, k_exact=0, epsilon_sparse=0.01, warmup_steps=2, precond_freq=4)
        assert int(optimizer.state[param]["rank"]) == count


def test_the_rank_follows_a_spectrum_that_changes() -> None:
    settings: dict[str, Any] = {
        "k_max": 8,
        "k_exact": 0,
        "epsilon_sparse": 0.05,
        "precond_freq": 4,
        "betas": (0.5, 0.95),
    }
    wide = [_spiked((24, 16), [3.0] * 6, 0.01, seed) for seed in range(20)]
    narrow = [_spiked((24, 16), [3.0], 0.01, seed) for seed in range(40)]
    ranks = []
    for grads in (wide, wide + narrow, wide + narrow + wide):
        optimizer, param = run(grads, **settings)
        ranks.append(int(optimizer.state[param]["rank"]))
    assert ranks == [6, 1, 6]


def test_a_side_of_at_most_k_exact_keeps_all_its_columns() -> None:
    grads = [_spiked((24, 8), [3.0], 0.01, seed) for seed in range(8)]
    for k_exact, expected in ((8, 8), (7, 1)):
        optimizer, param = run(grads, k_max=6, k_exact=k_exact, epsilon_sparse=0.5, precond_freq=4)
        assert int(optimizer.state[param]["rank"]) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_a_spoilt_gradient_leaves_the_subspace_and_its_rank_bit_for_bit_and_is_counted(value: float) -> None:
    params = parameters([(12, 9), (12, 9)])
    optimizer = SCAO(params, precond_freq=4, k_exact=0, k_max=4, epsilon_sparse=0.3)
    train(optimizer, params, range(1, 8))
    tracked = ("vectors", "values", "trace", "drift", "rank")
    before = [{name: optimizer.state[param][name].clone() for name in tracked} for param in params]
    set_gradients(params, 8)
    params[0].grad[2, 3] = value
    optimizer.step()
    kept = [
        {name: torch.equal(optimizer.state[p][name], old[name]) for name in old}
        for p, old in zip(params, before, strict=True)
    ]
    assert all(kept[0].values())
    assert not kept[1]["vectors"]
    assert int(optimizer.state[params[0]]["failures"]) > 0
    assert int(optimizer.state[params[1]]["failures"]) == 0


def test_an_overflow_that_fades_from_the_momentum_lets_training_go_on() -> None:
    params = parameters([(6, 5)])
    optimizer = SCAO(params, betas=(0.5, 0.95), precond_freq=4)
    train(optimizer, params, range(1, 8))
    set_gradients(params, 8)
    params[0].grad[2, 3] = 1e25
    optimizer.step()
    train(optimizer, params, range(9, 120))
    failures = optimizer.diagnostics()["failures"]
    before = params[0].detach().clone()
    train(optimizer, params, range(120, 130))
    assert optimizer.diagnostics()["failures"] == failures
    assert torch.isfinite(params[0]).all()
    assert float((params[0].detach() - before).norm()) > 0


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("tracking", TRACKING, ids=["whole", "tracked"])
@pytest.mark.parametrize("shape", [(8, 5), (8, 8)], ids=str)
def test_a_cut_weight_behaves_as_its_blocks(shape: tuple[int, int], tracking: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "warmup_steps": 2, "precond_freq": 3, **tracking}
    whole = nn.Parameter(random_matrix(*shape))
    pieces = [nn.Parameter(block.clone()) for _, _, block in reference.cut(whole.detach(), 4)]
    assert len(pieces) == 4
    optimizer, other = SCAO([whole], max_precond_dim=4, **settings), SCAO(pieces, **settings)
    for step in range(1, 13):
        whole.grad = random_matrix(*shape, seed=step)
        for piece, (_, _, block) in zip(pieces, reference.cut(whole.grad, 4), strict=True):
            piece.grad = block.clone()
        optimizer.step()
        other.step()
    places = [(down, across) for down, across, _ in reference.cut(whole.detach(), 4)]
    pasted = reference.paste([(*place, piece.detach()) for place, piece in zip(places, pieces, strict=True)], shape)
    assert relative_error(whole.detach(), pasted) < 1e-5


def test_what_happens_in_one_block_does_not_reach_another() -> None:
    settings: dict[str, Any] = {"max_precond_dim": 4, "precond_freq": 3, "k_exact": 0, "k_max": 2}
    grads = noise(8, 8)
    changed = [torch.cat([grad[:4], random_matrix(4, 8, seed=100 + i)]) for i, grad in enumerate(grads)]
    _, first = run(grads, **settings)
    _, second = run(changed, **settings)
    assert_close(second.detach()[:4], first.detach()[:4].double())
    assert relative_error(second.detach()[4:], first.detach()[4:]) > 0.1


# ------------------------------------------------------------------------------------------------ compiled kernels


def test_compiled_kernels_take_the_same_steps_and_compile_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = CompileCounter()
    usual = torch.compile
    monkeypatch.setattr(torch, "compile", lambda kernel, **options: usual(kernel, backend=compiled, **options))
    scao._compiled.cache_clear()
    torch._dynamo.reset()
    shapes = [(12, 8), (8, 12)]
    params, others = parameters(shapes), parameters(shapes)
    settings: dict[str, Any] = {"lr": 0.01, "precond_freq": 3, "k_exact": 0, "k_max": 3}
    optimizer, eager = SCAO(params, compile=True, **settings), SCAO(others, **settings)
    frames = []
    for step in range(1, 9):
        for each in (optimizer, eager):
            each.param_groups[0]["lr"] = 0.01 / step
        train(optimizer, params, [step])
        train(eager, others, [step])
        frames.append(compiled.frame_count)
    scao._compiled.cache_clear()
    assert frames[0] >= 2 * len(shapes)
    assert frames[-1] == frames[0], "a learning rate, a step or a refresh compiled something again"
    for param, other in zip(params, others, strict=True):
        assert relative_error(param.detach(), other.detach()) < 1e-6


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("num_params", [0, 1_000_000, 124_000_000, 1_500_000_000, 70_000_000_000])
@pytest.mark.parametrize("cls", [SCAO, PublishedSCAO])
def test_recommended_settings_are_arguments_of_the_constructor(cls: Any, num_params: int) -> None:
    optimizer = cls(parameters(SHAPES[:1]), **cls.recommended(num_params))
    for name, value in cls.recommended(num_params).items():
        assert optimizer.param_groups[0][name] == value


def test_larger_models_refresh_no_more_often() -> None:
    settings = [SCAO.recommended(10**power) for power in range(6, 12)]
    for smaller, larger in itertools.pairwise(settings):
        assert smaller["precond_freq"] <= larger["precond_freq"]
