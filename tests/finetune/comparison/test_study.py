"""A study: the same comparison however it is run, interrupted or resumed."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune.comparison import made
from finetune.comparison.made import SEEDS, TUNING_SEED, configure

from scao_hf.finetune.comparison import study
from scao_hf.finetune.comparison.protocol import Comparison, ProtocolError
from scao_hf.finetune.comparison.runs import Run, canonical
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Job, Plan, make_runs, run_studies, run_study
from scao_hf.finetune.comparison.tuning import Space

Config = Mapping[str, Any]
SPACE = Space({"lr": 1e-3, "weight_decay": 0.1}, {"weight_decay": [0.01]})
PLAN = Plan({"a": SPACE, "b": SPACE}, trials=6, tuning_seed=TUNING_SEED, seeds=SEEDS)
RUNS = 2 * (6 + 3)


class Trainer:
    """Remembers what it was asked for, and may be interrupted at one of its calls."""

    def __init__(self, interrupted_at: int | None = None, by: BaseException | None = None) -> None:
        self.asked: list[Config] = []
        self.interrupted_at, self.by = interrupted_at, by or KeyboardInterrupt()

    def __call__(self, config: Config) -> Run:
        if len(self.asked) + 1 == self.interrupted_at:
            raise self.by
        self.asked.append(config)
        return made.train(config)


def studied(
    path: Path, train: Callable[[Config], Run] = made.train, workers: int = 1, plan: Plan = PLAN, **more: Any
) -> Comparison:
    return run_study(plan, configure, train, RunStore(path), workers, **more)


def keys(configs: Sequence[Config]) -> list[str]:
    return [canonical(config) for config in configs]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def test_a_study_tunes_every_competitor_and_runs_its_best_setting_on_every_seed(path: Path) -> None:
    comparison = studied(path)
    assert comparison.entries["a"].chosen == {"lr": 1e-3, "weight_decay": 0.1}
    assert comparison.entries["b"].chosen["lr"] == 8e-3
    for entry in comparison.entries.values():
        assert len(entry.trials) == 6
        assert {trial.seed for trial in entry.trials} == {TUNING_SEED}
        assert entry.losses == pytest.approx([seed / 100 for seed in SEEDS])


def test_two_workers_make_the_same_comparison(path: Path, tmp_path: Path) -> None:
    short = Plan({"a": SPACE, "c": SPACE}, 3, TUNING_SEED, SEEDS[:1])  # every run starts a process
    assert studied(tmp_path / "two.jsonl", workers=2, plan=short) == studied(path, plan=short)


def test_one_worker_takes_the_competitors_in_turn(path: Path) -> None:
    trainer = Trainer()
    studied(path, trainer)
    assert [config["arm"] for config in trainer.asked] == ["a", "b"] * (RUNS // 2)
    finals = [(config["seed"], config["arm"]) for config in trainer.asked if config["seed"] in SEEDS]
    assert finals == [(seed, arm) for seed in SEEDS for arm in "ab"]


def test_nothing_is_made_twice(path: Path) -> None:
    comparison = studied(path)
    assert studied(path, lambda config: pytest.fail(f"{config} was made again")) == comparison
    assert len(RunStore(path)) == RUNS


@pytest.mark.parametrize("interrupted_at", [1, 2, 7, 10, 14, RUNS])
def test_an_interrupted_study_continues_with_the_missing_runs_alone(
    path: Path, tmp_path: Path, interrupted_at: int
) -> None:
    first, second = Trainer(interrupted_at), Trainer()
    with pytest.raises(KeyboardInterrupt):
        studied(path, first)
    assert len(RunStore(path)) == len(first.asked) == interrupted_at - 1
    resumed = studied(path, second)
    made_runs = keys([*first.asked, *second.asked])
    assert len(made_runs) == len(set(made_runs)) == RUNS
    assert resumed == studied(tmp_path / "at once.jsonl")


def interrupt_after(count: int) -> Callable[[str], None]:
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == count:
            raise KeyboardInterrupt

    return tell


def test_an_interrupted_study_stops_its_workers_and_keeps_what_they_finished(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        studied(path, workers=2, tell=interrupt_after(3))
    assert multiprocessing.active_children() == []
    assert len(RunStore(path)) == 3
    second = Trainer()
    assert studied(path, second) == studied(tmp_path / "at once.jsonl")
    assert len(second.asked) == RUNS - 3


def test_a_run_that_raises_leaves_the_finished_ones(path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        studied(path, Trainer(8, RuntimeError("out of memory")))
    assert len(RunStore(path)) == 7


def test_a_worker_that_raises_leaves_the_finished_ones(path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        studied(path, made.fail_at_the_highest_rate, workers=2)
    assert multiprocessing.active_children() == []
    assert len(RunStore(path)) >= 2
    assert not any(run.setting["lr"] == 2e-3 for _, run in RunStore(path).records())


class AtOnce(Executor):
    """Has finished whatever it is given before anybody waits."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except RuntimeError as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("failing", range(1, 7))
