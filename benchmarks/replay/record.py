"""The gradients of chosen layers, recorded once as the optimizer saw them: after clipping, before its step."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.optimizers import ADAPTERS
from benchmarks.suite import Machine, configuration, make_task
from benchmarks.tasks.models import SHAPES
from benchmarks.training import train
from scao_hf import parameter_groups
from scao_hf.finetune.comparison.runs import canonical, digest
from scao_hf.finetune.comparison.study import Config

VERSION = 1
"""Counts changes that make earlier recordings incomparable."""


@dataclass(frozen=True)
class Layer:
    """One weight (m, n) and its gradients.

    Args:
        name: of the module.
        treatment: `kind` and, where the kind decides them, `sides`, as `scao_hf.parameter_groups` has them.
        gradients: (steps, m, n), float32.
    """

    name: str
    treatment: Mapping[str, str]
    gradients: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        _, rows, columns = self.gradients.shape
        return rows, columns

    @property
    def side(self) -> str:
        """The short one: "left" where there are no more rows than columns."""
        return "left" if self.shape[0] <= self.shape[1] else "right"

    @property
    def short_first(self) -> Tensor:
        """The gradients, turned so that their short side comes first."""
        return self.gradients if self.side == "left" else self.gradients.mT.contiguous()


@dataclass(frozen=True)
class Recording:
    """Gradients of several layers in the same steps of one run.

    Args:
        config: all that determined them.
        layers: with their gradients.
        losses: training loss of every recorded step, nats.
    """

    config: Config
    layers: Sequence[Layer]
    losses: Sequence[float]


def recording_configuration(
    machine: Machine, size: str, optimizer: str, seed: int, steps: int, window: int, layers: Sequence[str]
) -> Config:
    """All that determines a recording: a run of task `lm`, and which of its gradients are kept.

    Args:
        machine: where the run is made.
        size: of the model.
        optimizer: a key of `ADAPTERS`, at the setting its search starts from.
        seed: of initialisation and data order.
        steps: of the run, whose schedule ends with them.
        window: the last so many steps are recorded.
        layers: names of modules with a weight matrix.

    Raises:
        ValueError: an unknown size, optimizer or layer; a window longer than the run; an optimizer's own schedule.
    """
    for name, value, known in (("size", size, SHAPES), ("optimizer", optimizer, ADAPTERS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}")
    if not 1 <= window <= steps:
        raise ValueError(f"window must be in [1, {steps}], the steps of the run, got {window}")
    if ADAPTERS[optimizer].owns_schedule:
        raise ValueError(f"optimizer must follow the common schedule, got {optimizer!r}; record from adamw")
    unseen = {"evaluate_every": steps, "evaluation_batches": 1, "curve_batches": 1}
    config = configuration(
        machine,
        "lm",
        {"size": size, "steps": steps, **unseen},
        optimizer,
        ADAPTERS[optimizer].space().start,
        seed,
        recording={"version": VERSION, "window": window, "layers": list(layers)},
    )
    matrices = treatments(make_task(machine, config["task"]).model(seed))
    if strangers := [name for name in layers if name not in matrices]:
        raise ValueError(f"layers: no matrix in {', '.join(strangers)}; the model has {', '.join(matrices)}")
    return config


def treatments(model: nn.Module) -> dict[str, dict[str, str]]:
    """Kind and sides of every module with a weight matrix, in the model's order."""
    names = {parameter: name.removesuffix(".weight") for name, parameter in model.named_parameters()}
    found: dict[str, dict[str, str]] = {}
    for group in parameter_groups(model, names=False):
        treatment = {key: value for key, value in group.items() if key in ("kind", "sides")}
        found |= {names[parameter]: treatment for parameter in group["params"] if parameter.ndim == 2}
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def record(machine: Machine, config: Config, folder: Path) -> Recording:
    """Read the recording of a configuration from a folder; make it first if it is not there.

    Raises:
        RuntimeError: the run diverged.
    """
    path = folder / f"gradients-{digest(config)}.safetensors"
    if not path.exists():
        _make(machine, config, path)
    return _read(path)


def _make(machine: Machine, config: Config, path: Path) -> None:
    torch.set_num_threads(1)
    names, window = config["recording"]["layers"], config["recording"]["window"]
    seen: dict[str, deque[Tensor]] = {name: deque(maxlen=window) for name in names}
    treated: dict[str, Any] = {}

    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = ADAPTERS[config["optimizer"]].build(model, config["setting"])
        weights = {name: model.get_parameter(f"{name}.weight") for name in names}
        treated.update(treatments(model))

        def keep(*_: Any) -> None:
            for name, weight in weights.items():
                assert weight.grad is not None
                seen[name].append(weight.grad.to("cpu", torch.float32, copy=True))

        optimizer.register_step_pre_hook(keep)
        return optimizer

    outcome = train(make_task(machine, config["task"]), build, config["seed"], torch.device(machine.device))
    if outcome.measures["diverged_at"] is not None:
        raise RuntimeError(f"the run to record diverged at step {outcome.measures['diverged_at']}; try another seed")
    facts = {
        "config": config,
        "treatments": {name: treated[name] for name in names},
        "losses": outcome.measures["train_losses"][-window:],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    tensors = {name: torch.stack(list(gradients)) for name, gradients in seen.items()}
    save_file(tensors, unfinished, {name: canonical(value) for name, value in facts.items()})
    unfinished.replace(path)


def _read(path: Path) -> Recording:
    with safe_open(path, framework="pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
        layers = [
            Layer(name, facts["treatments"][name], file.get_tensor(name))
            for name in facts["config"]["recording"]["layers"]
        ]
    return Recording(facts["config"], layers, facts["losses"])
