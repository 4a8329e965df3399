"""The model and the dataset that travel inside the package, so that the demo needs no network.

`tiny-llama/` is a Llama of one million parameters over bytes, pretrained by this project on GSM8K (MIT licence); its
`README.md` is the model card. `shakespeare-dialogue.jsonl` holds exchanges of two speeches from the plays of William
Shakespeare (public domain) as chat messages. `python -m scao_hf.finetune.embedded.build` makes both.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

MODEL_NAME = "tiny-llama"
DATASET_NAME = "shakespeare-dialogue"

__all__ = ["DATASET_NAME", "MODEL_NAME", "dataset_path", "model_directory"]


def model_directory() -> Path:
    """The directory of the packaged model and its tokenizer, for `from_pretrained`."""
    return Path(str(files(__name__))) / MODEL_NAME


def dataset_path() -> Path:
    """The packaged dataset: JSON lines, each `{"messages": [user, assistant]}`."""
    return Path(str(files(__name__))) / f"{DATASET_NAME}.jsonl"
