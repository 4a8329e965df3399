"""The same recipe under several optimizers: as many learning rates for each, then the best one on fresh seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scao_hf.finetune.comparison import assertion
from scao_hf.finetune.comparison.outcome import Outcome, target_of
from scao_hf.finetune.comparison.protocol import Comparison, ProtocolError, as_trials
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Plan, run_study
from scao_hf.finetune.comparison.tuning import RATE, Space, best, is_bracketed
from scao_hf.finetune.errors import ERROR_LOG, FinetuneError, Interrupted
from scao_hf.finetune.observer import Observer

if TYPE_CHECKING:
    from scao_hf.finetune.config import Recipe

RUNS = "runs.jsonl"
FOLDER_SUFFIX = "-compare"
"""Of the folder of a comparison, behind that of the recipe."""

OPTIMIZERS = ("scao", "adamw_torch")
"""What is compared if nothing else is asked for."""
DEFAULT_SEEDS = 3
REFINEMENTS = 2
"""Trials beyond the first grid of learning rates, by default."""
LEAST_TRIALS = 3
"""A best learning rate needs a smaller and a larger one beside it."""
EVALUATIONS = 20
"""Points of every loss curve, unless there are fewer steps."""

FACTS = (
    "model",
    "dataset",
    "dataset_format",
    "loss_on",
    "device",
    "dtype",
    "train_rows",
    "eval_rows",
    "rows_per_step",
    "total_steps",
    "epochs",
    "trainable_parameters",
    "total_parameters",
    "lr_warmup_steps",
)
"""What a run keeps of its `RunInfo`."""

_OURS = (
    "training.eval_strategy=steps",
    f"training.eval_steps={1 / EVALUATIONS}",
    "training.load_best_model_at_end=false",
    "training.early_stopping_patience=null",
    "training.save_strategy=no",
    "training.report_to=none",
    "data.sample_tokens=0",
)
"""What every run of a comparison does in its own way, whatever the recipe says."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be compared, and how.

    Args:
        recipe: a file or a name, as for `load_recipe`.
        overrides: "section.key=value" texts over the recipe.
        optimizers: names for `TrainingArguments(optim=...)`, at least two; differences are told of the first.
        rates: the first grid of learning rates; None is half, once and twice the recipe's.
        trials: learning rates tried with each optimizer; None is the grid and two more.
        seeds: final runs of each optimizer.
        target_loss: loss to be reached; None is the final loss of AdamW, or of the worst if AdamW is not compared.
        assertions: texts for `assertion.parse`.
        output_dir: where the runs and the report lie; None is the recipe's output_dir with "-compare" behind it.
        command: what a person types for this request, for the report.
    """

    recipe: str
    optimizers: Sequence[str] = OPTIMIZERS
    overrides: Sequence[str] = ()
    rates: Sequence[float] | None = None
    trials: int | None = None
    seeds: int = DEFAULT_SEEDS
    target_loss: float | None = None
    assertions: Sequence[str] = ()
    output_dir: Path | None = None
    command: str = ""


class Spectator(Observer):
    """An observer of many runs. Every method does nothing, so override what you want to show."""

    def planned(self, plan: Plan, output_dir: Path) -> None:
        """The recipes are checked; `output_dir` will hold everything."""
        return

    def run_begins(self, optimizer: str, setting: Setting, seed: int, done: int, total: int) -> None:
        """A run is about to load its model; `done` of `total` runs are there, those of earlier calls among them."""
        return

    def run_ended(self, run: Run, done: int, total: int) -> None:
        """A run ended; `done` of `total` runs are there, it among them."""
        return


class Paused(Interrupted):
    """A comparison that was asked to stop; the runs that were finished are kept."""

    def __init__(self, signal_name: str, done: int, total: int, path: Path) -> None:
        super().__init__(signal_name, 0, None)
        self.message = f"stopped by {signal_name}; {done} of {total} runs are done and kept in {path}"
        self.hint = "the same command again goes on from there"


def hold(request: Request, spectator: Spectator | None = None) -> Outcome:
    """Make the runs that are not there yet, one after the other in this process, and compare.

    Every run is kept in `runs.jsonl` as soon as it is finished, under a digest of all that determines it; adapters and
    models are not kept.

    Raises:
        FinetuneError: what is wrong with the request, the recipe, the data or the model; config.comparison where the
            protocol refuses the runs.
        Paused: Ctrl-C or SIGTERM.
    """
    _check(request)
    return _Contest(request, spectator or Spectator()).outcome()


def _check(request: Request) -> None:
    """Refuse what can be seen before a recipe is read."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        message = f"a comparison runs in one process, and {processes} were started"
        raise FinetuneError("config.processes", message, "start it without torchrun")
    names = list(request.optimizers)
    if len(names) < 2 or len(set(names)) != len(names):
        given = ", ".join(names) or "none"
        hint = "--optim scao --optim adamw_torch"
        raise FinetuneError(
            "config.optimizers", f"a comparison needs two different optimizers or more, got {given}", hint
        )
    for text in request.assertions:
        assertion.parse(text, names)
    if request.seeds < 1:
        raise FinetuneError("config.seeds", f"a comparison needs final runs, got {request.seeds} seeds", "--seeds 3")
    for rate in request.rates or ():
        if not 0 < rate < math.inf:
            raise FinetuneError("config.rates", f"a learning rate must be above 0, got {rate:g}", "--lrs 1e-4,2e-4")


