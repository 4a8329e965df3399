"""From a configuration to a run, for every task; and the studies made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.environment import environment
from benchmarks.optimizers import ADAPTERS
from benchmarks.tasks import adaptation, encoder, lm
from benchmarks.timing import interleaved
from benchmarks.training import Outcome, Schedule, train
from scao_hf.finetune.comparison.runs import Run, Setting
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.finetune.comparison.study import Config, Job, Plan, Tell
from scao_hf.finetune.comparison.tuning import RATE, Space

TUNING_SEED, CONFIRMATION_SEEDS = 1, (2, 3, 4)
SEEDS = (42, 43, 44)


@dataclass(frozen=True)
class Machine:
    """Where runs are made, which is no part of what they are.

    Args:
        folder: local texts; None takes the hub's.
        device: "cpu" or "cuda".
        cache: where what the suite pretrains for itself is kept.
    """

    folder: Path | None
    device: str = "cpu"
    cache: Path = Path("runs/benchmarks/cache")

    @property
    def reuses_workers(self) -> bool:
        """Whether a worker makes several runs: a GPU's are shorter than the start of a process that uses it, and their
        peak memory is counted anew; on a CPU it can only be a process's."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Args:
        make: from machine and options to the task.
        version: counts changes that make earlier runs incomparable.
        run: trains it; `benchmarks.training.train` unless the task is trained by something else.
    """

    make: Callable[..., Any]
    version: int
    run: Callable[..., Outcome] = train


def _language_modelling(machine: Machine, **options: Any) -> lm.LanguageModelling:
    return lm.LanguageModelling(folder=machine.folder, **options)


def _adaptation(machine: Machine, **options: Any) -> adaptation.Adaptation:
    return adaptation.Adaptation(folder=machine.folder, cache=machine.cache, device=machine.device, **options)


def _encoder(machine: Machine, **options: Any) -> encoder.Classification:
    return encoder.Classification(folder=machine.folder, **options)


TASKS = {
    "lm": Kind(_language_modelling, lm.VERSION),
    "lora": Kind(_adaptation, adaptation.VERSION),
    "full": Kind(partial(_adaptation, rank=None), adaptation.VERSION),
    "encoder": Kind(_encoder, encoder.VERSION, encoder.run),
}


def configuration(
    machine: Machine, task: str, options: Mapping[str, Any], optimizer: str, setting: Setting, seed: int, **more: Any
) -> Config:
    """All that determines a run, as JSON values.

    Args:
        machine: only whether its texts are local, and its device, count.
        task: a key of `TASKS`.
        options: arguments of the task.
        optimizer: a key of `ADAPTERS`.
        setting: of the optimizer.
        seed: of initialisation and data order.
        more: for ablations: `clip`, another bound on the gradient's norm.
    """
    return {
        "task": {"name": task, "version": TASKS[task].version, **options},
        "data": "hub" if machine.folder is None else "local",
        "device": machine.device,
        "optimizer": optimizer,
        "version": ADAPTERS[optimizer].version(),
        "setting": setting,
        "seed": seed,
        **more,
    }


def make_run(machine: Machine, config: Config) -> Run:
    """Train as a configuration says."""
    torch.set_num_threads(1)  # as many runs as cores are faster than one run on all of them
    device = torch.device(machine.device)
    adapter, setting, seed = ADAPTERS[config["optimizer"]], config["setting"], config["seed"]
    task = make_task(machine, config["task"])
    if adapter.owns_schedule:
        task = replace(task, schedule=replace(task.schedule, end=1.0))  # its own warm-up is ours; no decay after it
    outcome = TASKS[config["task"]["name"]].run(
        task, lambda model: adapter.build(model, setting), seed, device, config.get("clip")
    )
    return Run(
        arm=config["optimizer"],
        setting=setting,
        seed=seed,
        conditions={**outcome.conditions, "data": config["data"], "device": config["device"]},
        loss=outcome.loss,
        curve=tuple(outcome.curve),
        step_seconds=outcome.step_seconds,
        measures={**outcome.measures, "environment": environment(device)},
    )


def make_task(machine: Machine, description: Mapping[str, Any]) -> Any:
    options = {name: value for name, value in description.items() if name not in ("name", "version")}
    if "schedule" in options:
        options["schedule"] = Schedule(**options["schedule"])
    return TASKS[description["name"]].make(machine, **options)


@dataclass(frozen=True)
class Study:
    """A task on which optimizers are compared.

    Args:
        task: a key of `TASKS`.
        options: arguments of the task.
        optimizers: keys of `ADAPTERS`.
        trials: tuning runs of each on `TUNING_SEED`.
        seeds: of the final runs.
        confirmations: how many of the best trials are run on `CONFIRMATION_SEEDS` before one is chosen.
        rate: factor on the learning rates at which the searches start.
        blocks: of ten steps of each optimizer that are timed, in turn.
        settle: steps of each before the first block.
    """

    task: str
    options: Mapping[str, Any]
    optimizers: Sequence[str]
    trials: int
    seeds: Sequence[int] = SEEDS
    confirmations: int = 0
    rate: float = 1.0
    blocks: int = 8
    settle: int = 40

    def plan(self) -> Plan:
        return Plan(
            {name: self._space(name) for name in self.optimizers},
            self.trials,
            TUNING_SEED,
            self.seeds,
            self.confirmations,
            CONFIRMATION_SEEDS if self.confirmations else (),
        )

    def _space(self, optimizer: str) -> Space:
        space = ADAPTERS[optimizer].space(lora=self.task == "lora")
        return replace(space, start={**space.start, RATE: self.rate * space.start[RATE]})

    def job(self, machine: Machine, store: RunStore, tell: Tell | None = None) -> Job:
        """What `run_studies` makes, with all prepared that its workers need.

        Raises:
            FileNotFoundError: texts are missing.
        """
        task = make_task(machine, {"name": self.task, **self.options})
        if hasattr(task, "prepare"):
            task.prepare()  # once, rather than by every worker
        task.evaluation()
        configure = partial(configuration, machine, self.task, self.options)
        return Job(self.plan(), configure, partial(make_run, machine), store, tell)

    def run_once(self, machine: Machine, optimizer: str, setting: Setting, seed: int) -> Run:
        """One run of one of the study's optimizers."""
        return make_run(machine, configuration(machine, self.task, self.options, optimizer, setting, seed))

    def timing(self, machine: Machine) -> dict[str, Any]:
        """Steps of every optimizer at its start, timed in turn; see `benchmarks.timing.interleaved`.

        Raises:
            ValueError: the task is not trained by the loop that is timed.
        """
        if TASKS[self.task].run is not train:
            raise ValueError(f"{self.task} has a training loop of its own; its runs tell the CPU time of their steps")
        task, device = make_task(machine, {"name": self.task, **self.options}), torch.device(machine.device)
        builds = {name: partial(_at_start, name, space) for name, space in self.plan().spaces.items()}
        arms = interleaved(task, builds, device, self.blocks, self.settle)
        return {"environment": environment(device), "arms": arms}


