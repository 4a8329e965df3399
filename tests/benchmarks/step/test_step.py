"""Steps alone: the shapes of real models, what is measured of them, and how parts stand for the whole."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import memory
from benchmarks.optimizers import ADAPTERS
from benchmarks.step.architectures import ARCHITECTURES, Architecture, freeze, shapes_of, with_random_weights
from benchmarks.step.measure import (
    DEFAULT_OPTIMIZERS,
    PERIOD,
    WARM_UP,
    Cost,
    Measured,
    Part,
    Plan,
    combined,
    measure,
    measure_in_turn,
    most_state_bytes,
    parts_of,
    refresh_work,
    too_long,
    values_of,
    without_adam_phase,
)
from benchmarks.step.report import page, write_step

CPU = torch.device("cpu")


# Shapes


@pytest.mark.parametrize(
    ("name", "parameters"), [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("qwen3-0.6b", 596_049_920)]
)
def test_a_model_has_its_known_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(math.prod(shape) for _, shape, _ in shapes_of(name)) == parameters


@pytest.mark.parametrize(
    ("name", "inner", "layers", "parameters"),
    [("llama3-8b-lora", 14_336, 32, 41_943_040), ("qwen3-8b-lora", 12_288, 36, 43_646_976)],
)
def test_lora_on_all_linear_layers_of_a_model_has_two_factors_for_each(
    name: str, inner: int, layers: int, parameters: int
) -> None:
    width, keys, rank = 4096, 1024, 16
    linear = [(width, width), (width, keys), (width, keys), (width, width), *2 * [(width, inner)], (inner, width)]
    expected = layers * sum(rank * (inputs + outputs) for inputs, outputs in linear)
    found = shapes_of(name)
    assert expected == parameters
    assert sum(math.prod(shape) for _, shape, _ in found) == expected
    assert {(shape[0] if kind == "lora_a" else shape[1], kind) for _, shape, kind in found} == {
        (rank, "lora_a"),
        (rank, "lora_b"),
    }
    assert len(found) == 2 * len(linear) * layers


def test_a_tied_embedding_is_one_parameter_and_no_head() -> None:
    kinds = [(shape, kind) for _, shape, kind in shapes_of("gpt2") if kind in ("embedding", "head")]
    assert kinds == [((50_257, 768), "embedding"), ((1024, 768), "embedding")]


# A small model of three layers


def small_gpt2(num_layers: int) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=40, n_positions=12, n_embd=8, n_head=2, n_layer=num_layers)
    return AutoModelForCausalLM.from_config(config)


SMALL = Architecture("Small", 3, small_gpt2)
LAYER_PARAMETERS = (2 * 8) + (8 * 24 + 24) + (8 * 8 + 8) + (2 * 8) + (8 * 32 + 32) + (32 * 8 + 8)
OTHER_PARAMETERS = 40 * 8 + 12 * 8 + 2 * 8


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trained(model).values())


def test_what_trains_gets_weights_and_gradients_and_the_rest_stays_without() -> None:
    model: Any = SMALL.model(1)
    freeze(model, in_layers=True)
    with_random_weights(model, CPU)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert {name for name, p in model.named_parameters() if not p.is_meta} == trained(model).keys()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained(model).values())


def test_parts_are_the_whole_model_or_its_layers_and_what_is_outside_of_them() -> None:
    whole, (layers, outside) = parts_of(SMALL, 3, embedding=True), parts_of(SMALL, 2, embedding=True)
    assert [(count(part.model), part.times) for part in whole] == [(3 * LAYER_PARAMETERS + OTHER_PARAMETERS, 1.0)]
    assert (count(layers.model), layers.times) == (2 * LAYER_PARAMETERS, 1.5)
    assert (count(outside.model), outside.times) == (OTHER_PARAMETERS, 1.0)
    assert [(count(part.model), part.times) for part in parts_of(SMALL, 3, embedding=False)] == [
        (3 * LAYER_PARAMETERS, 1.0)
    ]


def test_one_layer_stands_for_all_of_them() -> None:
    plan, optimizers = Plan(periods=1), ("adamw", "scao", "soap", "muon")
    whole, scaled = (measure("small", optimizers, replace(plan, layers=layers)) for layers in (None, 1))
    assert scaled.is_scaled
    assert not whole.is_scaled
    assert scaled.parameters == whole.parameters == 3 * LAYER_PARAMETERS + OTHER_PARAMETERS
    for name in optimizers:
        assert scaled.costs[name].state_bytes == whole.costs[name].state_bytes
        assert len(scaled.costs[name].seconds) == len(whole.costs[name].seconds) == PERIOD
        assert whole.costs[name].workspace_bytes is not None
        assert scaled.costs[name].workspace_bytes is None


def test_more_layers_than_there_are_is_all_of_them() -> None:
    measured = measure("small", ["adamw"], Plan(layers=99, periods=1))
    assert (measured.layers, measured.is_scaled) == (3, False)


def test_without_the_embedding_only_layers_count() -> None:
    assert measure("small", ["adamw"], Plan(embedding=False, periods=1)).parameters == 3 * LAYER_PARAMETERS


# Bytes


def test_the_estimate_counts_moments_factors_and_bases_and_cuts_long_sides() -> None:
    short, long = nn.Linear(3, 8, bias=False), nn.Embedding(10_000, 2)
    assert most_state_bytes(short) == 4 * (2 * 24 + 2 * (3**2 + 8**2))
    assert most_state_bytes(long) == 4 * (2 * 20_000 + 2 * (10_000 * 4096 + 2**2))


def test_no_optimizer_keeps_more_than_the_estimate() -> None:
    model = with_random_weights(SMALL.model(), CPU)
    for name in DEFAULT_OPTIMIZERS:
        optimizer = ADAPTERS[name].build(model, ADAPTERS[name].start)
        optimizer.step()
        assert 0.5 * 8 * count(model) < memory.state_bytes(optimizer) < 1.5 * most_state_bytes(model)


def test_workspace_is_the_most_that_is_held_at_a_time_beyond_what_was_there() -> None:
    held = torch.zeros(10_000)

    def work() -> None:
        for _ in range(3):
            held.add(1).mul_(2).exp()

    assert memory.workspace_bytes(work, CPU) == 2 * held.numel() * 4


def test_workspace_of_work_that_allocates_nothing_is_zero() -> None:
    assert memory.workspace_bytes(torch.zeros(10).zero_, CPU) == 0


# Time


@dataclass(frozen=True)
class Ticking(Plan):
    """A plan whose clock the optimizers themselves move."""

    clock: list[float] = field(default_factory=lambda: [0.0])

    def now(self) -> float:
        return self.clock[0]


class Scripted(torch.optim.SGD):
    """Notes its steps, of which the one numbered a multiple of `PERIOD` takes ten times as long."""

    def __init__(self, model: nn.Module, name: str, seconds: float, plan: Ticking, log: list[str]) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.script = name, seconds, plan, log
        self.taken = 0

    def step(self, closure: Any = None) -> Any:
        name, seconds, plan, log = self.script
        self.taken += 1
        log.append(name)
        plan.clock[0] += seconds * (1 if self.taken % PERIOD else 10)


def scripted(**seconds: float) -> tuple[Any, Any, list[str]]:
    plan, log = Ticking(periods=2, seconds=100.0), []
    builds = {name: partial(Scripted, name=name, seconds=each, plan=plan, log=log) for name, each in seconds.items()}
    return *measure_in_turn(nn.Linear(2, 2), builds, plan), log


def test_optimizers_step_in_turn_and_only_steps_after_the_warm_up_count() -> None:
    costs, slow, log = scripted(a=0.5, b=1.0)
    assert log == (WARM_UP + 2 * PERIOD) * ["a", "b"]
    assert costs["a"].seconds == tuple(2 * [*(PERIOD - 1) * [0.5], 5.0])
    assert costs["b"].seconds == tuple(2 * [*(PERIOD - 1) * [1.0], 10.0])
    assert slow == {}


def test_an_optimizer_that_outlasts_its_time_is_left_out_and_the_others_go_on() -> None:
    costs, slow, log = scripted(fast=0.1, slow=30.0)
    assert costs.keys() == {"fast"}
    assert slow == {"slow": "took 120 s for 4 of 40 steps (--seconds gives it more)"}
    assert log[:8] == 4 * ["fast", "slow"]
    assert log[8:] == 36 * ["fast"]


def test_an_optimizer_that_is_not_installed_or_for_other_models_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "missing", replace(ADAPTERS["adamw"], package="no_such_package"))
    measured = measure("small", ["missing", "loraplus", "adamw"], Plan(periods=1))
    assert measured.costs.keys() == {"adamw"}
    assert measured.left_out == {
        "missing": "needs the package no_such_package",
        "loraplus": "not for this kind of model",
    }


def test_a_part_on_which_one_step_would_outlast_the_time_is_not_begun() -> None:
    first, second = (Part(nn.Linear(side, side, bias=False), 1.0) for side in (10, 20))
    costs = {"slow": [(1.0, Cost((1.0, 12.0), 0, None))], "fast": [(1.0, Cost((1.0, 1.0), 0, None))], "gone": []}
    assert too_long(first, second, costs, Plan(seconds=90.0)) == {
        "slow": "might take 96 s for one step outside of the layers (--seconds gives it more)"
    }


def test_the_work_of_a_refresh_is_cubic_in_sides_and_counts_blocks() -> None:
    model = nn.ModuleList([nn.Linear(4, 3), nn.Embedding(8192, 2)])
    assert refresh_work(model) == 3**3 + 4**3 + 2 * (4096**3 + 2**3)


@pytest.mark.parametrize("name", ["scao", "scao_published", "soap"])
def test_the_steps_that_are_timed_are_past_the_adam_phase_and_hold_whole_periods(name: str) -> None:
    model = with_random_weights(SMALL.model(1), CPU)
    optimizer: Any = without_adam_phase(ADAPTERS[name].build(model, ADAPTERS[name].start))
    for _ in range(WARM_UP):
        optimizer.step()
    frequencies = {group.get("precond_freq", group.get("precondition_frequency")) for group in optimizer.param_groups}
    assert optimizer.diagnostics()["blend"] > 0
    assert frequencies == {PERIOD}
    assert WARM_UP % PERIOD == 0


def test_an_adam_phase_that_cannot_be_cut_short_is_refused() -> None:
    late = ADAPTERS["soap"].build(with_random_weights(SMALL.model(1), CPU), ADAPTERS["soap"].start)
    for group in late.param_groups:
        group["adam_warmup_steps"] = WARM_UP
    with pytest.raises(ValueError, match=f"SOAP is still in its Adam phase after {WARM_UP} steps"):
        without_adam_phase(late)


def test_statistics_of_a_cost() -> None:
    cost = Cost(tuple(float(second) for second in range(20, 0, -1)), 0, None)
    assert (cost.median, cost.mean, cost.high, cost.most) == (10.5, 10.5, 19.0, 20.0)


def test_parts_add_up_step_by_step() -> None:
    layers, outside = Cost((1.0, 2.0), 100, 7), Cost((10.0, 40.0), 5, 9)
    assert combined([(12.0, layers), (1.0, outside)]) == Cost((22.0, 64.0), 1205, None)
    assert combined([(1.0, layers)]) == layers


# What is written


def measured(layers: int = 1) -> Measured:
    costs = {"adamw": Cost((0.010, 0.012), 8000, None), "scao": Cost((0.020, 0.060), 6000, None)}
    return Measured("gpt2", 1000, layers, True, True, costs, {"muon": "took 9 s"})


ENVIRONMENT = {"processor": "P", "cores": 2, "threads": 1, "python": "3.11", "torch": "2"}


def test_a_row_has_milliseconds_and_multiples_of_adamw() -> None:
    _, row = values_of(measured())
    assert row["optimizer"] == "scao"
    assert row["mean_ms"] == pytest.approx(40)
    assert row["max_ms"] == pytest.approx(60)
    assert row["state_of_adamw"] == 0.75
    assert (row["layers"], row["layers_measured"]) == (12, 1)


def test_the_page_says_what_was_scaled_and_what_was_left_out() -> None:
    text = page([measured()], Plan(layers=1), DEFAULT_OPTIMIZERS, ENVIRONMENT)
    assert "1 of 12 layers measured, and counted 12 times" in text
    assert "Muon took 9 s" in text
    assert "| SCAO | 40 | 40 | 60 | 60 | 0.0 | 0.75 | – |" in text
    assert "Scaled" not in page([measured(12)], Plan(), DEFAULT_OPTIMIZERS, ENVIRONMENT)


def test_everything_is_written(tmp_path: Path) -> None:
    nothing = replace(measured(), name="gpt2-medium", costs={})
    write_step([measured(), nothing], Plan(layers=1), DEFAULT_OPTIMIZERS, ENVIRONMENT, tmp_path)
    with (tmp_path / "step.csv").open(encoding="utf-8", newline="") as file:
        assert [row["optimizer"] for row in csv.DictReader(file)] == ["adamw", "scao"]
    content = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert content["models"][0]["costs"]["scao"]["seconds"] == [0.02, 0.06]
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "step.csv", "step.svg", "step.png", "summary.md"}


def test_a_page_about_nothing_is_refused(tmp_path: Path) -> None:
    nothing = replace(measured(), costs={}, left_out={"adamw": "took 9 s"})
    with pytest.raises(ValueError, match="nothing was measured: gpt2"):
        write_step([nothing], Plan(), DEFAULT_OPTIMIZERS, ENVIRONMENT, tmp_path / "step")
    assert not (tmp_path / "step").exists()
