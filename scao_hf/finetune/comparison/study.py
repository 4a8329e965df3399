"""A study: tune every competitor with the same number of trials, then run the chosen settings on fresh seeds."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from scao_hf.finetune.comparison.protocol import Comparison, ProtocolError, as_trials, chosen, compare, leaders
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


@dataclass(frozen=True)
class Job:
    """A study that is to be made.

    Args:
        plan: the competitors and their budgets.
        configure: see `Configure`.
        train: from a configuration to a run; picklable where there are several workers.
        store: where runs are looked up and kept.
        tell: told one line for every finished run.
    """

    plan: Plan
    configure: Configure
    train: Train
    store: RunStore
    tell: Tell | None = None


def run_study(
    plan: Plan, configure: Configure, train: Train, store: RunStore, workers: int = 1, tell: Tell | None = None
) -> Comparison:
    """Make the runs that the store lacks, `workers` at a time, and compare; the arguments are those of `Job`.

    Ctrl-C stops the workers; what was finished is in the store, and the same call continues from there.

    Args:
        workers: processes; 1 runs everything here, in the order A B A B over seeds.

    Raises:
        ProtocolError: see `compare`.
    """
    task = _task_of(Job(plan, configure, train, store, tell))
    with _executor(workers) as executor:
        _drive([task], executor, workers)
    return _compared(task)


def run_studies(jobs: Mapping[str, Job], workers: int = 1, reuse: bool = False) -> dict[str, Comparison]:
    """Make several studies with one pool of workers: while a search waits for its best trial, the next study goes on.

    Args:
        jobs: by name, the earlier ones first.
        workers: see `run_study`.
        reuse: let a worker make one run after the other, where it costs more to start than a run takes; otherwise every
            run has a process of its own, and its peak memory is that process's.

    Raises:
        ProtocolError: all that was refused, once the runs of the other studies are made; see `compare`.
    """
    tasks = {name: _task_of(job) for name, job in jobs.items()}
    with _executor(workers, reuse) as executor:
        _drive(list(tasks.values()), executor, workers)
    comparisons, refused = {}, []
    for name, task in tasks.items():
        try:
            comparisons[name] = _compared(task)
        except ProtocolError as error:
            refused.append(f"{name}: {error}")
    if refused:
        raise ProtocolError("\n".join(refused))
    return comparisons


def make_runs(
    configs: Sequence[Config],
    train: Train,
    store: RunStore,
    workers: int = 1,
    tell: Tell | None = None,
    reuse: bool = False,
) -> list[Run]:
    """Make those of some runs that the store lacks, in order and `workers` at a time, without comparing anything.

    Args:
        configs: of different runs.
        train: see `Job`, and so are store and tell.
        workers: see `run_study`.
        reuse: see `run_studies`.

    Returns:
        A run for each configuration.
    """

    def all_at_once() -> Course[list[Run]]:
        return (yield list(configs))

    task = _Task({"": all_at_once()}, train, store, tell)
    with _executor(workers, reuse) as executor:
        _drive([task], executor, workers)
    return task.results[""]


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


@dataclass
class _Task(Generic[Result]):
    """Courses on their way, and the store that answers what they ask for, or says what has to be trained for it."""

    courses: Mapping[str, Course[Result]]
    train: Train
    store: RunStore
    tell: Tell | None = None
    results: dict[str, Result] = field(default_factory=dict)
    refusal: ProtocolError | None = None
    """Of a course; the runs of the others are then made no further."""
    queue: list[tuple[str, Config]] = field(default_factory=list)
    _waiting: dict[str, Request] = field(default_factory=dict)
    _started: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        for name in self.courses:
            self._advance(name, None)

    def take(self) -> tuple[str, Config]:
        """The next job, of the competitor that has started fewest: A B A B rather than A A B B."""
        index = min(range(len(self.queue)), key=lambda index: self._started[self.queue[index][0]])
        self._started[self.queue[index][0]] += 1
        return self.queue.pop(index)

    def finish(self, name: str, config: Config, run: Run) -> None:
        self.store.add(config, run)
        if self.tell is not None:
            self.tell(_line(run))
        if self.refusal is None and all(self.store.get(each) is not None for each in self._waiting[name]):
            self._advance(name, self._answer(self._waiting[name]))

    def _advance(self, name: str, answer: Answer | None) -> None:
        """Queue what a course asks for next, answering from the store what is there, or note that it is done."""
        while True:
            try:
                # A generator that has not begun takes None alone.
                configs = self.courses[name].send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                self.results[name] = stop.value
                return
            except ProtocolError as error:
                self.refusal = error
                self.queue.clear()
                return
            missing = [config for config in configs if self.store.get(config) is None]
            if missing and self.refusal is None:
                self._waiting[name] = configs
                self.queue.extend((name, config) for config in missing)
            if missing:
                return
            answer = self._answer(configs)

    def _answer(self, configs: Request) -> Answer:
        return [_stored(self.store, config) for config in configs]


def _task_of(job: Job) -> _Task[tuple[list[Run], list[Run]]]:
    courses = {name: course(space, job.plan, partial(job.configure, name)) for name, space in job.plan.spaces.items()}
    return _Task(courses, job.train, job.store, job.tell)


def _compared(task: _Task[tuple[list[Run], list[Run]]]) -> Comparison:
    if task.refusal is not None:
        raise task.refusal
    return compare((name, *task.results[name]) for name in task.courses)


def _drive(tasks: Sequence[_Task[Any]], executor: Executor | None, workers: int) -> None:
    """Make all the runs that the tasks ask for; a later task's only where the earlier ones have none to start."""
    for task in tasks:
        task.begin()
    running: dict[Future[Run], tuple[_Task[Any], str, Config]] = {}
    while running or any(task.queue for task in tasks):
        if executor is None:
            task = _first_with_work(tasks)
            name, config = task.take()
            task.finish(name, config, task.train(config))
            continue
        while len(running) < workers and any(task.queue for task in tasks):
            task = _first_with_work(tasks)
            name, config = task.take()
            running[executor.submit(task.train, config)] = task, name, config
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        # What is finished is kept before what failed is raised.
        for future in sorted(done, key=lambda future: future.exception() is not None):
            task, name, config = running.pop(future)
            task.finish(name, config, future.result())


def _first_with_work(tasks: Sequence[_Task[Any]]) -> _Task[Any]:
    return next(task for task in tasks if task.queue)


def _stored(store: RunStore, config: Config) -> Run:
    run = store.get(config)
    assert run is not None
    return run


def _line(run: Run) -> str:
    pairs = ((key, f"{value:g}" if isinstance(value, float) else value) for key, value in run.setting.items())
    setting = " ".join(f"{key}={value}" for key, value in pairs)
    return f"{run.arm:<16} seed {run.seed}  {setting}  loss {run.loss:.4f}"


@contextmanager
def _executor(workers: int, reuse: bool = False) -> Iterator[ProcessPoolExecutor | None]:
    """A pool whose workers leave Ctrl-C to this process and are stopped by it at once; None for one worker."""
    if workers <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    runs_each = None if reuse else 1
    executor = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts, max_tasks_per_child=runs_each)
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