def test_runs_that_finish_beside_one_that_raises_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    @contextmanager
    def executor(workers: int) -> Iterator[Executor]:
        yield AtOnce()

    monkeypatch.setattr(study, "_executor", executor)
    calls = Trainer()

    def train(config: Config) -> Run:
        run = calls(config)
        if len(calls.asked) == failing:
            raise RuntimeError("out of memory")
        return run

    with pytest.raises(RuntimeError, match="out of memory"):
        studied(path, train, workers=6)  # the first grids of both
    assert len(RunStore(path)) == 5


def test_every_finished_run_is_told_and_no_other(path: Path) -> None:
    lines: list[str] = []
    studied(path, Trainer(), tell=lines.append)
    assert len(lines) == RUNS
    assert lines[0] == "a                seed 1  lr=0.0005 weight_decay=0.1  loss 1.0100"
    studied(path, Trainer(), tell=lines.append)
    assert len(lines) == RUNS


def test_without_trials_every_start_is_taken_as_it_is(path: Path) -> None:
    comparison = studied(path, plan=Plan(PLAN.spaces, 0, TUNING_SEED, SEEDS))
    assert all(entry.trials == () for entry in comparison.entries.values())
    assert all(run.setting == SPACE.start for run in comparison.entries["b"].finals)


def test_tuples_in_a_setting_do_not_tell_new_runs_from_old_ones(path: Path) -> None:
    spaces = {arm: Space({"lr": 1e-3, "betas": (0.9, 0.95)}, {"betas": [(0.95, 0.95)]}) for arm in "ab"}
    plan = Plan(spaces, 6, TUNING_SEED, SEEDS)
    with pytest.raises(KeyboardInterrupt):
        studied(path, Trainer(16), plan=plan)
    assert studied(path, plan=plan).entries["a"].chosen == {"lr": 1e-3, "betas": [0.9, 0.95]}


def test_too_few_trials_to_bracket_the_optimum_are_refused_after_the_runs(path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"the best learning rate of b, 0\.004, is the smallest or the largest"):
        studied(path, plan=Plan(PLAN.spaces, 4, TUNING_SEED, SEEDS))
    assert len(RunStore(path)) == 2 * (4 + 3)


def test_fewer_trials_than_the_first_grid_are_refused_before_any_run(path: Path) -> None:
    with pytest.raises(ValueError, match="trials must be at least 3"):
        studied(path, lambda config: pytest.fail("a run was made"), plan=Plan(PLAN.spaces, 2, TUNING_SEED, SEEDS))


def test_a_competitor_that_always_diverges_is_named(path: Path) -> None:
    def train(config: Config) -> Run:
        run = made.train(config)
        return run if run.arm == "a" else made.run("b", setting=config["setting"], loss=float("inf"))

    with pytest.raises(ProtocolError, match="none of the 6 trials of b ended with a finite loss"):
        studied(path, train)


def test_a_train_function_that_changes_the_conditions_is_refused(path: Path) -> None:
    def train(config: Config) -> Run:
        run = made.train(config)
        return made.under(run, clipping=9.0) if run.arm == "b" and run.seed == 43 else run

    with pytest.raises(ProtocolError, match=r"different clipping in the final runs of seed 43: a 1\.0, b 9\.0"):
        studied(path, train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (42, 43, 42)}, r"seeds must differ, got \[42, 43, 42\]"),
        ({"seeds": (1, 42)}, "tuning_seed 1 is one of the seeds of the final runs"),
        ({"trials": -1}, "trials must not be negative, got -1"),
    ],
)
def test_a_plan_that_cannot_be_fair_is_refused_before_any_run(changes: dict[str, Any], message: str) -> None:
    values = {"spaces": PLAN.spaces, "trials": 6, "tuning_seed": 1, "seeds": SEEDS}
    with pytest.raises(ValueError, match=message):
        Plan(**{**values, **changes})


