"""What every optimizer here promises to the code around it: torch, its schedulers, savers, scalers, and accelerate."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optim.siblings import (
    NARROW,
    SHAPES,
    SIBLINGS,
    Make,
    all_params,
    clone,
    curvature,
    differences,
    gradient,
    parameters,
    saved,
    set_gradients,
    train,
)
from problems import random_matrix
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP

every_optimizer = pytest.mark.parametrize("make", SIBLINGS.values(), ids=SIBLINGS.keys())


def every_third_step(step: int) -> int:
    """A schedule that can be pickled."""
    return 3 if step < 10 else 2


# ------------------------------------------------------------------------------------------------ the step


@every_optimizer
def test_a_closure_runs_once_with_gradients_enabled_and_its_loss_comes_back(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p.square().sum() for p in params), torch.zeros(()))
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(10)]
    assert calls == [True] * 10
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@every_optimizer
def test_without_a_closure_a_step_returns_none(make: Make) -> None:
    params = parameters()
    set_gradients(params, 1)
    assert make(params).step() is None


@every_optimizer
def test_a_step_leaves_the_gradients_as_they_were(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 9):
        set_gradients(params, step)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@every_optimizer
def test_the_loss_of_a_badly_conditioned_regression_falls(make: Make) -> None:
    inputs = random_matrix(64, 6, seed=1) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.25])
    targets = inputs @ random_matrix(6, 5, seed=2)
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = make([weight], lr=0.05, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (inputs @ weight - targets).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * float(targets.square().mean())


# ------------------------------------------------------------------------------------------------ which parameters


@every_optimizer
def test_a_parameter_without_a_gradient_stays_and_its_step_counter_stays_behind(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 13):
        set_gradients(params, step)
        before = params[1].detach().clone()
        if 4 <= step <= 7:
            params[1].grad = None
        optimizer.step()
        if 4 <= step <= 7:
            assert torch.equal(params[1], before)
            assert optimizer.state[params[1]]["step"] == 3
    assert optimizer.state[params[0]]["step"] == 12
    assert optimizer.state[params[1]]["step"] == 8


def assert_moved_alike(optimizer: KroneckerOptimizer, param: Tensor, lonely: Tensor) -> None:
    """Twenty steps of lr = 0.01 in a batch and alone, which round differently where there is a basis.

    Kernels of BLAS and LAPACK round by the alignment of their input, which differs between a row of a batch and a
    tensor of its own. float32 eps over a relative gap of 1e-2 turns a column, and so a direction of size 1, by 1e-5;
    twenty steps move at most 2e-6 apart. In a narrow state such a difference can carry an entry over the edge between
    two codes, a share of 1/127 of the largest, which is spent again at the next step: 20 · 0.01 / 127 at most.
    """
    narrow = optimizer.defaults.get("state_dtype", "float32") != "float32"
    if param.ndim < 2:
        assert torch.equal(param, lonely)
    else:
        torch.testing.assert_close(param, lonely, rtol=0, atol=20 * 0.01 / 127 if narrow else 2e-6)


@every_optimizer
def test_a_parameter_that_misses_gradients_moves_as_if_it_were_alone_and_so_do_the_others(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 21):
        set_gradients(params, step)
        if step in (1, 5, 6, 11):
            params[1].grad = None
        optimizer.step()
    for index, param in enumerate(params):
        lonely = parameters()[index]
        alone = make([lonely])
        for step in range(1, 21):
            if index == 1 and step in (1, 5, 6, 11):
                continue
            lonely.grad = gradient(lonely, index, step)
            alone.step()
        assert_moved_alike(alone, param, lonely)


@every_optimizer
def test_a_parameter_that_never_gets_a_gradient_has_no_state(make: Make) -> None:
    params = parameters()
    frozen = nn.Parameter(torch.ones(6, 5), requires_grad=False)
    optimizer = make([*params, frozen])
    train(optimizer, params, range(1, 6))
    assert not optimizer.state.get(frozen)
    assert torch.equal(frozen, torch.ones(6, 5))
    resumed = make([*clone(params), frozen])
    resumed.load_state_dict(saved(optimizer.state_dict()))
    assert not resumed.state.get(frozen)


@every_optimizer
def test_a_step_before_any_gradient_does_nothing(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    optimizer.step()
    assert not any(optimizer.state.values())
    assert all(torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))


@every_optimizer
def test_a_group_added_later_starts_at_its_own_first_step(make: Make) -> None:
    params, late = parameters(), parameters(SHAPES[:3])
    optimizer = make(params)
    for step in range(1, 16):
        if step == 6:
            optimizer.add_param_group({"params": late, "lr": 0.02})
        set_gradients(params, step)
        if step >= 6:
            set_gradients(late, step)
        optimizer.step()
    alone = parameters(SHAPES[:3])
    other = make(alone, lr=0.02)
    train(other, alone, range(6, 16))
    assert all(torch.equal(p, q) for p, q in zip(late, alone, strict=True))
    undisturbed = parameters()
    train(make(undisturbed), undisturbed, range(1, 16))
    assert all(torch.equal(p, q) for p, q in zip(params, undisturbed, strict=True))


@every_optimizer
def test_groups_keep_their_own_hyperparameters_and_empty_groups_are_allowed(make: Make) -> None:
    first, second = parameters(SHAPES[:1]), parameters(SHAPES[:1])
    optimizer = make([{"params": first, "lr": 0.0}, {"params": []}, {"params": second, "lr": 0.1}])
    train(optimizer, [*first, *second], range(1, 6))
    assert torch.equal(first[0], parameters(SHAPES[:1])[0])
    assert not torch.equal(second[0], parameters(SHAPES[:1])[0])
    assert len(optimizer.state_dict()["param_groups"]) == 3


@every_optimizer
def test_no_parameters_at_all_and_a_parameter_twice_are_refused_as_torch_refuses_them(make: Make) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    params = parameters()
    optimizer = make(params)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[:1]})
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group(params)


@every_optimizer
def test_named_parameters_keep_their_names_in_the_diagnostics(make: Make) -> None:
    named = [("deep.weight", parameters()[0]), ("deep.bias", parameters()[4])]
    optimizer = make(named)
    train(optimizer, [p for _, p in named], range(1, 10))
    assert [layer.name for layer in optimizer.layer_diagnostics()] == ["deep.weight"]


# ------------------------------------------------------------------------------------------------ shapes and memory

SHAPES_OF_ALL_KINDS = [
    (),
    (1,),
    (7,),
    (1, 6),
    (6, 1),
    (1, 1),
    (2, 2),
    (3, 8),
    (8, 3),
    (2, 3, 4),
    (4, 3, 2, 2),
    (2, 1, 3),
]


@pytest.mark.parametrize("shape", SHAPES_OF_ALL_KINDS, ids=str)
@every_optimizer
def test_any_shape_trains_and_resumes(make: Make, shape: tuple[int, ...]) -> None:
    params = parameters([shape])
    optimizer = make(params)
    start = params[0].detach().clone()
    train(optimizer, params, range(1, 11))
    assert params[0].shape == shape
    assert torch.isfinite(params[0]).all()
    assert not torch.equal(params[0], start)
    resumed_params = clone(params)
    resumed = make(resumed_params)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    train(optimizer, params, range(11, 15))
    train(resumed, resumed_params, range(11, 15))
    assert differences(optimizer, resumed) == []


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 3)], ids=str)
@every_optimizer
def test_a_parameter_without_elements_is_harmless(make: Make, shape: tuple[int, ...]) -> None:
    params = [nn.Parameter(torch.zeros(shape)), parameters()[0]]
    alone = parameters()[:1]
    optimizer, other = make(params), make(alone)
    for step in range(1, 9):
        params[0].grad = torch.zeros(shape)
        params[1].grad = gradient(params[1], 0, step)
        alone[0].grad = gradient(alone[0], 0, step)
        optimizer.step()
        other.step()
    assert torch.equal(params[1], alone[0])


@every_optimizer
def test_non_contiguous_parameters_and_gradients_move_as_their_contiguous_twins(make: Make) -> None:
    plain = parameters([(6, 5), (4, 3, 2, 2)])
    strided = [
        nn.Parameter(plain[0].detach().t().contiguous().t()),
        nn.Parameter(plain[1].detach().contiguous(memory_format=torch.channels_last)),
    ]
    assert not any(p.is_contiguous() for p in strided)
    first, second = make(plain), make(strided)
    for step in range(1, 13):
        set_gradients(plain, step)
        strided[0].grad = plain[0].grad.t().contiguous().t()
        strided[1].grad = plain[1].grad.contiguous(memory_format=torch.channels_last)
        first.step()
        second.step()
    for p, q in zip(plain, strided, strict=True):
        assert q.stride() != p.stride()
        # A product over the same numbers in another memory order rounds differently: a few units in the last place
        # per step, twelve steps of length lr.
        torch.testing.assert_close(p, q.detach(), rtol=0, atol=12 * 0.01 * 1e-4)


@every_optimizer
def test_an_expanded_gradient_is_read_and_not_written(make: Make) -> None:
    params = parameters([(6, 5), (6, 5)])
    optimizer = make(params)
    for _ in range(6):
        for param in params:
            param.grad = torch.ones(1).expand(6, 5)
        optimizer.step()
    assert torch.isfinite(params[0]).all()
    assert float(params[0].grad[0, 0]) == 1.0


@every_optimizer
def test_a_batch_of_equal_shapes_equals_one_optimizer_each(make: Make) -> None:
    shapes = [(6, 5)] * 5 + [(4, 3, 2, 2)] * 2 + [(5,)] * 3
    params = parameters(shapes)
    train(make(params), params, range(1, 21))
    for index, param in enumerate(params):
        lonely = parameters(shapes)[index]
        alone = make([lonely])
        for step in range(1, 21):
            lonely.grad = gradient(lonely, index, step)
            alone.step()
        assert_moved_alike(alone, param, lonely)


# ------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_optimizer
def test_parameters_keep_their_dtype_and_the_state_is_float32_unless_asked_otherwise(
    make: Make, dtype: torch.dtype
) -> None:
    params = parameters(dtype=dtype)
    optimizer = make(params)
    train(optimizer, params, range(1, 11))
    assert {p.dtype for p in params} == {dtype}
    narrow = NARROW if optimizer.defaults.get("state_dtype", "float32") != "float32" else ()
    floating = {
        name: value.dtype
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in narrow
    }
    assert set(floating.values()) == {torch.float32}


WIDTHS = {
    "scao": {"exp_avg": torch.float32, "vectors": torch.float32, "exp_avg_sq": torch.float32},
    "scao-bfloat16": {"exp_avg": torch.bfloat16, "vectors": torch.bfloat16, "exp_avg_sq": torch.bfloat16},
    "scao-int8": {"exp_avg": torch.int8, "vectors": torch.bfloat16, "exp_avg_sq": torch.bfloat16},
}


@pytest.mark.parametrize("name", WIDTHS)
def test_a_narrow_state_is_as_narrow_as_was_asked_for_and_that_of_vectors_is_not(name: str) -> None:
    whitened, plain, vector = parameters([(6, 5)]), parameters([(6, 5)]), parameters([(5,)])
    optimizer = SIBLINGS[name]([{"params": [*whitened, *vector]}, {"params": plain, "sides": "none"}])
    train(optimizer, [*whitened, *vector, *plain], [1])
    held = optimizer.state[whitened[0]], optimizer.state[plain[0]], optimizer.state[vector[0]]
    for state, names in zip(held[:2], (("exp_avg", "vectors"), ("exp_avg", "exp_avg_sq")), strict=True):
        assert {key: state[key].dtype for key in names} == {key: WIDTHS[name][key] for key in names}
        assert ("exp_avg_scale" in state) == (name == "scao-int8")
    assert {key: value.dtype for key, value in held[2].items() if key != "step"} == {
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_optimizer
def test_a_half_precision_parameter_takes_the_float32_step_rounded_once(make: Make, dtype: torch.dtype) -> None:
    half = parameters(dtype=dtype)
    full = [nn.Parameter(p.detach().float()) for p in half]
    first, second = make(half), make(full)
    for index, (p, q) in enumerate(zip(half, full, strict=True)):
        p.grad = gradient(p, index, 1)
        q.grad = p.grad.float()
    first.step()
    second.step()
    for p, q in zip(half, full, strict=True):
        spacing = 2 ** torch.floor(torch.log2(q.detach().abs())) * torch.finfo(dtype).eps
        assert ((p.detach().float() - q.detach()).abs() <= 0.5001 * spacing).all()


@every_optimizer
def test_a_double_precision_parameter_is_not_rounded_to_single(make: Make) -> None:
    fine = 1.0 + 2.0**-40
    param = nn.Parameter(torch.full((6, 5), fine, dtype=torch.float64))
    optimizer = make([param], lr=0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert (param.detach() == fine).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_optimizer
def test_twenty_steps_and_twenty_resumed_are_forty_bit_for_bit(make: Make, dtype: torch.dtype) -> None:
    straight_params = parameters(dtype=dtype)
    straight = make(straight_params)
    train(straight, straight_params, range(1, 41))
    params = parameters(dtype=dtype)
    first = make(params)
    train(first, params, range(1, 21))
    checkpoint = saved({"model": [p.detach() for p in params], "optimizer": first.state_dict()})
    resumed_params = [nn.Parameter(tensor) for tensor in checkpoint["model"]]
    resumed = make(resumed_params)
    resumed.load_state_dict(checkpoint["optimizer"])
    assert differences(first, resumed) == []
    train(resumed, resumed_params, range(21, 41))
    assert differences(straight, resumed) == []


@every_optimizer
def test_loading_neither_changes_nor_shares_what_was_saved(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 6))
    state_dict = optimizer.state_dict()
    frozen = copy.deepcopy(state_dict)
    twin_params = clone(params)
    twin = make(twin_params)
    twin.load_state_dict(state_dict)
    train(twin, twin_params, range(6, 12))
    assert all(
        torch.equal(value, state_dict["state"][index][name])
        for index, state in frozen["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    )


@every_optimizer
def test_a_running_optimizer_can_be_sent_back_to_an_earlier_state(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 8))
    snapshot, weights = copy.deepcopy(optimizer.state_dict()), clone(params)
    first = train(optimizer, params, range(8, 16))
    optimizer.load_state_dict(snapshot)
    for param, weight in zip(params, weights, strict=True):
        param.data.copy_(weight)
    second = train(optimizer, params, range(8, 16))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------ what is remembered


@every_optimizer
def test_the_state_is_tensors_and_integers_with_keys_shapes_and_dtypes_fixed_by_the_first_step(make: Make) -> None:
    params = parameters()
    optimizer = make(params)

    def outline() -> list[dict[str, Any]]:
        return [
            {k: (v.shape, v.dtype) if isinstance(v, Tensor) else type(v) for k, v in optimizer.state[p].items()}
            for p in params
        ]

    train(optimizer, params, range(1, 2))
    first = outline()
    assert all(value is int or isinstance(value, tuple) for state in first for value in state.values())
    assert all(state["step"] is int for state in first)
    for step in range(2, 22):
        train(optimizer, params, range(step, step + 1))
        assert outline() == first


@every_optimizer
def test_what_a_state_saves_is_its_own_size_and_not_that_of_its_neighbours(make: Make) -> None:
    params = parameters([(6, 5)] * 8)
    optimizer = make(params)
    train(optimizer, params, range(1, 3))
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    assert sum(storages.values()) == optimizer.diagnostics()["state_bytes"]


@every_optimizer
def test_a_deep_copy_continues_identically_and_apart(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 8))
    twin = copy.deepcopy(optimizer)
    twin_params = all_params(twin)
    assert not any(p is q for p, q in zip(params, twin_params, strict=True))
    assert differences(optimizer, twin) == []
    train(twin, twin_params, range(8, 16))
    assert differences(optimizer, twin) != []
    train(optimizer, params, range(8, 16))
    assert differences(optimizer, twin) == []


@every_optimizer
def test_a_pickled_optimizer_continues_identically(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 8))
    twin = pickle.loads(pickle.dumps(optimizer))
    train(optimizer, params, range(8, 16))
    train(twin, all_params(twin), range(8, 16))
    assert differences(optimizer, twin) == []


@every_optimizer
def test_pickling_writes_every_state_once(make: Make) -> None:
    params = parameters([(32, 24)] * 12)
    optimizer = make(params)
    train(optimizer, params, [1])
    held = optimizer.diagnostics()["state_bytes"] + sum(p.numel() * p.element_size() for p in params)
    # Beside the parameters and the state: about half a kilobyte a tensor.
    assert len(pickle.dumps(optimizer)) < held + 600 * sum(len(state) + 2 for state in optimizer.state.values())


def test_a_schedule_of_refreshes_survives_copies_and_checkpoints() -> None:
    params = parameters()
    optimizer = SOAP(params, precondition_frequency=every_third_step)
    train(optimizer, params, range(1, 8))
    checkpoint = saved(optimizer.state_dict())
    assert checkpoint["param_groups"][0]["precondition_frequency"] is None
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    resumed = SOAP(clone(params), precondition_frequency=every_third_step)
    resumed.load_state_dict(checkpoint)
    assert resumed.param_groups[0]["precondition_frequency"] is every_third_step
    train(optimizer, params, range(8, 16))
    for twin in (*twins, resumed):
        train(twin, all_params(twin), range(8, 16))
        assert differences(optimizer, twin) == []


@every_optimizer
def test_a_copy_does_not_call_the_callbacks_of_the_original(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    seen: list[int] = []
    optimizer.add_callback(lambda _, step: seen.append(step))
    twin = copy.deepcopy(optimizer)
    train(twin, all_params(twin), range(1, 4))
    assert seen == []


@every_optimizer
def test_the_state_of_another_optimizer_is_refused_with_a_sentence(make: Make) -> None:
    params = parameters()
    adamw = torch.optim.AdamW(params)
    train(adamw, params, range(1, 4))
    with pytest.raises(ValueError, match="was not saved by"):
        make(clone(params)).load_state_dict(saved(adamw.state_dict()))


@every_optimizer
def test_the_state_of_another_optimizer_is_refused_even_for_vectors_alone(make: Make) -> None:
    params = parameters([(5,)])
    adamw = torch.optim.AdamW(params)
    train(adamw, params, range(1, 4))
    with pytest.raises(ValueError, match="was not saved by"):
        make(clone(params)).load_state_dict(saved(adamw.state_dict()))


@pytest.mark.parametrize(
    ("writer", "reader"),
    [(a, b) for a, b in itertools.permutations(SIBLINGS, 2) if a.split("-")[0] != b.split("-")[0]],
)
def test_siblings_refuse_each_others_states(writer: str, reader: str) -> None:
    params = parameters()
    first = SIBLINGS[writer](params)
    train(first, params, range(1, 4))
    second = SIBLINGS[reader](clone(params))
    with pytest.raises(ValueError, match=f"was not saved by {type(second).__name__}"):
        second.load_state_dict(saved(first.state_dict()))


@every_optimizer
def test_a_state_with_another_number_of_groups_is_refused_by_their_number(make: Make) -> None:
    params = parameters([(6, 5), (5,)])
    optimizer = make(params)
    train(optimizer, params, range(1, 4))
    apart = clone(params)
    other = make([{"params": [param]} for param in apart])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(saved(optimizer.state_dict()))


@every_optimizer
def test_a_state_of_other_shapes_is_refused_with_a_sentence(make: Make) -> None:
    params = parameters([(6, 5)])
    optimizer = make(params)
    train(optimizer, params, range(1, 4))
    with pytest.raises(ValueError, match=r"shape \(7, 5\)"):
        make(parameters([(7, 5)])).load_state_dict(saved(optimizer.state_dict()))


@every_optimizer
def test_a_refused_state_leaves_the_optimizer_as_it_was(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 6))
    twin = copy.deepcopy(optimizer)
    adamw = torch.optim.AdamW(clone(params))
    train(adamw, all_params(adamw), range(1, 4))
    with pytest.raises(ValueError, match="was not saved by"):
        optimizer.load_state_dict(adamw.state_dict())
    train(optimizer, params, range(6, 12))
    train(twin, all_params(twin), range(6, 12))
    assert differences(optimizer, twin) == []


# ------------------------------------------------------------------------------------------------ degenerate gradients


@every_optimizer
def test_a_zero_gradient_leaves_the_parameters_but_for_weight_decay(make: Make) -> None:
    params = parameters()
    optimizer = make(params, weight_decay=0.5)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, start in zip(params, parameters(), strict=True):
        torch.testing.assert_close(param.detach(), start.detach() * (1 - 0.01 * 0.5), rtol=1e-6, atol=0)


@every_optimizer
def test_after_a_first_step_of_zeros_training_is_finite_and_preconditioned(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    train(optimizer, params, range(2, 21))
    assert all(torch.isfinite(p).all() for p in params)
    diagnostics = optimizer.diagnostics()
    assert diagnostics["phase"] == 2
    assert diagnostics["rank_mean"] >= 1
    assert diagnostics["failures"] == 0


@every_optimizer
def test_zero_gradients_throughout_keep_every_number_finite(make: Make) -> None:
    params = parameters()
    optimizer = make(params, weight_decay=0.0)
    for _ in range(20):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert all(torch.isfinite(t).all() for t in tensors)


@pytest.mark.parametrize("spoilt_step", [1, 5, 6], ids=lambda step: f"step{step}")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25], ids=str)
@every_optimizer
def test_a_spoilt_gradient_leaves_the_curvature_finite(make: Make, value: float, spoilt_step: int) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 13):
        set_gradients(params, step)
        if step == spoilt_step:
            for param in params:
                param.grad.view(-1)[:1] = value
        optimizer.step()
    for param in params:
        for name, tensor in curvature(optimizer.state[param]).items():
            assert torch.isfinite(tensor).all(), name


@every_optimizer
def test_a_spoilt_gradient_spoils_its_own_parameter_only(make: Make) -> None:
    params, clean = parameters([(6, 5)] * 3), parameters([(6, 5)] * 3)
    optimizer, twin = make(params), make(clean)
    for step in range(1, 13):
        set_gradients(params, step)
        if step == 5:
            params[1].grad.fill_(float("nan"))
        optimizer.step()
    train(twin, clean, range(1, 13))
    assert params[1].isnan().any()
    assert torch.equal(params[0], clean[0])
    assert torch.equal(params[2], clean[2])


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12], ids=str)
@every_optimizer
def test_tiny_and_huge_gradients_train_without_a_failure(make: Make, scale: float) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 16):
        set_gradients(params, step)
        for param in params:
            param.grad *= scale
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert optimizer.diagnostics()["failures"] == 0


# ------------------------------------------------------------------------------------------------ what is refused

FOREIGN = ["maximize", "foreach", "fused", "capturable", "differentiable", "amsgrad"]


@pytest.mark.parametrize("option", FOREIGN)
@every_optimizer
def test_options_of_other_optimizers_are_refused_by_name(make: Make, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        make(parameters(), **{option: True})
    with pytest.raises(ValueError, match=option):
        make([{"params": parameters(), option: True}])
    optimizer = make(parameters())
    with pytest.raises(ValueError, match=option):
        optimizer.add_param_group({"params": parameters(), option: True})
    assert len(optimizer.param_groups) == 1


@every_optimizer
def test_a_sparse_gradient_is_refused_with_a_sentence_before_anything_moves(make: Make) -> None:
    embedding = nn.Embedding(6, 5, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = make(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="only dense gradients"):
        optimizer.step()
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize(
    ("param", "word"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 3, dtype=torch.int64), "int64"),
        (torch.eye(3).to_sparse(), "sparse"),
    ],
    ids=["complex", "integer", "sparse"],
)
@every_optimizer
def test_parameters_that_are_not_dense_and_real_are_refused_at_once(make: Make, param: Tensor, word: str) -> None:
    with pytest.raises(TypeError, match=word):
        make([nn.Parameter(param, requires_grad=False)])
    optimizer = make(parameters())
    with pytest.raises(TypeError, match=word):
        optimizer.add_param_group({"params": [nn.Parameter(param, requires_grad=False)]})
    assert len(optimizer.param_groups) == 1


NONSENSE: dict[str, list[Any]] = {
    "lr": [-1.0, float("nan"), float("inf"), "fast", True, torch.tensor(0.1)],
    "betas": [(1.0, 0.9), (0.9, -0.1), (0.9,), 0.9, (0.9, "0.99"), (float("nan"), 0.9)],
    "eps": [-1e-8, "small", float("nan")],
    "weight_decay": [-0.1, None, float("inf")],
    "warmup_steps": [-1, 1.5, "10", True],
    "blend_steps": [-1, 0.5],
    "min_precond_updates": [-1, 2.0],
    "precond_freq": [0, 10.0],
    "stats_freq": [0, 1.0],
    "rho": [1.0, -0.1, "0.9", float("nan")],
    "k_min": [0, 2.5],
    "k_max": [0, 8.0],
    "k_exact": [-1, 3.0],
    "epsilon_sparse": [1.0, -0.01],
    "max_precond_dim": [0, 64.0],
    "block_rows": [0, 2.0, True],
    "damping": [0.0, 1e-7, -1.0, "small", float("nan")],
    "state_dtype": ["float16", None, torch.bfloat16],
    "sides": ["top", 3],
    "tau": [-1.0, "5"],
    "total_steps": [0, 2.5, "100"],
    "compile": ["yes", 1],
    "use_int8_ema": ["yes", 1],
    "shampoo_beta": [1.0, "0.9", float("nan")],
    "use_decoupled_weight_decay": ["no", None],
    "use_nesterov": ["yes", 1],
    "precondition_frequency": [0, 2.5, "10"],
    "precondition_warmup_steps": [-1, "3"],
    "adam_warmup_steps": ["3", 2.5],
    "precondition_1d": ["yes"],
    "trace_normalization": ["yes"],
    "normalize_preconditioned_grads": ["yes"],
    "correct_bias": ["no", None],
    "fp32_matmul_prec": ["low", 32],
    "use_eigh": ["no"],
    "qr_fp32_matmul_prec": ["low", None],
    "use_adaptive_criteria": ["no"],
    "adaptive_update_tolerance": [-1.0, "tight"],
    "power_iter_steps": [0, 1.5],
    "max_update_rms": [-1.0, "1"],
}


def hyperparameters(make: Make) -> list[str]:
    names = list(inspect.signature(type(make(parameters()))).parameters)
    assert names[0] == "params"
    return names[1:]


@every_optimizer
def test_every_hyperparameter_refuses_nonsense_by_its_name(make: Make) -> None:
    for name in hyperparameters(make):
        for value in NONSENSE[name]:
            with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
                make(parameters(), **{name: value})
            with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
                make([{"params": parameters(), name: value}])


@pytest.mark.parametrize("name", ["scao", "published"])
def test_a_least_rank_above_the_largest_is_refused_with_both_numbers(name: str) -> None:
    with pytest.raises(ValueError, match="k_min=16, k_max=8"):
        SIBLINGS[name](parameters(), k_min=16, k_max=8)


@every_optimizer
def test_an_unknown_kind_or_side_of_a_group_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        make([{"params": parameters(), "kind": "tensor"}])
    with pytest.raises(ValueError, match="sides must be one of"):
        make([{"params": parameters(), "sides": "top"}])


@every_optimizer
def test_a_matrix_of_a_group_without_sides_takes_adamw(make: Make) -> None:
    params, others = parameters([(6, 5)]), parameters([(6, 5)])
    optimizer = make([{"params": params, "sides": "none"}], weight_decay=0.1, betas=(0.9, 0.95))
    adamw = torch.optim.AdamW(others, lr=optimizer.param_groups[0]["lr"], weight_decay=0.1, betas=(0.9, 0.95))
    train(optimizer, params, range(1, 21))
    train(adamw, others, range(1, 21))
    # A moment of eight bits is off by up to 1/127 of the largest of its row, and one of bfloat16 by 2^-7 of itself, at
    # every step anew: the roundings of 20 steps of lr = 0.01 do not add up.
    narrow = optimizer.defaults.get("state_dtype", "float32") != "float32"
    torch.testing.assert_close(params[0], others[0], rtol=1e-6, atol=20 * 0.01 * 2**-5 if narrow else 1e-6)
    assert optimizer.diagnostics()["preconditioned_fraction"] == 0


@pytest.mark.parametrize(
    ("sides", "expected"), [("auto", {0, 1}), ("both", {0, 1}), ("left", {0}), ("right", {1}), ("none", set())]
)
def test_the_sides_of_a_group_say_which_get_a_basis_in_soap(sides: str, expected: set[int]) -> None:
    params = parameters([(6, 5)])
    optimizer = SIBLINGS["soap"]([{"params": params, "sides": sides}])
    train(optimizer, params, range(1, 12))
    bases = {int(name.removeprefix("basis_")) for name in optimizer.state[params[0]] if name.startswith("basis_")}
    assert bases == expected
    assert torch.isfinite(params[0]).all()


@pytest.mark.parametrize("name", ["scao", "scao-bfloat16", "scao-int8"])
@pytest.mark.parametrize(("sides", "expected"), [("auto", 5), ("both", 5), ("left", 6), ("right", 5), ("none", None)])
def test_the_sides_of_a_group_say_which_side_scao_whitens(name: str, sides: str, expected: int | None) -> None:
    params = parameters([(6, 5)])
    optimizer = SIBLINGS[name]([{"params": params, "sides": sides}])
    train(optimizer, params, range(1, 12))
    state = optimizer.state[params[0]]
    assert (len(state["vectors"]) if "vectors" in state else None) == expected
    assert torch.isfinite(params[0]).all()


@every_optimizer
def test_a_matrix_that_arrives_flattened_is_refused_with_what_works(make: Make) -> None:
    flat = parameters([(30,)])
    optimizer = make([{"params": flat, "kind": "matrix"}])
    set_gradients(flat, 1)
    with pytest.raises(NotImplementedError, match="DistributedDataParallel"):
        optimizer.step()


# ------------------------------------------------------------------------------------------------ schedules, scalers

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda-from-zero": lambda o: lr_scheduler.LambdaLR(o, lambda t: t / 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=6),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3, cycle_momentum=False),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@every_optimizer
def test_a_scheduler_moves_the_group_and_the_group_moves_the_step(make: Make, schedule: Callable[..., Any]) -> None:
    params, others = parameters(), parameters()
    optimizer, manual = make(params), make(others)
    scheduler = schedule(optimizer)
    rates = []
    for step in range(1, 13):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        manual.param_groups[0].update(lr=group["lr"], betas=group["betas"])
        train(manual, others, range(step, step + 1))
        train(optimizer, params, range(step, step + 1))
        scheduler.step()
    assert len(set(rates)) > 2
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@every_optimizer
def test_a_plateau_scheduler_lowers_the_rate(make: Make) -> None:
    params = parameters()
    optimizer = make(params, lr=0.01)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    for step in range(1, 5):
        train(optimizer, params, range(step, step + 1))
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


@every_optimizer
def test_at_a_learning_rate_of_zero_the_parameters_stay_and_the_curvature_is_learnt(make: Make) -> None:
    params, moving = parameters(), parameters()
    still, mover = make(params, lr=0.0), make(moving)
    train(still, params, range(1, 13))
    train(mover, moving, range(1, 13))
    assert all(torch.equal(p, q) for p, q in zip(params, parameters(), strict=True))
    for p, q in zip(params, moving, strict=True):
        for name, value in curvature(still.state[p]).items():
            assert torch.equal(value, mover.state[q][name]), name


@every_optimizer
def test_a_scaled_loss_trains_as_the_plain_one_and_an_overflow_skips_the_step(make: Make) -> None:
    scaled, plain = parameters(), parameters()
    optimizer, other = make(scaled), make(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(1, 13):
        set_gradients(plain, step)
        for param, twin in zip(scaled, plain, strict=True):
            param.grad = scaler.scale(twin.grad.clone())
        if step == 5:
            scaled[2].grad[0, 0] = float("inf")
            before = copy.deepcopy(optimizer)
            scaler.step(optimizer)
            scaler.update()
            assert differences(optimizer, before) == []
            assert scaler.get_scale() == 2.0**9
            continue
        scaler.step(optimizer)
        scaler.update()
        other.step()
    # A power of two is unscaled without rounding.
    assert differences(optimizer, other) == []


# ------------------------------------------------------------------------------------------------ savers around it


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 6)
        self.convolution = nn.Conv2d(3, 4, 2)


def _net() -> Net:
    torch.manual_seed(3)
    return Net()


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@every_optimizer
def test_a_distributed_checkpoint_restores_the_run_bit_for_bit(make: Make, flatten: bool) -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = _net()
    optimizer = make(model.parameters())
    train(optimizer, list(model.parameters()), range(1, 11))
    state_dict = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed_model = _net()
    resumed_model.load_state_dict(model.state_dict())
    resumed = make(resumed_model.parameters())
    set_optimizer_state_dict(resumed_model, resumed, state_dict, options=options)
    assert differences(optimizer, resumed) == []
    train(optimizer, list(model.parameters()), range(11, 21))
    train(resumed, list(resumed_model.parameters()), range(11, 21))
    assert differences(optimizer, resumed) == []


@every_optimizer
def test_asking_a_fresh_optimizer_for_a_distributed_checkpoint_moves_no_parameter(make: Make) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = _net()
    get_optimizer_state_dict(model, make(model.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), _net().parameters(), strict=True))


@pytest.fixture
def accelerator() -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@every_optimizer
def test_accelerate_steps_saves_and_restores_it_bit_for_bit(make: Make, accelerator: Any) -> None:
    params, plain_params = parameters(), parameters()
    plain = make(plain_params)
    wrapped = accelerator.prepare(make(params))
    train(wrapped, params, range(1, 11))
    train(plain, plain_params, range(1, 11))
    assert differences(wrapped.optimizer, plain) == []
    resumed_params = clone(params)
    resumed = accelerator.prepare(make(resumed_params))
    resumed.load_state_dict(saved(wrapped.state_dict()))
    # A filled optimizer may be prepared as well: accelerate then passes its state through load_state_dict.
    again = accelerator.prepare(resumed.optimizer)
    train(again, resumed_params, range(11, 21))
    train(plain, plain_params, range(11, 21))
    assert differences(again.optimizer, plain) == []


# ------------------------------------------------------------------------------------------------ no waiting


class _NoReadback(TorchDispatchMode):
    """Raises at every operation that would make a host wait for a device."""

    SYNCHRONISING = frozenset(
        {
            "_local_scalar_dense",
            "item",
            "nonzero",
            "nonzero_static",
            "is_nonzero",
            "masked_select",
            "equal",
            "unique_dim",
            "_unique2",
            "bincount",
            "repeat_interleave",
        }
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.SYNCHRONISING, f"step() reads {name} back to the host"
        if name in ("index", "index_put_", "index_put"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, "step() indexes with a mask, whose size the host has to know"
        return func(*args, **(kwargs or {}))


HOST_READS = ["item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "cpu", "__array__", "nonzero"]


@every_optimizer
def test_a_step_reads_nothing_back_to_the_host(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = make(params)

    def refuse(name: str) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"step() calls Tensor.{name}")

        return method

    for step in range(1, 22):
        set_gradients(params, step)
        if step == 9:
            params[2].grad = None
        with monkeypatch.context() as patch, _NoReadback():
            for name in HOST_READS:
                patch.setattr(Tensor, name, refuse(name))
            optimizer.step()
    assert optimizer.diagnostics()["phase"] == 2


def test_the_watch_for_readbacks_sees_them() -> None:
    tensor = torch.ones(3)
    reads: list[Callable[[], Any]] = [
        lambda: float(tensor.sum()),
        lambda: tensor[tensor > 0],
        lambda: tensor.nonzero(),
        lambda: bool(tensor[0]),
    ]
    for read in reads:
        with pytest.raises(AssertionError, match=r"step\(\)"), _NoReadback():
            read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["scao", "scao-bfloat16", "scao-int8"])
def test_on_a_gpu_scao_never_synchronises(name: str) -> None:
    params = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    optimizer: KroneckerOptimizer = SIBLINGS[name](params)
    assert isinstance(optimizer, SCAO)
    for step in range(1, 22):
        for index, param in enumerate(params):
            param.grad = gradient(param.detach().cpu(), index, step).cuda()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