def _at_start(optimizer: str, space: Space, model: nn.Module) -> torch.optim.Optimizer:
    return ADAPTERS[optimizer].build(model, space.start)


MATRIX_OPTIMIZERS = ("adamw", "scao", "muon", "soap")
PACKAGES = ("adamw", "scao", "soap_pytorch_optimizer", "shampoo", "scao_pypi", "adamw8bit")
"""What one would install instead; needs the extra `bench`. Schedule-free AdamW can be added with `--optimizer`."""
LORA_OPTIMIZERS = ("adamw", "scao", "loraplus")
ALL_LORA_OPTIMIZERS = (*LORA_OPTIMIZERS, "soap", "muon")
"""For the study that is told first; the others take them with `--optimizer`, as all do "lorafa" and "riemannian". The
base is Muon's: it may favour Muon."""
LORA_HEADLINE = "lora-shakespeare-r8"
BUDGETS: Mapping[str, Mapping[str, Any]] = {"": {}, "-short": {"steps": 100}, "-long": {"steps": 600}}
"""Of LoRA studies, by what their names end in."""
LORA_BASES: Mapping[str, Mapping[str, Any]] = {"": {}, "-5m": {"base": "5m"}}


def _lora_studies() -> dict[str, Study]:
    """Two texts, three ranks, two base models and three budgets."""
    axes = itertools.product(("shakespeare", "gsm8k"), (8, 16, 64), LORA_BASES, BUDGETS)
    studies = {}
    for text, rank, base, budget in axes:
        name = f"lora-{text}-r{rank}{base}{budget}"
        options = {"text": text, "rank": rank, **LORA_BASES[base], **BUDGETS[budget]}
        optimizers = ALL_LORA_OPTIMIZERS if name == LORA_HEADLINE else LORA_OPTIMIZERS
        studies[name] = Study("lora", options, optimizers, trials=5, settle=11)
    return studies


