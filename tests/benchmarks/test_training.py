"""One run: what it is made of, what it tells of its conditions, and that `compare` believes nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import torch
from tiny_task import TinyTask, adamw, sgd
from torch import Tensor, nn

from benchmarks.suite import Machine, configuration, make_run
from benchmarks.tasks.models import IGNORED, byte_gpt
from benchmarks.training import Batch, Build, Outcome, Schedule, digest_of, mean_loss, train
from scao_hf.finetune.comparison.protocol import CONDITIONS, ProtocolError, compare
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.store import RunStore

CPU = torch.device("cpu")
SEED = 3


def trained(task: TinyTask | None = None, build: Build = adamw, seed: int = SEED, clip: float | None = None) -> Outcome:
    return train(task or TinyTask(), build, seed, CPU, clip)


# Conditions


def test_every_condition_that_a_comparison_needs_is_told() -> None:
    assert set(CONDITIONS) <= trained().conditions.keys()


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "weights": ({"weights": 1}, {"initialisation"}),
    "batches": ({"order": 1}, {"data_order"}),
    "evaluation set": ({"text": 1}, {"evaluation_set"}),
    "clipping": ({"clip": 0.5}, {"clipping"}),
    "schedule": ({"schedule": Schedule(warmup_steps=3)}, {"schedule"}),
    "labels": ({"masked": True}, {"data_order", "token_budget"}),
    "steps": ({"steps": 5}, {"steps", "data_order", "token_budget"}),
    "nothing that counts": ({"evaluate_every": 3, "curve_batches": 2}, set()),
}


@pytest.mark.parametrize(("changes", "conditions"), CHANGES.values(), ids=CHANGES)
def test_a_condition_changes_with_what_it_tells_of_and_with_nothing_else(
    changes: dict[str, Any], conditions: set[str]
) -> None:
    one, other = trained().conditions, trained(TinyTask(**changes)).conditions
    assert {name for name in one if one[name] != other[name]} == conditions


@pytest.mark.parametrize(
    "build", [sgd, partial(adamw, lr=1e-4), partial(sgd, lr=1e38)], ids=["sgd", "rate", "diverges"]
)
def test_conditions_are_the_same_for_every_optimizer(build: Build) -> None:
    assert trained(build=build).conditions == trained().conditions


def test_conditions_of_another_seed_are_other_weights_and_batches() -> None:
    one, other = trained(seed=1).conditions, trained(seed=2).conditions
    assert {name for name in one if one[name] != other[name]} == {"initialisation", "data_order"}


def test_frozen_weights_belong_to_the_initialisation() -> None:
    class Frozen(TinyTask):
        def model(self, seed: int) -> Any:
            model = byte_gpt(tiny_task.SHAPE, seed)
            model.blocks.requires_grad_(False)
            with torch.no_grad():
                model.blocks[0].up.weight[0, 0] += self.weights
            return model

    def build(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    one, other = (trained(task, build).conditions for task in (Frozen(), Frozen(weights=1)))
    assert one["initialisation"] != other["initialisation"]


def test_a_digest_takes_numbers_and_views() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert digest_of([torch.tensor(1.0), matrix.T]) == digest_of([torch.tensor([1.0]), matrix.T.contiguous()])
    assert digest_of([matrix.T]) != digest_of([matrix])


# The comparison of real runs


def real(arm: str, build: Build, seed: int, task: TinyTask | None = None, **changes: Any) -> Run:
    outcome = trained(task, build, seed, changes.pop("clip", None))
    made = Run(
        arm=arm,
        setting={"lr": 1.0},
        seed=seed,
        conditions=outcome.conditions,
        loss=outcome.loss,
        curve=tuple(outcome.curve),
        measures=outcome.measures,
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def ours() -> list[Run]:
    return [real("adamw", adamw, seed) for seed in (1, 2, 3)]


def test_real_runs_under_equal_conditions_are_compared(ours: list[Run]) -> None:
    theirs = [real("sgd", sgd, seed) for seed in (1, 2, 3)]
    comparison = compare([("adamw", [], ours), ("sgd", [], theirs)])
    assert comparison.entries["sgd"].losses == [run.loss for run in theirs]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"clip": 0.5}, r"different clipping in the final runs of seed 2: adamw 1\.0, sgd 0\.5"),
        ({"task": TinyTask(clip=0.5)}, "different clipping in the final runs of seed 2"),
        ({"task": TinyTask(order=1)}, "different data order in the final runs of seed 2"),
        ({"task": TinyTask(weights=1)}, "different initialisation in the final runs of seed 2"),
        ({"task": TinyTask(text=1)}, "different evaluation set in the final runs of seed 2"),
        ({"task": TinyTask(schedule=Schedule(2, 0.5, 1.0))}, "different schedule in the final runs of seed 2"),
        ({"task": TinyTask(steps=12)}, "different data order in the final runs of seed 2"),
        ({"task": TinyTask(masked=True)}, "different data order in the final runs of seed 2"),
        ({"seed": 4}, r"different seeds: adamw \[1, 2, 3\], sgd \[1, 3, 4\]"),
    ],
)
def test_a_real_run_that_was_made_otherwise_is_refused(ours: list[Run], changes: dict[str, Any], named: str) -> None:
    theirs = [real("sgd", sgd, 1), real("sgd", sgd, **{"seed": 2, **changes}), real("sgd", sgd, 3)]
    with pytest.raises(ProtocolError, match=named):
        compare([("adamw", [], ours), ("sgd", [], theirs)])


def test_a_real_run_of_another_seed_cannot_pass_for_one_of_this(ours: list[Run]) -> None:
    theirs = [real("sgd", sgd, 1), replace(real("sgd", sgd, 7), seed=2), real("sgd", sgd, 3)]
    with pytest.raises(ProtocolError, match="different data order in the final runs of seed 2"):
        compare([("adamw", [], ours), ("sgd", [], theirs)])


def test_the_clipping_of_an_ablation_is_refused_through_the_whole_suite(tmp_path: Path) -> None:
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    for part in ("test", "valid"):
        (folder / f"{part}.txt").write_text(f"= {part} =\n the cat sat on the mat\n" * 10, encoding="utf-8")
    machine = Machine(tmp_path)
    options = {"size": "1m", "steps": 1, "rows": 1, "length": 8, "evaluation_batches": 1}
    setting = {"lr": 1e-3, "auxiliary": 1.0, "betas": [0.9, 0.95], "weight_decay": 0.1}

    def made(optimizer: str, **more: Any) -> Run:
        return make_run(machine, configuration(machine, "lm", options, optimizer, setting, 42, **more))

    ours, fair, clipped = made("adamw"), made("muon"), made("muon", clip=0.5)
    assert compare([("adamw", [], [ours]), ("muon", [], [fair])]).seeds == (42,)
    with pytest.raises(ProtocolError, match=r"different clipping in the final runs of seed 42: adamw 1\.0, muon 0\.5"):
        compare([("adamw", [], [ours]), ("muon", [], [clipped])])


# Training


def test_a_run_is_the_same_whatever_ran_before() -> None:
    def run() -> tuple[Any, ...]:
        made = trained()
        return made.loss, made.curve, made.conditions, made.measures["train_losses"]

    torch.manual_seed(1)
    first, state = run(), torch.get_rng_state()
    torch.manual_seed(2)
    assert run() == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_is_the_plain_loop() -> None:
    task, losses = TinyTask(clip=0.5), []
    model, batches = task.model(SEED), task.batches(SEED)
    for step in range(task.steps):
        loss = model(*next(batches))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        rate = 0.5 * task.schedule.factor(step, task.steps) * min(1.0, 0.5 / norm)
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter -= rate * grad
        losses.append(loss.item())
    outcome = trained(task, sgd)
    assert outcome.measures["train_losses"] == pytest.approx(losses, abs=1e-4)
    assert outcome.loss == pytest.approx(mean_loss(model, task.evaluation()), rel=1e-5)


def test_training_lowers_the_loss() -> None:
    outcome = trained(TinyTask(steps=60))
    assert outcome.loss < 0.8 * outcome.curve[0][1]


def test_the_curve_is_judged_at_the_start_at_every_interval_and_at_the_end() -> None:
    outcome = trained(TinyTask(steps=5, evaluate_every=2))
    assert [step for step, _ in outcome.curve] == [0, 2, 4, 5]


def test_the_curve_is_judged_on_the_first_batches_and_the_end_on_all() -> None:
    task, kept = TinyTask(curve_batches=2), []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        kept.append(model)
        return adamw(model)

    outcome = trained(task, build)
    assert outcome.curve[0] == (0, mean_loss(task.model(SEED), task.evaluation()[:2]))
    assert outcome.curve[-1] == (6, mean_loss(kept[0], task.evaluation()[:2]))
    assert outcome.loss == mean_loss(kept[0], task.evaluation())


def test_a_loss_is_the_mean_over_targets_not_over_batches() -> None:
    class Constant(nn.Module):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return tokens.double().mean()

    one, three = torch.tensor([[5, IGNORED, IGNORED]]), torch.tensor([[5, 5, 5]])
    batches = [Batch(torch.full((1, 3), 2), one), Batch(torch.full((1, 3), 6), three)]
    assert mean_loss(Constant(), batches) == pytest.approx((2 * 1 + 6 * 3) / 4)


def test_an_optimizer_with_weights_to_be_judged_is_judged_at_them() -> None:
    class Averaging(torch.optim.SGD):
        def eval(self) -> None:
            modes.append("eval")

        def train(self) -> None:
            modes.append("train")

        def step(self, closure: Any = None) -> Any:
            assert modes[-1] == "train"
            return super().step(closure)

    modes: list[str] = []
    trained(TinyTask(steps=2, evaluate_every=1), lambda model: Averaging(model.parameters(), lr=0.1))
    assert modes == ["eval", "train"] * 4  # the curve at 0, 1 and 2, and the end


class Observed(torch.optim.SGD):
    """Notes the rates and the gradients' norms of its steps, and takes none with a gradient that is not finite."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.rates: list[float] = []
        self.norms: list[float] = []

    def step(self, closure: Any = None) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.rates.append(self.param_groups[0]["lr"])
        self.norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
        assert math.isfinite(self.norms[-1])
        return super().step(closure)


