"""What a run was and came to, as a person reads it: for its page, its model card and `runs show`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scao_hf.finetune.layout import RESOLVED
from scao_hf.finetune.observer import rows_in_words, steps_in_words
from scao_hf.finetune.results.folder import RunFolder
from scao_hf.finetune.units import counted

Row = tuple[str, str]

EMBEDDED_MODEL = "tiny-llama"
_PROCESSOR = (("cpus", "core"), ("threads", "torch thread"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights")


def recipe_of(run: RunFolder) -> Mapping[str, Any]:
    """The sections of the resolved recipe, as plain values; empty if the file is not there."""
    path = run.path / RESOLVED
    if not path.is_file():
        return {}
    from scao_hf.finetune.yaml_core import read_document

    data: Mapping[str, Any] = read_document(path.read_text(encoding="utf-8"), str(path)).data
    return data


def hub_id(name: str) -> str | None:
    """`name` if it can only be on the hub; None for a directory, a file, or what comes with this package."""
    is_local = name == EMBEDDED_MODEL or Path(name).expanduser().exists()
    return name if _HUB_ID.fullmatch(name) and not is_local else None


def public_name(name: str) -> str:
    """A name without this machine's folders: a hub id as it is, of a path its last part."""
    return hub_id(name) or (name if ":" in name else Path(name).name)


def settings(run: RunFolder) -> list[Row]:
    """What was trained, on what, and how."""
    return list(_settings(run.info, recipe_of(run), run))


def _settings(info: Mapping[str, Any], recipe: Mapping[str, Any], run: RunFolder) -> Iterator[Row]:
    training = recipe.get("training") or {}
    yield "Base model", _model(info, recipe)
    yield "Trained", f"{info['trainable_parameters']:,} of {info['total_parameters']:,} parameters"
    if lora := recipe.get("lora"):
        yield "Adapter", pairs({name: lora[name] for name in _LORA if lora.get(name) not in (None, False)})
    yield "Data", f"{public_name(info['dataset'])} ({info['dataset_format']}), {rows_in_words(info['train_rows'])}"
    yield "Held out", f"{info['eval_rows']} rows" if info["eval_rows"] else "nothing"
    yield "Loss on", {"all": "all tokens", "completion": "completions", "assistant": "assistant turns"}[info["loss_on"]]
    yield "Optimizer", str(info["optimizer"])
    if options := recipe.get("scao"):
        yield "Its options", pairs(options)
    yield "Learning rate", f"{info['learning_rate']:g}, {_schedule(info, training)}"
    yield "Weight decay", f"{training.get('weight_decay', 0.0):g}"
    yield "Steps", steps_in_words(info["total_steps"], info["rows_per_step"], info["epochs"])
    if info.get("adam_steps") is not None:
        yield "Adam phase", f"{info['adam_steps']} steps"
    yield "Precision", f"{info['dtype']} on {info['device']}"
    yield "Seed", str(run.facts.get("seed"))


def _model(info: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    section = recipe.get("model") or {}
    extra = [f"revision {section['revision']}"] if section.get("revision") else []
    extra += ["random weights"] if section.get("from_scratch") else []
    extra += ["comes with scao-hf"] if info["model"] == EMBEDDED_MODEL else []
    if quantization := recipe.get("quantization"):
        extra.append("quantized: " + pairs(quantization))
    return public_name(info["model"]) + (f" ({'; '.join(extra)})" if extra else "")


def _schedule(info: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    warmup = counted(info["lr_warmup_steps"], "step")
    return f"{training.get('lr_scheduler_type') or 'linear'} after {warmup} of warm-up"


def pairs(options: Mapping[str, Any]) -> str:
    """`k_max 16, precond_freq 10`."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def versions(run: RunFolder) -> list[Row]:
    """The packages that the run used."""
    return [(name, str(version)) for name, version in (run.facts.get("versions") or {}).items()]


def machine(run: RunFolder) -> str:
    """What the run ran on."""
    hardware = run.facts.get("hardware") or {}
    gpus = ", ".join(hardware.get("gpus") or [])
    cores, threads = (counted(int(hardware.get(name) or 0), noun) for name, noun in _PROCESSOR)
    return gpus or f"CPU, {cores}, {threads}"


def loading(place: str, is_adapter: bool) -> str:
    """Python that loads trained weights from a directory or a hub id."""
    loader = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    tokenizer = "AutoTokenizer"
    if is_adapter:
        imports = f"from peft import {loader}\nfrom transformers import {tokenizer}"
    else:
        imports = f"from transformers import {loader}, {tokenizer}"
    loads = [
        f'{name} = {kind}.from_pretrained("{place}")' for name, kind in (("model", loader), ("tokenizer", tokenizer))
    ]
    return "\n".join([imports, "", *loads])
