"""Recipes as frozen dataclasses: one section holds the keyword arguments of one class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Grows by one when a recipe of an older version would be read wrongly."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """`AutoModelForCausalLM.from_pretrained(...)`."""

    model_name_or_path: str | None = None
    """Hub id, directory, or `tiny-llama` for the model inside this package."""
    revision: str | None = None
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: bfloat16 for a LoRA base where the device has it, else float32."""
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    from_scratch: bool = False
    """Random weights from the model's configuration instead of its trained ones."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Where the rows come from, what they look like and which of their tokens the loss counts."""

    path: str | None = None
    """Hub id; .json, .jsonl, .csv, .parquet or .txt file; directory of such, or one that `save_to_disk` wrote;
    `embedded:shakespeare-dialogue`."""
    name: str | None = None
    """Configuration of a hub dataset."""
    split: str = "train"
    """Of a hub dataset, or of a directory whose files' names or folders make splits."""
    eval_path: str | None = None
    eval_split: str | None = None
    test_split_size: float | None = None
    """Held-out part: a fraction below 1, or a number of rows; of a stream, its first rows."""
    format: str = "auto"
    column_mapping: Mapping[str, str] = field(default_factory=dict)
    """The format's column to the data's: {prompt: question, completion: answer}."""
    skip_bad_rows: bool = False
    """Leave rows out whose values are of the wrong type, instead of refusing the data."""
    max_samples: int | None = None
    """Rows read at most, from the start."""
    streaming: bool = False
    """Read rows while the run goes on and keep none; needs `training.max_steps`."""
    max_length: int | None = 1024
    """Tokens of a row at most; what is beyond is cut off."""
    packing: bool = False
    """Fill each row of `max_length` tokens with several of the data's rows, each seeing itself alone."""
    loss_on: str = "auto"
    """all, completion, assistant, or auto: the strictest that the format and the chat template support."""
    sample_prompt: str | None = None
    """Prompt of the samples before and after training; by default the first held-out row's."""
    sample_tokens: int = 64
    """Longest sample in tokens; 0 for no samples."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. Sections without a dataclass are keyword arguments, checked against the installed classes."""

    name: str
    """The file's name without its suffix."""
    source: str
    """The file that was read."""
    schema: int = 1
    description: str = ""
    measured: tuple[Mapping[str, Any], ...] = ()
    model: ModelSection = field(default_factory=ModelSection)
    quantization: Mapping[str, Any] | None = None
    """`BitsAndBytesConfig(...)`; None for none."""
    lora: Mapping[str, Any] | None = None
    """`peft.LoraConfig(...)`; None for full fine-tuning."""
    data: DataSection = field(default_factory=DataSection)
    training: Mapping[str, Any] = field(default_factory=dict)
    """`trl.SFTConfig(...)`, which extends `transformers.TrainingArguments(...)`."""
    scao: Mapping[str, Any] = field(default_factory=dict)
    """`SCAO(...)`; learning rate, weight decay and eps come from `training`."""
    overrides: tuple[str, ...] = ()
    """The `section.key=value` texts that were applied over the file."""
    notices: tuple[str, ...] = ()
    """What was renamed on reading, a sentence each."""

    @property
    def holds_out_rows(self) -> bool:
        """Whether some rows are kept for evaluation."""
        data = self.data
        return any(value is not None for value in (data.test_split_size, data.eval_path, data.eval_split))

    @property
    def seed(self) -> int:
        """`training.seed`, or the one that transformers takes."""
        return int(self.training.get("seed", 42))
