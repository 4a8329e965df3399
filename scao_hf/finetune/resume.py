"""Going on with an earlier run: from which checkpoint, with which changed settings, and what makes it impossible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scao_hf.finetune.checkpoints import (
    MARKER,
    Checkpoint,
    Incomplete,
    checkpoint_folders,
    checkpoints_in,
    last_checkpoint,
    read_checkpoint,
    remove_checkpoint,
)
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError, raise_all
from scao_hf.finetune.recipes import recipe_dict
from scao_hf.finetune.record import RUN, has_run, is_blank

_SECTIONS = ("model", "quantization", "lora", "data", "training", "scao")

_SHAPE = "the checkpoint's weights would not fit"
_OPTIMIZER = "it is part of the optimizer's state, which the checkpoint brings along"
_ROWS = "the rows, or their order, would be others than those that the steps so far have seen"
_SCHEDULE = "the learning rate's schedule is part of the checkpoint"

_FIXED_SECTIONS = {"quantization": _SHAPE, "lora": _SHAPE, "data": _ROWS, "scao": _OPTIMIZER}
_FIXED = {
    "model.model_name_or_path": _SHAPE,
    "model.revision": _SHAPE,
    "training.optim": "the checkpoint holds the state of the other one",
    **dict.fromkeys((f"training.{key}" for key in ("weight_decay", "adam_beta1", "adam_beta2")), _OPTIMIZER),
    **dict.fromkeys((f"training.{key}" for key in ("adam_epsilon", "optim_target_modules")), _OPTIMIZER),
    **dict.fromkeys((f"training.{key}" for key in ("lr_scheduler_type", "lr_scheduler_kwargs")), _SCHEDULE),
    **dict.fromkeys((f"training.{key}" for key in ("seed", "data_seed", "train_sampling_strategy")), _ROWS),
    **dict.fromkeys((f"training.{key}" for key in ("group_by_length", "length_column_name")), _ROWS),
    **dict.fromkeys((f"training.{key}" for key in ("dataloader_drop_last", "packing_strategy")), _ROWS),
    **dict.fromkeys((f"training.{key}" for key in ("chat_template_path", "eos_token", "pad_token")), _ROWS),
    **dict.fromkeys((f"training.{key}" for key in ("ignore_data_skip", "truncation_mode")), _ROWS),
}
_FREE = {
    "lora.lora_dropout",
    "data.path",  # the rows themselves are compared, wherever they lie
    "data.sample_prompt",
    "data.sample_tokens",
}
"""Keys of the fixed sections that a resumed run may change."""

_IGNORED = {"training.output_dir"}
_ROWS_PER_STEP = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
_BEYOND_BITS = {"model.dtype", "model.attn_implementation", "training.bf16", "training.fp16", "training.tf32"}


@dataclass(frozen=True)
class Change:
    """A setting that is another one than in the checkpoint's run."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} → {_shown(self.now)}"


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A checkpoint to go on from, or a run to begin again because it never got to one."""

    checkpoint: Checkpoint | None
    folder: Path
    """Of the run that is resumed."""
    output_dir: Path
    """Of the run to be; another folder than `folder` if the recipe says so."""
    notices: tuple[str, ...]

    @property
    def in_place(self) -> bool:
        """Whether the run goes on in its own folder."""
        return self.folder.resolve() == self.output_dir.resolve()


def find_resumption(wanted: Path | bool, output_dir: Path, overwrite: bool) -> Resumption:
    """The checkpoint to resume from, before anything is loaded.

    Args:
        wanted: a checkpoint's folder, a run's folder, or True for the last complete checkpoint of `output_dir`.
        output_dir: of the run to be.
        overwrite: whether later checkpoints than the one that is given may be removed.

    Raises:
        FinetuneError: resume.nothing, resume.incomplete, resume.later.
    """
    if wanted is True or not isinstance(wanted, Path):
        return _last_of(output_dir, output_dir)
    if not wanted.is_dir():
        raise FinetuneError("resume.nothing", f"no such directory: {wanted}", _others(output_dir))
    if not (wanted / MARKER).is_file() and has_run(wanted):
        return _last_of(wanted, output_dir)
    try:
        checkpoint = read_checkpoint(wanted)
    except Incomplete as reason:
        hint = _others(wanted.parent)
        raise FinetuneError("resume.incomplete", f"{wanted} cannot be resumed from: {reason}", hint) from None
    resumption = Resumption(checkpoint=checkpoint, folder=wanted.absolute().parent, output_dir=output_dir, notices=())
    if resumption.in_place and not overwrite:
        _refuse_to_drop_later(resumption)
    return resumption


def _last_of(folder: Path, output_dir: Path) -> Resumption:
    whole, sentences = checkpoints_in(folder)
    checkpoint = whole[-1] if whole else None
    if checkpoint is None and not has_run(folder) and not (folder.is_dir() and is_blank(folder)):
        reason = "holds no run" if folder.is_dir() else "does not exist"
        raise FinetuneError("resume.nothing", f"{folder} {reason}, so there is nothing to resume", _others(folder))
    if checkpoint is None:
        sentences = [*sentences, f"{folder} has no complete checkpoint yet: the run begins again"]
    return Resumption(checkpoint=checkpoint, folder=folder, output_dir=output_dir, notices=tuple(sentences))


def _others(folder: Path) -> str:
    """Checkpoints in the neighbourhood of a folder that has none, or what to do without one."""
    parent = folder.absolute().parent
    folders = [folder, *sorted(entry for entry in parent.glob("*") if entry.is_dir())] if parent.is_dir() else []
    found = [path for path in map(last_checkpoint, folders) if path is not None]
    if found:
        return "; ".join(f"--resume-from {_relative(path)}" for path in dict.fromkeys(found[:4]))
    return "leave --resume out to begin a run"


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _refuse_to_drop_later(resumption: Resumption) -> None:
    assert resumption.checkpoint is not None
    later = _later_folders(resumption.checkpoint)
    if later:
        message = f"{later[-1]} was saved after {resumption.checkpoint.path.name}, and would be replaced"
        hint = "--resume goes on from the last one; --overwrite drops the later ones; training.output_dir=NEW keeps all"
        raise FinetuneError("resume.later", message, hint)


def _later_folders(checkpoint: Checkpoint) -> list[Path]:
    folders = checkpoint_folders(checkpoint.path.parent)
    names = [path.name for path in folders]
    return folders[names.index(checkpoint.path.name) + 1 :]


def drop_later(resumption: Resumption) -> None:
    """Remove what the run did after the checkpoint that it goes on from."""
    if resumption.checkpoint is not None and resumption.in_place:
        for path in _later_folders(resumption.checkpoint):
            remove_checkpoint(path)


# Settings


def facts_of(recipe: Recipe, data: str, model: str, world_size: int) -> dict[str, Any]:
    """What a checkpoint notes of its run, so that a later one can be compared with it.

    Args:
        recipe: with its format and loss resolved, and the other values as they were given.
        data: fingerprint of the rows.
        model: fingerprint of the model's files.
        world_size: processes.
    """
    sections = recipe_dict(recipe)
    kept = {name: sections[name] for name in _SECTIONS}
    return {"recipe": kept, "data": data, "model": model, "world_size": world_size}


def changes_since(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> list[Change]:
    """What is set otherwise than in the checkpoint's run; a key that is left out counts as its default."""
    before, now = (_settled(run["recipe"]) for run in (checkpoint.facts, facts))
    keys = sorted(before.keys() | now.keys())
    return [Change(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def check_resumable(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> list[Change]:
    """The settings that a resumed run changes, after those that it cannot change were refused.

    Args:
        checkpoint: to go on from.
        facts: of the run to be (`facts_of`).

    Raises:
        FinetuneError: resume.data, resume.changed; together if there are several.
    """
    changes = [change for change in changes_since(checkpoint, facts) if change.key not in _IGNORED]
    if any(change.key == "training.optim" for change in changes):
        # Another optimizer has other options, none of which is worth a word of its own.
        changes = [change for change in changes if not change.key.startswith("scao")]
    problems = [*_changed_rows(checkpoint, facts), *_changed_batches(checkpoint, facts)]
    problems += [_refusal(change, reason) for change in changes if (reason := _fixed(change.key)) is not None]
    raise_all(problems, "what is to be resumed")
    return changes


def notices_of(checkpoint: Checkpoint, changes: list[Change], facts: Mapping[str, Any]) -> Iterator[str]:
    """What the user is told before a run goes on."""
    yield f"going on from {checkpoint.path}, step {checkpoint.step}"
    for change in changes:
        yield f"changed since the checkpoint: {change}"
    if any(change.key in _BEYOND_BITS for change in changes):
        yield "with another precision the run goes on, but not bit for bit as it would have"
    if checkpoint.facts.get("model") != facts["model"]:
        yield "the model's files are not those of the checkpoint's run, or were written again since"


def with_settled_options(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with what "auto" became in the checkpoint's run, which another number of steps does not change."""
    return dataclasses.replace(recipe, scao={**recipe.scao, **checkpoint.facts["options"]})


def learning_rate_factor(checkpoint: Checkpoint, changes: list[Change]) -> float:
    """What the checkpoint's learning rates are to be multiplied with."""
    for change in changes:
        if change.key == "training.learning_rate" and change.before:
            return float(change.now) / float(change.before)
    return 1.0


def check_steps(checkpoint: Checkpoint, total: int, folder: Path) -> None:
    """Refuse a run that has made all its steps and is finished, or more steps than it is to have.

    Args:
        checkpoint: to go on from.
        total: steps of the run to be.
        folder: of the run that is resumed.

    Raises:
        FinetuneError: resume.finished, resume.too-few-steps.
    """
    if checkpoint.step > total:
        message = f"{checkpoint.path} has made {checkpoint.step} steps, and the run is to have {total}"
        hint = f"training.max_steps={checkpoint.step + 1} or more"
        raise FinetuneError("resume.too-few-steps", message, hint)
    record = _record(folder)
    if record.get("status") != "finished":
        return
    if checkpoint.step == total:
        message = f"{folder} is finished: all {total} steps are made"
        raise FinetuneError("resume.finished", message, f"for more steps: training.max_steps={2 * total}")


def _record(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # A checkpoint may be resumed without the run around it.
        return {}


def _changed_rows(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Iterator[FinetuneError]:
    if checkpoint.facts["data"] != facts["data"]:
        path = facts["recipe"]["data"]["path"]
        message = f"the rows of {path} are not those that {checkpoint.path} was trained on: {_ROWS}"
        hint = "give the same data, or begin a new run: training.output_dir=NEW without --resume"
        yield FinetuneError("resume.data", message, hint)


def _changed_batches(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Iterator[FinetuneError]:
    """Two settings that may change together: the same rows in more and smaller pieces."""
    before, now = _rows_per_step(checkpoint.facts), _rows_per_step(facts)
    if before != now:
        message = f"a step has {now} rows, and had {before} in {checkpoint.path}: {_ROWS}"
        first, second = (key.removeprefix("training.") for key in _ROWS_PER_STEP)
        hint = f"keep the product of {first}, {second} and the number of processes: halve one and double the other"
        yield FinetuneError("resume.changed", message, hint)


def _rows_per_step(facts: Mapping[str, Any]) -> int:
    settled = _settled(facts["recipe"])
    first, second = (int(settled[key]) for key in _ROWS_PER_STEP)
    return first * second * int(facts["world_size"])


def _fixed(key: str) -> str | None:
    """Why a key must stay as it is; None if it may change."""
    if key in _FREE:
        return None
    return _FIXED.get(key) or _FIXED_SECTIONS.get(key.partition(".")[0])


def _refusal(change: Change, reason: str) -> FinetuneError:
    message = f"`{change.key}` is {_shown(change.now)}, and was {_shown(change.before)} in the checkpoint: {reason}"
    if change.key in _FIXED_SECTIONS:
        hint = "begin a new run: training.output_dir=NEW without --resume"
    else:
        hint = f"{change.key}={_shown(change.before)}, or a new run: training.output_dir=NEW without --resume"
    return FinetuneError("resume.changed", message, hint)


def _settled(sections: Mapping[str, Any]) -> dict[str, Any]:
    """All settings by "section.key", what was left out with its default; a section that is off is one setting."""
    optimizer = str(sections["training"]["optim"])
    flat: dict[str, Any] = {}
    for name in _SECTIONS:
        values = sections[name]
        if values is None:
            flat[name] = None
        else:
            filled = {**_defaults(name, optimizer), **values}
            flat |= {f"{name}.{key}": _plain(value) for key, value in filled.items()}
    return flat


def _defaults(section: str, optimizer: str) -> dict[str, Any]:
    from peft import LoraConfig
    from trl import SFTConfig

    from scao_hf.hf.options import OPTIMIZERS, option_defaults

    if section == "scao":
        return option_defaults(optimizer) if optimizer in OPTIMIZERS else {}
    cls = {"training": SFTConfig, "lora": LoraConfig}.get(section)
    if cls is None:
        return {}
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
