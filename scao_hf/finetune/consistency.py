"""What can be wrong with a recipe whose values are each of the right type: out of range, or at odds with each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.schema import CONVERTED_STARTS
from scao_hf.hf.options import OPTIMIZERS

Problem = tuple[str, str, str]
"""The key at fault as "section.key", a sentence, and what would do."""

_LEAST_DATA = {"max_samples": 1, "max_length": 2, "sample_tokens": 0}
_LEAST_TRAINING = {
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
METRICS = ("loss", "perplexity")
"""What is measured on held-out rows, so that the best step can be told by it."""

_SEEDS = ("seed", "data_seed")
_MOST_SEED = 2**32 - 1
"""What NumPy's generator takes."""

_DECAYS = ("adam_beta1", "adam_beta2")


def inconsistencies(recipe: Recipe) -> Iterator[Problem]:
    """Every value that no run could use, before a library or a weight is loaded for it."""
    yield from _empty_names(recipe)
    yield from _data_errors(recipe)
    yield from _training_errors(recipe)
    yield from _held_out_errors(recipe)
    yield from _streaming_errors(recipe)
    yield from _best_model_errors(recipe)
    yield from _sharding_errors(recipe)
    if recipe.data.packing and recipe.data.max_length is None:
        yield "data.packing", "packing fills rows of data.max_length tokens, which is null", "set data.max_length"
    if recipe.quantization is not None and recipe.lora is None:
        yield "quantization", "quantized weights cannot be trained without an adapter", "add a section `lora`"
    if recipe.quantization is not None and recipe.model.from_scratch:
        yield "quantization", "a model from scratch has no weights to quantize", "write quantization: null"
    yield from _adapter_errors(recipe)
    if recipe.lora is not None and recipe.model.from_scratch:
        yield "model.from_scratch", "an adapter on random weights is of no use", "write lora: null"


def _empty_names(recipe: Recipe) -> Iterator[Problem]:
    names = {
        "model.model_name_or_path": recipe.model.model_name_or_path,
        "data.path": recipe.data.path,
        "data.eval_path": recipe.data.eval_path,
        "training.output_dir": recipe.training.get("output_dir"),
    }
    for path, name in names.items():
        # The current folder, to whoever makes a path of it: what `--data "$DATA"` gives where DATA is not set.
        if name == "":
            yield path, f"`{path}` is empty", "give a name or a path; is a variable of the shell not set?"


def _adapter_errors(recipe: Recipe) -> Iterator[Problem]:
    lora = recipe.lora or {}
    dropout = lora.get("lora_dropout")
    if dropout is not None and not 0 <= dropout <= 1:
        path = "lora.lora_dropout"
        yield path, f"`{path}` must be from 0 to 1, got {dropout}", "write 0.05"
    start = lora.get("init_lora_weights")
    if start not in CONVERTED_STARTS:
        return
    path = "lora.init_lora_weights"
    if recipe.quantization is not None:
        yield path, f"{start} decomposes the base weights, and quantized ones cannot be", f"write {path}: true"
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if lora.get(key)]
    if lora.get("use_rslora") and patterns:
        message = (
            f"an adapter of {start} with use_rslora and {patterns[0]} cannot be converted for the original weights"
        )
        yield path, message, f"write lora.use_rslora: false or lora.{patterns[0]}: {{}}"


def _data_errors(recipe: Recipe) -> Iterator[Problem]:
    for key, least in _LEAST_DATA.items():
        yield from _below(f"data.{key}", getattr(recipe.data, key), least)
    size = recipe.data.test_split_size
    if size is not None and (size <= 0 or (size >= 1 and size != int(size))):
        path = "data.test_split_size"
        yield path, f"`{path}` must be a fraction below 1 or a number of rows, got {size}", "write 0.05 or 100"


