"""A study: tune every competitor with the same number of trials, then run the chosen settings on fresh seeds."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from scao_hf.finetune.comparison.protocol import Comparison, as_trials, chosen, compare, leaders
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.tuning import Space, proposals

Config = dict[str, Any]
Configure = Callable[[str, Setting, int], Config]
"""From competitor, setting and seed to all that determines a run, as JSON values: what the cache goes by."""
Train = Callable[[Config], Run]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Args:
        spaces: by competitor, where its search starts and what it may try.
        trials: tuning runs of each on `tuning_seed`; 0 takes every `start` as it is.
        tuning_seed: seed of the search; none of `seeds`.
        seeds: seeds of the final runs.
        confirmations: how many of a search's best settings are run on `confirmation_seeds` as well, to choose the one
            with the lowest mean; 0 takes the best trial.
        confirmation_seeds: further tuning seeds; none of `seeds`.

    Raises:
        ValueError: no seeds, a seed twice or in two places, negative `trials`, more confirmations than trials.
    """

    spaces: Mapping[str, Space]
    trials: int
    tuning_seed: int
    seeds: Sequence[int]
    confirmations: int = 0
    confirmation_seeds: Sequence[int] = ()

    @property
    def tuning_runs(self) -> int:
        """Runs that tuning takes for each competitor."""
        return self.trials + self.confirmations * len(self.confirmation_seeds)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed for the final runs")
        for name, seeds in (("seeds", self.seeds), ("confirmation_seeds", self.confirmation_seeds)):
            if len(seeds) != len(set(seeds)):
                raise ValueError(f"{name} must differ, got {list(seeds)}")
        if self.trials < 0:
            raise ValueError(f"trials must not be negative, got {self.trials}")
        if self.trials and self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed {self.tuning_seed} is one of the seeds of the final runs; choose another")
        if seen := {self.tuning_seed, *self.seeds} & set(self.confirmation_seeds):
            raise ValueError(f"confirmation_seeds must be seeds of their own, got {min(seen)} among the others")
        if not 0 <= self.confirmations <= self.trials:
            raise ValueError(f"confirmations must be between 0 and trials={self.trials}, got {self.confirmations}")
        if bool(self.confirmations) != bool(self.confirmation_seeds):
            raise ValueError("confirmations and confirmation_seeds go together: give both or neither")


def run_study(
    plan: Plan, configure: Configure, train: Train, store: RunStore, workers: int = 1, tell: Tell | None = None
) -> Comparison:
    """Make the runs that the store lacks, `workers` at a time, and compare.

    Ctrl-C stops the workers; what was finished is in the store, and the same call continues from there.

    Args:
        plan: the competitors and their budgets.
        configure: see `Configure`.
        train: from a configuration to a run; picklable when `workers` > 1, where every run has a process of its own.
        store: where runs are looked up and kept.
        workers: processes; 1 runs everything here, in the order A B A B over seeds.
        tell: told one line for every finished run.

    Raises:
        ProtocolError: see `compare`.
    """
    courses = {name: course(space, plan, partial(configure, name)) for name, space in plan.spaces.items()}
    with _executor(workers) as executor:
        results = _drive(courses, train, store, executor, workers, tell or (lambda line: None))
    return compare((name, *results[name]) for name in plan.spaces)


def make_runs(
    configs: Sequence[Config], train: Train, store: RunStore, workers: int = 1, tell: Tell | None = None
) -> list[Run]:
    """Make those of some runs that the store lacks, in order and `workers` at a time, without comparing anything.

    Args:
        configs: of different runs.
        train: see `run_study`, and so are the others.

    Returns:
        A run for each configuration.
    """

    def all_at_once() -> Course[list[Run]]:
        return (yield list(configs))

    with _executor(workers) as executor:
        return _drive({"": all_at_once()}, train, store, executor, workers, tell or (lambda line: None))[""]


Result = TypeVar("Result")
Request = list[Config]
Answer = list[Run]
Course = Generator[Request, Answer, Result]


def course(
    space: Space, plan: Plan, configure: Callable[[Setting, int], Config]
) -> Course[tuple[list[Run], list[Run]]]:
    """Ask for the runs of one competitor, batch by batch, and return its trials and its final runs."""
    trials: list[Run] = []
    while len(trials) < plan.trials:
        batch = proposals(space, plan.trials, as_trials(trials))
        trials += yield [configure(setting, plan.tuning_seed) for setting in batch]
    leading = leaders(trials, plan.confirmations)
    trials += yield [configure(setting, seed) for seed in plan.confirmation_seeds for setting in leading]
    setting = chosen(trials) if plan.trials else space.start
    finals = yield [configure(setting, seed) for seed in plan.seeds]
    return trials, finals


def _drive(
    courses: Mapping[str, Course[Result]],
    train: Train,
    store: RunStore,
    executor: Executor | None,
    workers: int,
    tell: Tell,
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    waiting: dict[str, list[Config]] = {}
    queue: list[tuple[str, Config]] = []
    running: dict[Future[Run], tuple[str, Config]] = {}
    started: Counter[str] = Counter()

    def advance(name: str, take: Callable[[], Request]) -> None:
        """Queue what a course asks for next, answering from the store what is there, or note that it is done."""
        while True:
            try:
                configs = take()
            except StopIteration as stop:
                results[name] = stop.value
                return
            missing = [config for config in configs if store.get(config) is None]
            if missing:
                waiting[name] = configs
                queue.extend((name, config) for config in missing)
                return
            take = partial(courses[name].send, [_stored(store, config) for config in configs])

    def finished(name: str, config: Config, run: Run) -> None:
        store.add(config, run)
        tell(_line(run))
        if all(store.get(each) is not None for each in waiting[name]):
            advance(name, partial(courses[name].send, [_stored(store, each) for each in waiting[name]]))

    for name, course in courses.items():
        advance(name, partial(next, course))
    while queue or running:
        if executor is None:
            name, config = _next_in_turn(queue, started)
            finished(name, config, train(config))
            continue
        while queue and len(running) < workers:
            name, config = _next_in_turn(queue, started)
            running[executor.submit(train, config)] = name, config
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        # What is finished is kept before what failed is raised.
        for future in sorted(done, key=lambda future: future.exception() is not None):
            name, config = running.pop(future)
            finished(name, config, future.result())
    return results


def _next_in_turn(queue: list[tuple[str, Config]], started: Counter[str]) -> tuple[str, Config]:
    """Take the first job of the competitor that has started fewest, and count it: A B A B rather than A A B B."""
    index = min(range(len(queue)), key=lambda index: started[queue[index][0]])
    started[queue[index][0]] += 1
    return queue.pop(index)


def _stored(store: RunStore, config: Config) -> Run:
    run = store.get(config)
    assert run is not None
    return run


def _line(run: Run) -> str:
    pairs = ((key, f"{value:g}" if isinstance(value, float) else value) for key, value in run.setting.items())
    setting = " ".join(f"{key}={value}" for key, value in pairs)
    return f"{run.arm:<16} seed {run.seed}  {setting}  loss {run.loss:.4f}"


@contextmanager
def _executor(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool whose workers leave Ctrl-C to this process and are stopped by it at once; None for one worker."""
    if workers <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts, max_tasks_per_child=1)
    try:
        yield executor
    except BaseException:
        for process in list(executor._processes.values()):
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