class _Contest:
    """The stages of one comparison, in order; `outcome` goes through them."""

    def __init__(self, request: Request, spectator: Spectator) -> None:
        self.request = request
        self.spectator = spectator
        self.trials: dict[str, list[Config]] = {name: [] for name in request.optimizers}
        self.kept = 0
        """Runs of earlier calls that were used."""
        self.made = 0

    def outcome(self) -> Outcome:
        from scao_hf.finetune.failures import answers

        self._read_recipes()
        self._open_folder()
        self.spectator.planned(self.plan, self.folder)
        with self._resumable(), answers(self.folder):
            self._identify()
            return self._conclude(self._compare())

    def _compare(self) -> Comparison:
        try:
            return run_study(self.plan, self._configure, self._train, self.store)
        except ProtocolError as error:
            raise FinetuneError("config.comparison", str(error)) from error

    def _read_recipes(self) -> None:
        from scao_hf.finetune import settings
        from scao_hf.finetune.recipes import load_recipe
        from scao_hf.hf import options

        request = self.request
        own = load_recipe(request.recipe, request.overrides)
        settings.require_complete(own)
        if not own.holds_out_rows:
            message = f"recipe {own.name} holds out no rows, and a comparison is judged by them"
            raise FinetuneError("config.no-held-out", message, "data.test_split_size=0.05, or data.eval_path=FILE")
        named = str(own.training["optim"])
        # The section `scao` holds the options of one optimizer, and means nothing to the others.
        owner = named if named in options.OPTIMIZERS else "scao"
        self.recipes: dict[str, Recipe] = {}
        for name in request.optimizers:
            theirs = [f"training.optim={name}", *([] if name == owner else ["scao=null"])]
            self.recipes[name] = load_recipe(request.recipe, [*request.overrides, *_OURS, *theirs])
        self.recipe = self.recipes[request.optimizers[0]]
        for notice in self.recipe.notices:
            self.spectator.notice(notice)
        self.plan = _plan(request, own.training.get("learning_rate"), own.seed)

    def _open_folder(self) -> None:
        from scao_hf.finetune import settings
        from scao_hf.finetune.record import check_permission

        folder = settings.output_directory(self.recipe)
        given = self.request.output_dir
        self.folder = folder.with_name(folder.name + FOLDER_SUFFIX) if given is None else given
        path = self.folder / RUNS
        if not path.is_file() and (self.folder.is_file() or _holds_files(self.folder)):
            message = f"{self.folder} exists and is not the folder of a comparison (it has no {RUNS})"
            raise FinetuneError("config.output-exists", message, "give another one: --output-dir NEW")
        check_permission(self.folder)
        try:
            self.store = RunStore(path)
        except ValueError as error:
            raise FinetuneError("config.runs-file", str(error), "or give another folder: --output-dir NEW") from error

    def _identify(self) -> None:
        from scao_hf.finetune.record import hardware, versions
        from scao_hf.finetune.run import identify

        self.identity = identify(self.recipe, self.spectator)
        self.versions, self.hardware = versions(), hardware()

    def _configure(self, name: str, setting: Setting, seed: int) -> Config:
        """All that determines a run, as JSON values.

        Raises:
            ProtocolError: final runs are asked for after a tuning that cannot be used: before they are made.
        """
        from scao_hf.finetune.recipes import recipe_dict

        sections = recipe_dict(self._at_rate(name, setting))
        for key in ("schema", "description", "measured"):
            del sections[key]
        del sections["training"]["output_dir"]
        config = {
            "optimizer": name,
            "setting": setting,
            "seed": seed,
            "recipe": sections,
            **self.identity,
            "versions": self.versions,
            "hardware": {key: self.hardware[key] for key in ("cpus", "threads", "gpus")},
        }
        if seed == self.plan.tuning_seed:
            self.trials[name].append(config)
        else:
            self._require_bracketed(name)
        self.kept += self.store.get(config) is not None
        return config

    def _require_bracketed(self, name: str) -> None:
        trials = as_trials(run for run in map(self.store.get, self.trials[name]) if run is not None)
        if not is_bracketed(trials):
            rates = sorted(trial.setting[RATE] for trial in trials)
            raise ProtocolError(
                f"the best learning rate of {name}, {best(trials).setting[RATE]:g}, is on the edge of those tried, "
                f"{rates[0]:g} to {rates[-1]:g}: give all optimizers more trials, --trials {self.plan.trials + 2}; "
                "the runs so far are kept"
            )

    def _at_rate(self, name: str, setting: Setting) -> Recipe:
        recipe = self.recipes[name]
        return replace(recipe, training={**recipe.training, "learning_rate": setting[RATE]})

    def _train(self, config: Config) -> Run:
        from scao_hf.finetune.run import measure

        name, setting, seed = config["optimizer"], config["setting"], config["seed"]
        self.spectator.run_begins(name, setting, seed, self.kept + self.made, self._total)
        measured = measure(self._at_rate(name, setting), seed, self.spectator)
        run = Run(
            arm=name,
            setting=setting,
            seed=seed,
            conditions=measured.conditions,
            loss=measured.loss,
            curve=measured.curve,
            step_seconds=measured.step_seconds,
            measures={
                "state_bytes": measured.optimizer_state_bytes,
                "diverged_at": measured.diverged_at,
                "facts": {name: getattr(measured.info, name) for name in FACTS},
            },
        )
        self.made += 1
        self.spectator.run_ended(run, self.kept + self.made, self._total)
        return run

    @property
    def _total(self) -> int:
        return len(self.plan.spaces) * (self.plan.trials + len(self.plan.seeds))

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Say of a Ctrl-C how far the comparison is."""
        try:
            yield
        except Interrupted as error:
            raise Paused(error.signal_name, self.kept + self.made, self._total, self.store.path) from error

    def _conclude(self, comparison: Comparison) -> Outcome:
        request = self.request
        first = next(iter(comparison.entries.values())).finals[0]
        return Outcome(
            recipes=self.recipes,
            command=request.command,
            output_dir=self.folder,
            plan=self.plan,
            comparison=comparison,
            target=target_of(comparison, request.target_loss),
            assertions=tuple(assertion.parse(text, request.optimizers) for text in request.assertions),
            facts=first.measures["facts"],
            versions=self.versions,
            hardware=self.hardware,
        )


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(file.name != ERROR_LOG for file in folder.iterdir())


def _plan(request: Request, recipe_rate: float | None, recipe_seed: int) -> Plan:
    """The tuning takes the recipe's seed, and the final runs those after it."""
    rates = None if request.rates is None else sorted(request.rates)
    start = recipe_rate if rates is None else rates[len(rates) // 2]
    if not start:
        message = "the recipe gives no learning rate to start from"
        raise FinetuneError("config.rates", message, "--lrs 1e-4,2e-4,4e-4, or training.learning_rate=2e-4")
    space = Space({RATE: float(start)}, rates=rates)
    trials = len(space.grid) + REFINEMENTS if request.trials is None else request.trials
    least = max(LEAST_TRIALS, len(space.grid))
    if trials < least:
        message = (
            f"{trials} trials are too few: {len(space.grid)} learning rates begin, and the best needs two beside it"
        )
        raise FinetuneError("config.trials", message, f"--trials {least} or more")
    seeds = [recipe_seed + number for number in range(1, request.seeds + 1)]
    return Plan(dict.fromkeys(request.optimizers, space), trials, recipe_seed, seeds)