def test_the_best_trials_are_confirmed_on_further_seeds_before_one_is_chosen(path: Path) -> None:
    def train(config: Config) -> Run:
        run = made.train(config)
        unlucky = config["seed"] in (2, 3) and config["setting"] == {"lr": 1e-3, "weight_decay": 0.1}
        return replace(run, loss=run.loss + 5 * unlucky)

    plan = replace(PLAN, spaces={"a": SPACE}, confirmations=2, confirmation_seeds=(2, 3))
    entry = studied(path, train, plan=plan).entries["a"]
    assert len(entry.trials) == plan.tuning_runs == 6 + 2 * 2
    confirmed = [{canonical(run.setting) for run in entry.trials if run.seed == seed} for seed in (2, 3)]
    first, second = sorted(entry.searched, key=lambda run: run.loss)[:2]
    assert confirmed == [{canonical(run.setting) for run in (first, second)}] * 2
    assert first.setting == {"lr": 1e-3, "weight_decay": 0.1}
    assert entry.chosen == second.setting


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confirmations": 2, "confirmation_seeds": (2, 42)}, "got 42 among the others"),
        ({"confirmations": 2, "confirmation_seeds": (TUNING_SEED,)}, f"got {TUNING_SEED} among the others"),
        ({"confirmations": 2, "confirmation_seeds": (2, 2)}, r"confirmation_seeds must differ, got \[2, 2\]"),
        ({"confirmations": 7, "confirmation_seeds": (2,)}, "between 0 and trials=6, got 7"),
        ({"confirmations": 2}, "go together"),
        ({"confirmation_seeds": (2,)}, "go together"),
    ],
)
def test_confirmations_need_seeds_of_their_own(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **changes)


# Several studies


def jobs(folder: Path, train: Callable[[Config], Run] = made.train, **plans: Plan) -> dict[str, Job]:
    return {name: Job(plan, configure, train, RunStore(folder / name)) for name, plan in plans.items()}


def test_studies_made_together_are_those_made_alone_each_in_its_own_store(path: Path, tmp_path: Path) -> None:
    other = Plan({"a": SPACE, "c": SPACE}, 6, TUNING_SEED, SEEDS[:1])
    together = run_studies(jobs(tmp_path, one=PLAN, two=other))
    assert together == {"one": studied(path), "two": studied(tmp_path / "alone", plan=other)}
    assert (len(RunStore(tmp_path / "one")), len(RunStore(tmp_path / "two"))) == (RUNS, 2 * (6 + 1))


def test_workers_that_a_study_leaves_idle_begin_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(AtOnce):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            asked.append(id(fn))
            return super().submit(fn, *args, **kwargs)

    @contextmanager
    def executor(workers: int, reuse: bool) -> Iterator[Executor]:
        yield Counting()

    monkeypatch.setattr(study, "_executor", executor)
    first, second = Trainer(), Trainer()
    given = {**jobs(tmp_path, first, one=PLAN), **jobs(tmp_path, second, two=PLAN)}
    run_studies(given, workers=8)
    # The first grids of both competitors of the first study are six runs, and its next ones wait for all of them.
    assert asked[:8] == [id(first)] * 6 + [id(second)] * 2
    assert len(first.asked) == len(second.asked) == RUNS


def test_a_study_that_is_refused_leaves_the_others_to_be_made_and_is_named(tmp_path: Path) -> None:
    narrow = Plan(PLAN.spaces, 4, TUNING_SEED, SEEDS)  # the best learning rate of b stays on the edge

    def diverge(config: Config) -> Run:
        return replace(made.train(config), loss=math.inf)

    given = jobs(tmp_path, narrow=narrow) | jobs(tmp_path, diverge, lost=PLAN) | jobs(tmp_path, whole=PLAN)
    with pytest.raises(
        ProtocolError, match=r"(?s)^narrow: the best learning rate of b.*\nlost: none of the 6 trials"
    ) as refused:
        run_studies(given)
    assert "whole" not in str(refused.value)
    assert len(RunStore(tmp_path / "whole")) == RUNS
    finals = [config for config, _ in RunStore(tmp_path / "lost").records() if config["seed"] in SEEDS]
    assert finals == []


@pytest.mark.parametrize("reuse", [False, True])
def test_a_worker_makes_one_run_unless_it_is_kept(path: Path, reuse: bool) -> None:
    configs = [configure("a", {"lr": 1e-3}, seed) for seed in range(4)]
    runs = make_runs(configs, made.train_here, RunStore(path), workers=2, reuse=reuse)
    processes = {run.measures["process"] for run in runs}
    assert len(processes) <= 2 if reuse else len(processes) == 4
