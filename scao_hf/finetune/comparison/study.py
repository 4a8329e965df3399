"""A study: tune every competitor with the same number of trials, then run the chosen settings on fresh seeds."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from scao_hf.finetune.comparison.protocol import Comparison, as_trials, compare
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.tuning import Space, best, proposals

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
        trials: tuning runs of each; 0 takes every `start` as it is.
        tuning_seed: seed of all tuning runs; none of `seeds`.
        seeds: seeds of the final runs.

    Raises:
        ValueError: `tuning_seed` among `seeds`, or no seeds.
    """

    spaces: Mapping[str, Space]
    trials: int
    tuning_seed: int
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed for the final runs")
        if self.trials and self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed {self.tuning_seed} is one of the seeds of the final runs; choose another")


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
    courses = {name: _course(space, plan) for name, space in plan.spaces.items()}
    with _executor(workers) as executor:
        results = _drive(courses, configure, train, store, executor, workers, tell or (lambda line: None))
    return compare((name, *results[name]) for name in plan.spaces)


Request = list[tuple[Setting, int]]
Answer = list[Run]
Results = tuple[list[Run], list[Run]]
Course = Generator[Request, Answer, Results]


def _course(space: Space, plan: Plan) -> Course:
    """Ask for the runs of one competitor, settings with seeds, and return its trials and its final runs."""
    trials: list[Run] = []
    while len(trials) < plan.trials:
        batch = proposals(space, plan.trials, as_trials(trials))
        trials += yield [(setting, plan.tuning_seed) for setting in batch]
    chosen = best(as_trials(trials)).setting if plan.trials else space.start
    finals = yield [(chosen, seed) for seed in plan.seeds]
    return trials, finals


def _drive(
    courses: Mapping[str, Course],
    configure: Configure,
    train: Train,
    store: RunStore,
    executor: Executor | None,
    workers: int,
    tell: Tell,
) -> dict[str, Results]:
    results: dict[str, Results] = {}
    waiting: dict[str, list[Config]] = {}
    queue: list[tuple[str, Config]] = []
    running: dict[Future[Run], tuple[str, Config]] = {}

    def advance(name: str, take: Callable[[], Request]) -> None:
        """Queue what a course asks for next, answering from the store what is there, or note that it is done."""
        while True:
            try:
                request = take()
            except StopIteration as stop:
                results[name] = stop.value
                return
            configs = [configure(name, setting, seed) for setting, seed in request]
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
            name, config = _next_in_turn(queue)
            finished(name, config, train(config))
            continue
        while queue and len(running) < workers:
            name, config = _next_in_turn(queue)
            running[executor.submit(train, config)] = name, config
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            name, config = running.pop(future)
            finished(name, config, future.result())
    return results


def _next_in_turn(queue: list[tuple[str, Config]]) -> tuple[str, Config]:
    """Take the job whose place within its competitor's own jobs is lowest: A B A B rather than A A B B."""
    places: dict[str, int] = {}
    order = []
    for index, (name, _) in enumerate(queue):
        places[name] = places.get(name, -1) + 1
        order.append((places[name], index))
    return queue.pop(min(order)[1])


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