def observed(task: TinyTask, lr: float = 0.5, clip: float | None = None) -> tuple[Observed, Outcome]:
    made: list[Observed] = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        made.append(Observed(model, lr))
        return made[0]

    outcome = trained(task, build, clip=clip)
    return made[0], outcome


def test_the_schedule_is_what_every_step_is_taken_at() -> None:
    optimizer, _ = observed(TinyTask(steps=4, schedule=Schedule(warmup_steps=2, start=0.5)))
    # Warm-up of two, then cosines of 0 and of a half turn's half: 1 and 1/2.
    assert optimizer.rates == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_gradients_are_clipped_at_the_bound_that_is_recorded() -> None:
    wide, _ = observed(TinyTask(clip=1e9))
    assert min(wide.norms) > 0.1
    narrow, outcome = observed(TinyTask(clip=0.01))
    assert narrow.norms == pytest.approx([0.01] * 6, rel=1e-3)
    assert outcome.conditions["clipping"] == 0.01


def test_another_bound_than_the_tasks_is_used_and_recorded() -> None:
    optimizer, outcome = observed(TinyTask(clip=1e9), clip=0.02)
    assert optimizer.norms == pytest.approx([0.02] * 6, rel=1e-3)
    assert outcome.conditions["clipping"] == 0.02


