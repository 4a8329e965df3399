"""What the sections of a recipe may hold: names and types read from the installed classes, so no list can go stale."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from scao_hf.finetune.config import DataSection, ModelSection
from scao_hf.hf.options import OPTIMIZERS, optimizer_class

Hints = dict[str, Any]
"""Type annotation of each legal key of a section."""

SECTIONS = ("model", "quantization", "lora", "data", "training", "scao")

DEFAULT_OPTIMIZER = "scao"

TRAINING_DEFAULTS = {"optim": DEFAULT_OPTIMIZER, "report_to": "none", "gradient_checkpointing": False}
"""Where a recipe's defaults differ from those of the class."""

EARLY_STOPPING: Hints = {"early_stopping_patience": int | None, "early_stopping_threshold": float | None}
"""Keys of `training` that are the arguments of `transformers.EarlyStoppingCallback(...)`."""

FORMATS = ("auto", "text", "prompt_completion", "alpaca", "messages", "sharegpt")
LOSSES = ("auto", "all", "completion", "assistant")

_CHOICES = {
    ("data", "format"): FORMATS,
    ("data", "loss_on"): LOSSES,
    ("model", "dtype"): ("auto", "float32", "bfloat16", "float16"),
}

CONVERTED_STARTS = ("pissa", "pissa_niter_4", "pissa_niter_16", "olora")
"""Starts of an adapter that change the base weights as well; what is saved is converted to fit the original ones."""

