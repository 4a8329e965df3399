"""`optim="scao"`, `"scao_published"` and `"soap"` for transformers' TrainingArguments and Trainer.

transformers has no public way to name an optimizer: `TrainingArguments.optim` is a closed enumeration, and the table
behind it (transformers 5.2 and later) is private. So the names are added to the enumeration in place, to that table
where there is one, and `Trainer.get_optimizer_cls_and_kwargs` answers for them. `Trainer.create_scheduler`, which is
told how many steps a run has, tells SCAO. `import scao_hf` does this as soon as transformers' modules are imported,
before or after, without importing them itself.

This module and everything it imports at the top must stay free of torch and transformers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from scao_hf.hf.options import OPTIMIZERS

_OWN: set[str] = set()
"""The names that were added here; one that transformers brings itself is transformers'."""


class RegistrationError(RuntimeError):
    """This version of transformers keeps its optimizers somewhere else."""

    def __init__(self, missing: str) -> None:
        version = getattr(sys.modules.get("transformers"), "__version__", "(unknown version)")
        super().__init__(
            f"optim={' / '.join(map(repr, OPTIMIZERS))} cannot be registered with transformers {version}: {missing}. "
            "Pass optimizers=(scao_hf.SCAO(scao_hf.parameter_groups(model)), None) to Trainer instead"
        )


def register() -> None:
    """Make the optimizers' names legal for TrainingArguments now, importing transformers. Idempotent.

    `import scao_hf` does the same without importing transformers, unless SCAO_HF_NO_AUTO_REGISTER=1 is set.

    Raises:
        RegistrationError: transformers has moved the private names that this needs.
        ModuleNotFoundError: transformers is not installed.
    """
    for name, patch in _PATCHES.items():
        if importlib.util.find_spec(name) is not None:
            patch(importlib.import_module(name))


def register_on_import() -> None:
    """Patch transformers' modules that are loaded, and have the others patched when they are imported."""
    if not any(isinstance(finder, _PatchingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PatchingFinder())
    for name in _PATCHES:
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            _patch_or_warn(module)


def _patch_or_warn(module: ModuleType) -> None:
    # An error here would break `import transformers` for a program that may not want these optimizers at all.
    try:
        _PATCHES[module.__name__](module)
    except RegistrationError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; has the loaders of the modules to patch do it right after they have run the module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _patch_after(spec.loader)
        return spec


def _patch_after(loader: importlib.abc.Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _patch_or_warn(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


# transformers.training_args


def _extend_names(module: ModuleType) -> None:
    names = getattr(module, "OptimizerNames", None)
    if not (isinstance(names, type) and issubclass(names, str) and issubclass(names, Enum)):
        raise RegistrationError("transformers.training_args has no enumeration OptimizerNames")
    for value in OPTIMIZERS:
        if value not in {member.value for member in names}:
            _add_member(names, value)
            _OWN.add(value)
        if value not in {member.value for member in names} or names(value) != value:
            raise RegistrationError(f"OptimizerNames does not take the new member {value!r}")


def _add_member(names: Any, value: str) -> None:
    """Add a member to an existing `class OptimizerNames(str, Enum)`, as its own definition would have."""
    member = str.__new__(names, value)
    member._name_ = value.upper()
    member._value_ = value
    member.__objclass__ = names
    member._sort_order_ = len(names._member_names_)
    # A pickled member would need this package to be unpickled; as the string that it equals, training_args.bin can be
    # read anywhere, and TrainingArguments makes the member of it again.
    member.__reduce_ex__ = lambda protocol: (str, (value,))
    names._member_names_.append(member._name_)
    names._member_map_[member._name_] = member
    names._value2member_map_[value] = member
    if hasattr(names, "_hashable_values_"):
        names._hashable_values_.append(value)
    type.__setattr__(names, member._name_, member)


# transformers.trainer_optimizer, since 5.2


def _extend_handlers(module: ModuleType) -> None:
    handlers = getattr(module, "_OPTIMIZER_HANDLERS", None)
    if not isinstance(handlers, dict):
        raise RegistrationError("transformers.trainer_optimizer has no table _OPTIMIZER_HANDLERS")
    for value in OPTIMIZERS:
        handlers.setdefault(value, _handle)


def _handle(context: Any) -> tuple[Any, dict[str, Any]]:
    """A handler of the table: context has `args` and `model`."""
    from scao_hf.hf.arguments import optimizer_and_kwargs

    return optimizer_and_kwargs(context.args, context.model)


# transformers.trainer


def _wrap_trainer(module: ModuleType) -> None:
    trainer: Any = getattr(module, "Trainer", None)
    for name in ("get_optimizer_cls_and_kwargs", "create_scheduler"):
        if getattr(trainer, name, None) is None:
            raise RegistrationError(f"transformers.Trainer has no method {name}")
    if not hasattr(trainer.get_optimizer_cls_and_kwargs, "_scao_hf_answers"):
        trainer.get_optimizer_cls_and_kwargs = staticmethod(_answer_before(trainer.get_optimizer_cls_and_kwargs))
    if not hasattr(trainer.create_scheduler, "_scao_hf_tells"):
        trainer.create_scheduler = _tell_before(trainer.create_scheduler)


def _answer_before(published: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """`Trainer.get_optimizer_cls_and_kwargs`, which before 5.2 is the only place to answer for a new name.

    From 5.2 on the table has the answer too, but Trainer takes `optim_args` apart before it asks the table, and a
    misspelt text ends there as "not enough values to unpack".
    """

    @functools.wraps(published)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        from scao_hf.hf.arguments import optimizer_and_kwargs, optimizer_name

        if optimizer_name(args) in _OWN:
            return optimizer_and_kwargs(args, model)
        return published(args, model)

    get_optimizer_cls_and_kwargs._scao_hf_answers = True  # type: ignore[attr-defined]
    return get_optimizer_cls_and_kwargs


def _tell_before(published: Callable[..., Any]) -> Callable[..., Any]:
    """`Trainer.create_scheduler`, where the optimizer is there and the length of the run is known."""

    @functools.wraps(published)
    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None, *args: Any, **kwargs: Any) -> Any:
        from scao_hf.hf.callback import tell_total_steps

        tell_total_steps(self.optimizer if optimizer is None else optimizer, num_training_steps)
        return published(self, num_training_steps, optimizer, *args, **kwargs)

    create_scheduler._scao_hf_tells = True  # type: ignore[attr-defined]
    return create_scheduler


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.training_args": _extend_names,
    "transformers.trainer_optimizer": _extend_handlers,
    "transformers.trainer": _wrap_trainer,
}