def _training_errors(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    for key, least in _LEAST_TRAINING.items():
        yield from _below(f"training.{key}", training.get(key), least)
    for key in _SEEDS:
        seed = training.get(key)
        if seed is not None and not 0 <= seed <= _MOST_SEED:
            message = f"`training.{key}` must be from 0 to {_MOST_SEED}, got {seed}"
            yield f"training.{key}", message, "write 42"
    for key in _DECAYS:
        decay = training.get(key)
        if decay is not None and not 0 <= decay < 1:
            yield f"training.{key}", f"`training.{key}` must be in [0, 1), got {decay}", "write 0.9"
    warmup, steps, epochs = (training.get(key) for key in ("warmup_steps", "max_steps", "num_train_epochs"))
    if warmup is not None and warmup > 1 and warmup % 1:
        path = "training.warmup_steps"
        yield path, f"`{path}` must be a fraction below 1 or a number of steps, got {warmup}", "write 0.05 or 100"
    if steps is not None and steps < 1 and steps != -1:
        path = "training.max_steps"
        yield path, f"`{path}` must be at least 1, or -1 to count epochs, got {steps}", "write 100"
    if epochs is not None and not 0 < epochs < math.inf:
        path = "training.num_train_epochs"
        yield path, f"`{path}` must be finite and above 0, got {epochs}", "write 1"


def _best_model_errors(recipe: Recipe) -> Iterator[Problem]:
    training = recipe.training
    metric, patience = training.get("metric_for_best_model"), training.get("early_stopping_patience")
    if metric is not None and str(metric).removeprefix("eval_") not in METRICS:
        path = "training.metric_for_best_model"
        yield path, f"`{path}` must be one of {', '.join(METRICS)}, got {metric}", "write loss"
    yield from _below("training.early_stopping_patience", patience, 1)
    yield from _below("training.early_stopping_threshold", training.get("early_stopping_threshold"), 0)
    if patience is not None and training.get("eval_strategy", "no") == "no":
        path = "training.early_stopping_patience"
        message = f"`{path}` counts evaluations without an improvement, and training.eval_strategy is no"
        yield path, message, "write training.eval_strategy: steps, and eval_steps"


def _sharding_errors(recipe: Recipe) -> Iterator[Problem]:
    optimizer = str(recipe.training.get("optim"))
    for path in ("training.deepspeed", "training.fsdp"):
        if optimizer in OPTIMIZERS and recipe.training.get(path.removeprefix("training.")):
            message = f"`{path}` shards the matrices, and {optimizer} works on whole ones"
            yield path, message, f"write {path}: null, or training.optim: adamw_torch"


def _below(path: str, value: float | None, least: int) -> Iterator[Problem]:
    if value is not None and not least <= value < math.inf:
        bound = "finite" if value == math.inf else f"at least {least}"
        yield path, f"`{path}` must be {bound}, got {value}", f"write {least} or more"


def _held_out_errors(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.test_split_size is not None and (data.eval_path is not None or data.eval_split is not None):
        path = "data.test_split_size"
        yield path, "rows are held out twice: by test_split_size and by an eval set", f"write {path}: null"
    if recipe.training.get("eval_strategy", "no") != "no" and not recipe.holds_out_rows:
        path = "training.eval_strategy"
        yield path, f"`{path}` asks for rows that nothing holds out", "set data.test_split_size or data.eval_path"


def _streaming_errors(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if not data.streaming:
        return
    if recipe.training.get("max_steps", -1) < 1:
        path = "training.max_steps"
        yield path, f"`{path}` must be set, as nobody knows how many rows data.streaming will give", "write 1000"
    if data.test_split_size is not None and data.test_split_size < 1:
        path = "data.test_split_size"
        message = f"`{path}` must be a number of rows with data.streaming, got the fraction {data.test_split_size}"
        yield path, message, "write 100: the first rows are held out; or write data.eval_path"
    if data.packing:
        yield "data.packing", "rows that are streamed cannot be packed", "write data.packing: false"