def test_a_run_that_diverges_ends_with_an_infinite_loss_and_its_whole_conditions(tmp_path: Path) -> None:
    optimizer, outcome = observed(TinyTask(), lr=1e38)
    steps = len(optimizer.rates)
    assert 1 <= steps < 6
    assert outcome.loss == math.inf
    assert outcome.conditions == trained().conditions
    assert outcome.measures["diverged_at"] == len(outcome.measures["train_losses"]) == steps + 1
    assert all(math.isfinite(loss) for _, loss in outcome.curve)
    store = RunStore(tmp_path / "runs.jsonl")
    store.add({}, real("sgd", partial(sgd, lr=1e38), SEED))
    assert store.get({}).loss == math.inf  # type: ignore[union-attr]


def test_weights_that_end_infinite_are_an_infinite_loss() -> None:
    task = TinyTask(steps=1, schedule=Schedule(warmup_steps=0))
    _, outcome = observed(task, lr=1e38)
    assert outcome.loss == math.inf
    assert [step for step, _ in outcome.curve] == [0]


def test_the_measures_of_a_run() -> None:
    outcome = trained()
    measures = outcome.measures
    weights = sum(p.numel() for p in byte_gpt(tiny_task.SHAPE, 0).parameters())
    vectors_and_matrices = len(list(byte_gpt(tiny_task.SHAPE, 0).parameters()))
    assert measures["parameters"] == measures["trained_parameters"] == weights
    assert measures["state_bytes"] == 4 * (2 * weights + vectors_and_matrices)  # two moments and a step for each
    assert len(measures["train_losses"]) == 6
    assert measures["diverged_at"] is None
    assert 0 <= measures["optimizer_seconds"] <= outcome.step_seconds
    assert measures["peak_bytes"] >= measures["peak_bytes_above_model"] >= 0


def test_ranks_are_noted_of_an_optimizer_that_adapts_them() -> None:
    from scao_hf import SCAO, parameter_groups

    task = TinyTask(steps=5, evaluate_every=2)
    outcome = trained(task, lambda model: SCAO(parameter_groups(model), lr=1e-2, warmup_steps=1))
    ranks = outcome.measures["ranks"]
    assert "blocks.0.up.weight" in ranks
    assert all([step for step, _ in points] == [2, 4, 5] for points in ranks.values())
    assert trained(task).measures["ranks"] == {}


# The schedule


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.2), (1, 0.4), (2, 0.6), (4, 1.0), (5, 1.0), (10, 0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5))), (15, 0.55)],
)
def test_the_schedule_warms_up_in_a_line_and_falls_by_a_cosine(step: int, factor: float) -> None:
    schedule = Schedule(warmup_steps=5, start=0.2, end=0.1)
    assert schedule.factor(step, steps=25) == pytest.approx(factor)


def test_the_schedule_arrives_at_its_end_one_step_after_the_last() -> None:
    schedule = Schedule(warmup_steps=5, start=0.2, end=0.1)
    assert schedule.factor(25, steps=25) == pytest.approx(0.1)
    assert schedule.factor(24, steps=25) == pytest.approx(0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi / 20)))


def test_a_schedule_may_stay_where_its_warm_up_arrives() -> None:
    schedule = Schedule(warmup_steps=5, start=0.2, end=1.0)
    assert {schedule.factor(step, steps=25) for step in range(4, 25)} == {1.0}


def test_without_warm_up_the_schedule_starts_at_the_full_rate() -> None:
    assert Schedule(warmup_steps=0).factor(0, steps=10) == 1.0
