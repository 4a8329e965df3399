"""One table of optimizers: how each is built, in its fastest form, and where its search starts.

Every one is given the same parameter groups. A setting is

    lr                  of matrices and LoRA factors
    auxiliary           factor on it for embeddings, heads and vectors; LoRA has none of them
    betas               (β₁, β₂)
    weight_decay        decoupled, of everything but vectors

and whatever else an optimizer's search turns, or is to replace what its adapter fixes. Starts are what the literature
and earlier measurements suggest; a start only saves trials, since the learning rates must bracket the optimum anyway.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scao_hf import parameter_groups
from scao_hf.finetune.comparison.runs import Setting, digest
from scao_hf.finetune.comparison.tuning import Space

Build = Callable[[nn.Module, Setting], torch.optim.Optimizer]
FAST, EVEN, SLOW = (0.9, 0.95), (0.95, 0.95), (0.9, 0.99)
"""Betas that are tried."""
ROOT = Path(__file__).resolve().parent.parent
OWN_PACKAGES = ("scao_hf.", "benchmarks.")
AUXILIARY_KINDS = ("embedding", "head", "vector")
COMMON = ("lr", "auxiliary", "betas", "weight_decay")


@dataclass(frozen=True)
class Adapter:
    """An optimizer of the suite.

    Args:
        title: as figures and tables call it.
        build: from a model and a setting.
        start: where its search starts, for training from scratch.
        alternatives: what else the search tries, coordinate by coordinate; the same number of values for all.
        lora_start: where it starts on LoRA; None is not run there.
        package: what has to be installed beside the suite, as importlib knows it.
        owns_schedule: the method replaces the learning-rate schedule (schedule-free); such runs are not compared with
            the others.
    """

    title: str
    build: Build
    start: Setting
    alternatives: Mapping[str, Sequence[Any]]
    lora_start: Setting | None = None
    package: str | None = None
    owns_schedule: bool = False
    source: str = ""
    """What its runs depend on beside torch: a module of the project, with all it imports from it, or a distribution."""

    @property
    def is_available(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def space(self, lora: bool = False) -> Space:
        start = self.lora_start if lora else self.start
        if start is None:
            raise ValueError(f"{self.title} has no setting for LoRA to start from")
        alternatives = {name: values for name, values in self.alternatives.items() if name in start}
        return Space({name: _json(value) for name, value in start.items()}, _json(alternatives))

    def version(self) -> str:
        """What a cached run of it depends on beside its configuration."""
        parts = [f"torch {torch.__version__.partition('+')[0]}"]
        if self.source.startswith(OWN_PACKAGES):
            parts.append(f"{self.source} {code_digest(self.source)}")
        elif self.source:
            parts.append(f"{self.source} {importlib.metadata.version(self.source)}")
        if fixed := getattr(self.build, "fixed", None):
            parts.append(f"fixed {digest(fixed)}")
        return ", ".join(parts)


@functools.cache  # what runs is the code that was there when it was imported, whatever is written to it since
def code_digest(module: str, root: Path = ROOT) -> str:
    """16 hexadecimal digits of the code of one of the project's modules and of all it imports from the project.

    Comments, docstrings and formatting do not count. Read once in a process.
    """
    state = hashlib.sha256()
    for name, tree in sorted(_with_imports(module, root, {}).items()):
        state.update(name.encode())
        state.update(ast.dump(_without_docstrings(tree)).encode())
    return state.hexdigest()[:16]


def _with_imports(module: str, root: Path, found: dict[str, ast.Module]) -> dict[str, ast.Module]:
    """Syntax trees by module, added to `found`."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found[module] = ast.parse(path.read_text(encoding="utf-8"))
    imported = [node.module for node in ast.walk(found[module]) if isinstance(node, ast.ImportFrom) and node.module]
    for name in imported:
        if name.startswith(OWN_PACKAGES) and name not in found:
            _with_imports(name, root, found)
    return found


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _json(value: Any) -> Any:
    """With tuples as lists, as a setting comes back from a file."""
    if isinstance(value, Mapping):
        return {name: _json(part) for name, part in value.items()}
    return [_json(part) for part in value] if isinstance(value, (tuple, list)) else value


def groups_of(model: nn.Module, setting: Setting, names: bool = True) -> list[dict[str, Any]]:
    """The parameter groups that every optimizer is given, with their learning rates."""
    scale = dict.fromkeys(AUXILIARY_KINDS, float(setting.get("auxiliary", 1.0)))
    return parameter_groups(model, setting["weight_decay"], lr=setting["lr"], lr_scale=scale, names=names)


def keywords(setting: Setting) -> dict[str, Any]:
    """The arguments beside the groups: betas and what is the optimizer's own."""
    own = {name: value for name, value in setting.items() if name not in COMMON}
    return {"lr": setting["lr"], "weight_decay": setting["weight_decay"], "betas": tuple(setting["betas"]), **own}


