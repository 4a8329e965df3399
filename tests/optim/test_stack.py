"""Stacks: equal-shaped blocks as one batch, whose state lies in one storage and is seen through each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from optim.siblings import SIBLINGS, set_gradients
from problems import random_matrix
from torch import Tensor, nn

from scao_hf.numerics.blocks import block_shape
from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.stack import Layout, Stack, State, Storage

PLAIN = Layout((6, 5), (2, 2), block_shape((6, 5), 64))
CUT = Layout((4, 3), (2, 2), block_shape((8, 5), 4))
WHOLE = Layout((2, 3, 4), (0, 0, 0))


def _parameters(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    params = [nn.Parameter(random_matrix(*shape, seed=i, dtype=dtype)) for i in range(count)]
    for i, param in enumerate(params):
        param.grad = random_matrix(*shape, seed=100 + i, dtype=dtype)
    return params


def _create(layout: Layout) -> Any:
    def create(rows: int) -> Storage:
        return {"moment": torch.zeros(rows, *layout.row_shape), "count": torch.zeros(rows, dtype=torch.int64)}

    return create


def _gather(params: list[nn.Parameter], layout: Layout) -> tuple[Stack, list[State]]:
    states: list[State] = [{} for _ in params]
    return Stack.gather(params, layout, states, _create(layout)), states


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(PLAIN, (6, 5)), (CUT, (8, 5)), (WHOLE, (2, 3, 4)), (Layout((), ()), ()), (Layout((5,), (0,)), (5,))],
    ids=["matrix", "blocks", "three dimensions", "scalar", "vector"],
)
def test_rows_of_a_tensor_put_together_are_the_tensor(layout: Layout, shape: tuple[int, ...]) -> None:
    tensor = random_matrix(*shape)
    rows = layout.to_rows(tensor)
    assert rows.shape == (layout.num_rows, *layout.row_shape)
    assert torch.equal(layout.from_rows(rows, shape), tensor)


def test_blocks_lie_row_by_row_and_are_padded_with_zeros() -> None:
    tensor = random_matrix(8, 5)
    expected = [block for _, _, block in reference.cut(tensor, 4)]
    assert torch.equal(CUT.to_rows(tensor), torch.stack(expected))
    assert CUT.num_rows == 4


def test_a_layout_without_ranks_is_not_preconditioned() -> None:
    assert not WHOLE.preconditioned
    assert not Layout((), ()).preconditioned
    assert Layout((6, 5), (0, 2), block_shape((6, 5), 64)).preconditioned


# ------------------------------------------------------------------------------------------------ state in one storage


@pytest.mark.parametrize("layout", [PLAIN, CUT], ids=["matrix", "blocks"])
def test_what_is_written_to_the_storage_is_read_in_the_states(layout: Layout) -> None:
    shape = (layout.cut.rows, layout.cut.columns) if layout.cut else layout.row_shape
    stack, states = _gather(_parameters(3, shape), layout)
    stack.storage["moment"].copy_(torch.arange(3 * layout.num_rows).reshape(-1, 1, 1))
    stack.storage["count"][-1] = 7
    for index, state in enumerate(states):
        first = index * layout.num_rows
        if layout.num_rows > 1:
            assert state["moment"].shape == (layout.num_rows, *layout.row_shape)
            assert state["moment"][:, 0, 0].tolist() == list(range(first, first + layout.num_rows))
            assert state["count"].shape == (layout.num_rows,)
        else:
            assert state["moment"].shape == layout.row_shape
            assert state["moment"][0, 0] == first
            assert state["count"].shape == ()
    assert states[-1]["count"].flatten()[-1] == 7


def test_a_new_state_begins_at_step_zero_and_every_step_counts_for_all() -> None:
    stack, states = _gather(_parameters(3, (6, 5)), PLAIN)
    assert [state["step"] for state in states] == [0, 0, 0]
    assert [stack.advance(), stack.advance()] == [1, 2]
    assert [state["step"] for state in states] == [2, 2, 2]


@pytest.mark.parametrize("layout", [PLAIN, CUT], ids=["matrix", "blocks"])
def test_a_stack_gathered_from_states_keeps_their_values_and_lets_go_of_their_tensors(layout: Layout) -> None:
    shape = (layout.cut.rows, layout.cut.columns) if layout.cut else layout.row_shape
    params = _parameters(3, shape)
    first, states = _gather(params, layout)
    first.storage["moment"].copy_(random_matrix(*first.storage["moment"].shape))
    before = [state["moment"].clone() for state in states]
    old = states[0]["moment"]
    kept = [states[2], states[0]]
    second = Stack.gather([params[2], params[0]], layout, kept, _create(layout))
    assert torch.equal(states[2]["moment"], before[2])
    assert torch.equal(states[0]["moment"], before[0])
    second.storage["moment"].zero_()
    assert torch.equal(old, before[0])
    assert not states[2]["moment"].any()


def test_a_stack_owns_its_states_until_one_is_replaced() -> None:
    stack, states = _gather(_parameters(2, (6, 5)), PLAIN)
    assert stack.owns(0, states[0])
    assert not stack.owns(0, states[1])
    assert not stack.owns(0, dict(states[0]))
    assert not stack.owns(0, dict(states[0]) | {"moment": states[0]["moment"].clone()})
    states[1]["moment"] = states[1]["moment"].clone()
    assert not stack.owns(1, states[1])
    assert stack.owns(0, states[0])
    del states[0]["count"]
    assert not stack.owns(0, states[0])


# ------------------------------------------------------------------------------------------------ gradients and moves


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_and_parameters_come_in_order_and_in_float32(dtype: torch.dtype) -> None:
    params = _parameters(3, (8, 5), dtype)
    stack, _ = _gather(params, CUT)
    for rows, tensors in ((stack.gradients(), [p.grad for p in params]), (stack.parameters(), params)):
        assert rows.dtype == torch.float32
        expected = [block for tensor in tensors for _, _, block in reference.cut(tensor.detach().float(), 4)]
        assert torch.equal(rows, torch.stack(expected))


def test_a_sparse_gradient_is_refused_with_its_layout_and_shape() -> None:
    params = _parameters(1, (6, 5))
    stack, _ = _gather(params, PLAIN)
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(TypeError, match=r"sparse_coo.*\(6, 5\).*sparse=False"):
        stack.gradients()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_applying_a_direction_decays_and_moves_each_parameter(dtype: torch.dtype) -> None:
    params = _parameters(3, (8, 5), dtype)
    before = [p.detach().clone().double() for p in params]
    stack, _ = _gather(params, CUT)
    direction = random_matrix(12, 4, 3, seed=9)
    with torch.no_grad():
        stack.apply(direction, lr=0.1, weight_decay=0.5)
    for index, param in enumerate(params):
        blocks = direction[4 * index : 4 * index + 4]
        places = [(down, across) for down, across, _ in reference.cut(before[index], 4)]
        moved = reference.paste([(*place, block) for place, block in zip(places, blocks, strict=True)], (8, 5))
        expected = (1 - 0.1 * 0.5) * before[index] - 0.1 * moved
        eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(param.detach().double(), expected, rtol=eps, atol=eps)


# ------------------------------------------------------------------------------------------------ which share a stack


def _members(optimizer: KroneckerOptimizer) -> list[list[Tensor]]:
    return [stack.params for stacks in optimizer._stacks_of_group.values() for stack in stacks]


def test_equal_shapes_share_a_stack_and_other_shapes_dtypes_and_groups_do_not() -> None:
    equal = _parameters(3, (6, 5))
    transposed, narrow, late = _parameters(1, (5, 6)), _parameters(1, (6, 5), torch.bfloat16), _parameters(1, (6, 5))
    optimizer = SIBLINGS["scao"]([{"params": [*equal, *transposed, *narrow]}, {"params": late}])
    optimizer.step()
    assert [[id(p) for p in params] for params in _members(optimizer)] == [
        [id(p) for p in params] for params in (equal, transposed, narrow, late)
    ]


def test_stacks_stay_while_the_same_parameters_have_gradients() -> None:
    params = _parameters(3, (6, 5))
    optimizer = SIBLINGS["scao"](params)
    optimizer.step()
    storage = optimizer._stacks_of_group[0][0].storage["exp_avg"]
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    assert optimizer._stacks_of_group[0][0].storage["exp_avg"] is storage


def test_a_parameter_that_fell_behind_has_a_stack_of_its_own() -> None:
    params = _parameters(3, (6, 5))
    optimizer = SIBLINGS["scao"](params)
    optimizer.step()
    gradient, params[1].grad = params[1].grad, None
    optimizer.step()
    params[1].grad = gradient
    optimizer.step()
    assert [[id(p) for p in members] for members in _members(optimizer)] == [
        [id(params[0]), id(params[2])],
        [id(params[1])],
    ]


def test_a_state_emptied_from_outside_starts_again() -> None:
    params = _parameters(2, (6, 5))
    optimizer = SIBLINGS["scao"](params)
    optimizer.step()
    optimizer.step()
    optimizer.state[params[1]].clear()
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [3, 1]