# The other starts of PEFT need data, or a quantized base of their own.
_LORA_STARTS = Literal[True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"]

ELSEWHERE = {
    "training": {
        "max_length": "write data.max_length",
        "packing": "write data.packing",
        "eval_packing": "the held-out rows are never packed",
        "assistant_only_loss": "write data.loss_on: assistant",
        "completion_only_loss": "write data.loss_on: completion",
        "dataset_text_field": "write data.column_mapping: {text: COLUMN}",
        "dataset_kwargs": "the section `data` says how rows are read",
        "model_init_kwargs": "write the section `model`",
        "trust_remote_code": "write model.trust_remote_code",
        "optim_args": "write the section `scao`",
        "resume_from_checkpoint": "`train --resume` goes on with a run",
        "enable_jit_checkpoint": "SIGTERM always leaves a checkpoint",
        "restore_callback_states_from_checkpoint": "a resumed run restores what it needs",
        "disable_tqdm": "the command line draws the progress",
        "log_level": "the command line keeps the libraries silent",
        "log_level_replica": "the command line keeps the libraries silent",
        "logging_nan_inf_filter": "a loss that is not finite always stops the run",
        "remove_unused_columns": "rows are reduced to their format's columns",
        "padding_free": "write data.packing",
        "bf16_full_eval": "evaluation runs in the model's dtype",
        "fp16_full_eval": "evaluation runs in the model's dtype",
        "eval_on_start": "the model is always evaluated before training",
        "push_to_hub": "upload the saved directory when the run is done",
        "do_train": "`train` trains",
        "do_eval": "write data.test_split_size or data.eval_path",
        "do_predict": "a sample is drawn before and after training; see data.sample_prompt",
        "local_rank": "the launcher sets it",
    },
    "scao": {
        "params": "the model's parameters are grouped by kind",
        "lr": "write training.learning_rate",
        "learning_rate": "write training.learning_rate",
        "weight_decay": "write training.weight_decay",
        "eps": "write training.adam_epsilon",
    },
    "lora": {
        "task_type": "it is always CAUSAL_LM",
        "peft_type": "the section `lora` is always LORA",
        "base_model_name_or_path": "write model.model_name_or_path",
        "revision": "write model.revision",
        "inference_mode": "an adapter in training is never in inference mode",
        "auto_mapping": "PEFT fills it in",
        "peft_version": "PEFT fills it in",
    },
}
"""Keys of a class that a recipe says elsewhere or not at all, and where."""

PEERS = {
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "lora_rank": "lora.r",
    "lora_r": "lora.r",
    "rank": "lora.r",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_modules": "lora.target_modules",
    "dataset": "data.path",
    "datasets": "data.path",
    "dataset_name": "data.path",
    "dataset_path": "data.path",
    "val_size": "data.test_split_size",
    "val_set_size": "data.test_split_size",
    "val_split_fraction": "data.test_split_size",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sample_packing": "data.packing",
    "train_on_input": "data.loss_on",
    "train_on_inputs": "data.loss_on",
    "mask_prompt": "data.loss_on",
    "template": "training.chat_template_path",
    "chat_template": "training.chat_template_path",
    "optimizer": "training.optim",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",
    "lr_warmup_steps": "training.warmup_steps",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "adam_beta1": "training.adam_beta1",
    "precondition_frequency": "scao.precond_freq",
    "precond_frequency": "scao.precond_freq",
}
"""Names that other tools use, offered as a hint for an unknown key."""

RENAMED = {
    "warmup_ratio": "warmup_steps",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Keys of `training` in other releases of transformers, and the name that the installed one may have instead."""

_OUTLIVED = ("no_cuda", "per_gpu_train_batch_size", "per_gpu_eval_batch_size")
"""Keys of `training` that some releases have beside their new names, and recipes never."""

DROPPED = {
    "overwrite_output_dir": "whether a directory may be overwritten is asked at the start of a run",
    "save_safetensors": "weights are always saved as safetensors",
}
"""Keys of `training` that some releases have and no run reads, and what holds instead."""


def current_name(key: str, value: Any, hints: Hints) -> tuple[str, Any] | None:
    """The name and value that the installed transformers has for a key of `training`; None if no run reads it.

    A key that is not known under any name comes back as it was.
    """
    if key in DROPPED:
        return None
    if key == "group_by_length" and "train_sampling_strategy" in hints:
        return "train_sampling_strategy", "group_by_length" if value else "random"
    new = RENAMED.get(key, key)
    return (new if new in hints else key), value


def section_hints(section: str, optimizer: str = "scao") -> Hints:
    """The legal keys of a section with their types, from the classes installed.

    Args:
        section: one of `SECTIONS`.
        optimizer: `training.optim`, which decides whose options the section `scao` holds.
    """
    hints = _READERS[section](optimizer)
    moved = ELSEWHERE.get(section, {})
    return {key: hint for key, hint in hints.items() if key not in moved and not key.startswith("hub_")}


def _model_hints(_optimizer: str) -> Hints:
    return _dataclass_hints(ModelSection, "model")


def _data_hints(_optimizer: str) -> Hints:
    return _dataclass_hints(DataSection, "data")


def _dataclass_hints(section: type, name: str) -> Hints:
    hints = typing.get_type_hints(section)
    return {key: Literal[_CHOICES[name, key]] if (name, key) in _CHOICES else hint for key, hint in hints.items()}


def _training_hints(_optimizer: str) -> Hints:
    from trl import SFTConfig

    import scao_hf

    scao_hf.register()
    hints = _field_hints(SFTConfig)
    # The types of `warmup_steps` and the life of `warmup_ratio` differ between releases. A recipe has the former alone,
    # and a fraction of all steps is turned into a count before transformers sees it.
    left_out = {"warmup_ratio", *_OUTLIVED, *DROPPED}
    return {key: hint for key, hint in hints.items() if key not in left_out} | {"warmup_steps": float} | EARLY_STOPPING


def _lora_hints(_optimizer: str) -> Hints:
    from peft import LoraConfig

    return _field_hints(LoraConfig) | {"init_lora_weights": _LORA_STARTS}


def _field_hints(cls: type) -> Hints:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _quantization_hints(_optimizer: str) -> Hints:
    from transformers import BitsAndBytesConfig

    return _signature_hints(BitsAndBytesConfig)


def _scao_hints(optimizer: str) -> Hints:
    if optimizer not in OPTIMIZERS:
        return {}
    hints = _signature_hints(optimizer_class(optimizer))
    if "warmup_steps" in hints:
        hints["warmup_steps"] = int | Literal["auto"]
    return hints


def _signature_hints(cls: Any) -> Hints:
    annotated = typing.get_type_hints(cls.__init__)
    hints = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        untyped = Any if parameter.default is None else type(parameter.default)
        hints[name] = annotated.get(name, untyped)
    return hints


_READERS = {
    "model": _model_hints,
    "data": _data_hints,
    "training": _training_hints,
    "lora": _lora_hints,
    "quantization": _quantization_hints,
    "scao": _scao_hints,
}


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value from YAML fits a type annotation; an integer is a float, a truth value is neither.

    A union of an enumeration with `str`, as transformers writes its choices, takes the enumeration's values only.
    """
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if not (member is str and _enumerations(arguments))]
        return any(accepts(member, value) for member in members)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (list, tuple, typing.get_origin(Iterable[Any])):
        return _accepts_items(origin, arguments, value)
    if isinstance(origin or hint, type) and issubclass(origin or hint, Mapping):
        return isinstance(value, dict) and all(accepts(arguments[1], item) for item in value.values() if arguments)
    return _accepts_plain(hint, value)


def _accepts_items(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if origin is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    return all(accepts(arguments[0], item) for item in value) if arguments else True


def _accepts_plain(hint: Any, value: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return hint in (str, bool, list) and isinstance(value, hint)


def expectation(hint: Any) -> str:
    """A type annotation in words: "a number", "true or false", "one of no, steps, epoch"."""
    if hint is Any:
        return "any value"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if not (member is str and _enumerations(arguments))]
        words = dict.fromkeys(expectation(member) for member in members if member is not types.NoneType)
        return " or ".join([word for word in words if word] + ["null"] * (types.NoneType in arguments))
    if origin is Literal:
        return _one_of([{True: "true", False: "false"}.get(choice, choice) for choice in arguments])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _one_of([str(member.value) for member in hint])
    if isinstance(origin or hint, type) and issubclass(origin or hint, Mapping):
        return "a mapping"
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list", tuple: "a list"}
    return plain.get(origin or hint, "")


def _one_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _enumerations(arguments: Iterable[Any]) -> list[type[enum.Enum]]:
    return [member for member in arguments if isinstance(member, type) and issubclass(member, enum.Enum)]


def choices(hint: Any) -> list[str]:
    """The words that a type annotation allows, if it allows only certain words."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [choice for choice in arguments if isinstance(choice, str)]
    if arguments:
        return [choice for member in arguments for choice in choices(member)]
    return [str(member.value) for enumeration in _enumerations([hint]) for member in enumeration]


_TELLING = 4
"""Letters that tell which word was begun."""


def closest(word: str, words: Iterable[str]) -> str | None:
    """The word of `words` most like a mistyped one, or the first that it begins; None if none is like it."""
    known = {one.lower(): one for one in words}
    word = word.lower()
    begun = [one for name, one in known.items() if len(word) >= _TELLING and name.startswith(word)]
    if begun:
        return begun[0]
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.7)

    def likeness(match: str) -> tuple[float, int]:
        # Of words equally like it, the one that begins as it does: a typo is rarely in the first letters.
        begins = sum(match.startswith(word[:length]) for length in range(1, len(word) + 1))
        return difflib.SequenceMatcher(None, match, word).ratio(), begins

    return known[max(matches, key=likeness)] if matches else None