STUDIES: dict[str, Study] = {
    # Some seeds stay on the plateau of the bigrams for most of the 500 steps with AdamW: neither the choice of a
    # setting nor the final figures may hang on one seed.
    "lm-1m": Study(
        "lm",
        {"size": "1m", "steps": 500},
        (*MATRIX_OPTIMIZERS, "normuon", "scao_published"),
        trials=8,
        seeds=(*SEEDS, 45, 46),
        confirmations=3,
    ),
    **{
        f"lm-{size}": Study(
            "lm",
            {"size": size, "steps": 50, "evaluation_batches": 16},
            MATRIX_OPTIMIZERS,
            trials=5,
            blocks=3,
            settle=6,
        )
        for size in ("5m", "10m")
    },
    # Half of the 50 steps above are the learning rate's warm-up; these are long enough to tell optimizers apart. After
    # five trials the best of SCAO's learning rates was on the edge of those tried.
    **{
        f"lm-{size}-long": Study(
            "lm",
            {"size": size, "steps": 400, "evaluation_batches": 16},
            MATRIX_OPTIMIZERS,
            trials=7,
            blocks=3,
            settle=6,
        )
        for size in ("5m", "10m")
    },
    "quick": Study(
        "lm", {"size": "1m", "steps": 250}, MATRIX_OPTIMIZERS, trials=0, seeds=SEEDS[:1], blocks=2, settle=20
    ),
    "lm-1m-packages": Study("lm", {"size": "1m", "steps": 500}, PACKAGES, trials=8, confirmations=3),
    # GPT-2 small's layers over bytes, 65,536 a step: minutes a run on a GPU.
    "lm-85m": Study(
        "lm",
        {"size": "published-125m", "steps": 200, "rows": 64, "length": 1024, "precision": "bfloat16"},
        MATRIX_OPTIMIZERS,
        trials=5,
        rate=0.5,
        blocks=3,
        settle=11,
    ),
    "lm-125m": Study("lm", {"size": "125m", "steps": 2000, "length": 1024}, MATRIX_OPTIMIZERS, trials=8),
    "lm-350m": Study("lm", {"size": "350m", "steps": 2000, "length": 1024}, MATRIX_OPTIMIZERS, trials=8),
    **_lora_studies(),
    # What saves memory with QLoRA: paging, which 8-bit AdamW has there, needs a GPU and changes no number.
    "qlora-shakespeare-r16": Study(
        "lora",
        {"text": "shakespeare", "rank": 16, "quantized": True},
        ("adamw", "adamw8bit", "scao"),
        trials=5,
        settle=11,
    ),
    **{f"full-{text}": Study("full", {"text": text}, MATRIX_OPTIMIZERS, trials=6) for text in ("shakespeare", "gsm8k")},
    # BERT's layer norms come after the residual sums, and let it train at smaller learning rates only.
    "encoder": Study("encoder", {"steps": 300}, MATRIX_OPTIMIZERS, trials=6, rate=0.25),
}


def chosen_studies(names: Iterable[str], optimizers: Sequence[str] | None = None) -> dict[str, Study]:
    """Studies by name, with other optimizers if some are given.

    Raises:
        ValueError: an unknown study or optimizer, or one whose package is not installed.
    """
    found = {}
    for name in names:
        if name not in STUDIES:
            raise ValueError(f"unknown study {name!r}; there are {', '.join(STUDIES)}")
        found[name] = replace(STUDIES[name], optimizers=tuple(optimizers or STUDIES[name].optimizers))
        for optimizer in found[name].optimizers:
            if optimizer not in ADAPTERS:
                raise ValueError(f"unknown optimizer {optimizer!r}; there are {', '.join(ADAPTERS)}")
            if not ADAPTERS[optimizer].is_available:
                raise ValueError(f"{optimizer} needs the package {ADAPTERS[optimizer].package}: pip install '.[bench]'")
    return found