@dataclass(frozen=True)
class FromGroups:
    """Builds a class of optimizers from the common groups; a setting's own values override what is fixed here."""

    module: str
    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: bool = True
    """Whether the class knows groups of (name, parameter)."""

    def __call__(self, model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
        cls = getattr(importlib.import_module(self.module), self.name)
        return cls(groups_of(model, setting, self.names), **{**self.fixed, **keywords(setting)})


def _lora_plus(model: Any, setting: Setting) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    own = keywords(setting)
    ratio = own.pop("ratio")
    return create_loraplus_optimizer(model, torch.optim.AdamW, loraplus_lr_ratio=ratio, fused=True, **own)


def _riemannian(model: Any, setting: Setting) -> torch.optim.Optimizer:
    from peft.optimizers import create_riemannian_optimizer

    return create_riemannian_optimizer(model, torch.optim.AdamW, fused=True, **keywords(setting))


def _lora_fa(model: Any, setting: Setting) -> torch.optim.Optimizer:
    from peft.optimizers import create_lorafa_optimizer

    config = model.peft_config["default"]
    return create_lorafa_optimizer(model, config.r, config.lora_alpha, setting["lr"], setting["weight_decay"])


def _setting(lr: float, auxiliary: float, betas: tuple[float, float], weight_decay: float = 0.1, **own: Any) -> Setting:
    return {"lr": lr, "auxiliary": auxiliary, "betas": betas, "weight_decay": weight_decay, **own}


def _lora_setting(lr: float, betas: tuple[float, float] = (0.9, 0.99), **own: Any) -> Setting:
    return {"lr": lr, "betas": betas, "weight_decay": 0.0, **own}


def _others(auxiliary: float) -> dict[str, Any]:
    """Alternatives to a start, in the order in which they are tried; the start's own values are not tried again."""
    return {"auxiliary": (auxiliary,), "betas": (FAST, EVEN, SLOW), "weight_decay": (0.01,)}


SHAMPOO = {
    "graft_type": 3,  # to RMSProp's norm, so that the learning rates are of AdamW's size
    "preconditioning_compute_steps": 10,
    "moving_average_for_momentum": True,
    "decoupled_weight_decay": True,
}

ADAPTERS: dict[str, Adapter] = {
    "adamw": Adapter(
        "AdamW",
        FromGroups("torch.optim", "AdamW", {"fused": True}),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
    ),
    # The same numbers, slower; for those who cannot take the fused kernel, and as the step's cost without it.
    "adamw_foreach": Adapter(
        "AdamW (foreach)",
        FromGroups("torch.optim", "AdamW", {"foreach": True}),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
    ),
    "scao": Adapter(
        "SCAO",
        FromGroups("scao_hf", "SCAO"),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        source="scao_hf.optim.scao",
    ),
    "scao_published": Adapter(
        "SCAO as published",
        FromGroups("scao_hf", "PublishedSCAO", {"warmup_steps": 100, "precond_freq": 10, "k_max": 64}),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        source="scao_hf.optim.published",
    ),
    "soap": Adapter(
        "SOAP",
        FromGroups("scao_hf", "SOAP"),
        _setting(8e-3, 0.5, EVEN),
        _others(1.0),
        _lora_setting(1e-2),
        source="scao_hf.optim.soap",
    ),
    "muon": Adapter(
        "Muon",
        FromGroups("benchmarks.muon", "Muon"),
        _setting(2e-2, 0.2, EVEN),
        _others(0.4),
        _lora_setting(1e-2),
        source="benchmarks.muon",
    ),
    "normuon": Adapter(
        "NorMuon-like",
        FromGroups("benchmarks.muon", "Muon", {"normalise_rows": True}),
        _setting(2e-2, 0.2, EVEN),
        _others(0.4),
        _lora_setting(1e-2),
        source="benchmarks.muon",
    ),
    "loraplus": Adapter(
        "LoRA+",
        _lora_plus,
        {},
        {"ratio": (16.0,), "betas": (FAST, EVEN, SLOW), "weight_decay": (0.01,)},
        _lora_setting(5e-3, ratio=4.0),
        package="peft",
        source="peft",
    ),
    "lorafa": Adapter(
        "LoRA-FA",
        _lora_fa,
        {},
        {"weight_decay": (0.01,)},
        {"lr": 1e-2, "weight_decay": 0.0},
        package="peft",
        source="peft",
    ),
    "riemannian": Adapter(
        "Riemannian AdamW",
        _riemannian,
        {},
        {"betas": (FAST, EVEN, SLOW), "weight_decay": (0.01,)},
        _lora_setting(1e-2),
        package="peft",
        source="peft",
    ),
    "soap_pytorch_optimizer": Adapter(
        "SOAP (pytorch-optimizer)",
        FromGroups("pytorch_optimizer", "SOAP", names=False),
        _setting(8e-3, 0.5, EVEN),
        _others(1.0),
        _lora_setting(1e-2),
        "pytorch_optimizer",
        source="pytorch_optimizer",
    ),
    "shampoo": Adapter(
        "Shampoo (pytorch-optimizer)",
        FromGroups("pytorch_optimizer", "ScalableShampoo", SHAMPOO, names=False),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        package="pytorch_optimizer",
        source="pytorch_optimizer",
    ),
    "scao_pypi": Adapter(
        "SCAO (PyPI)",
        FromGroups("scao", "SCAO", {"warmup_steps": 25, "precond_freq": 10, "k_max": 64}, names=False),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        "scao",
        source="scao",
    ),
    "schedulefree": Adapter(
        "Schedule-Free AdamW",
        FromGroups("schedulefree", "AdamWScheduleFree", names=False),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        "schedulefree",
        owns_schedule=True,
        source="schedulefree",
    ),
    "adamw8bit": Adapter(
        "AdamW 8-bit",
        FromGroups("bitsandbytes.optim", "AdamW8bit", names=False),
        _setting(4e-3, 1.0, FAST),
        _others(0.5),
        _lora_setting(1e-2),
        "bitsandbytes",
        source="bitsandbytes",
    ),
}
