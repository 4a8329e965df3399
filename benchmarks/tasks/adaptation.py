"""Tasks `lora` and `full`: fine-tune a small GPT, which the suite has pretrained itself, on another text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.muon import Muon
from benchmarks.tasks import texts
from benchmarks.tasks.lm import EVALUATION_SEED, LanguageModelling, windows
from benchmarks.tasks.models import IGNORED, LINEAR_LAYERS, ByteGPT, byte_gpt
from benchmarks.training import Batch, Schedule, train
from scao_hf import parameter_groups
from scao_hf.finetune.comparison.runs import digest
from scao_hf.finetune.model import keep_gradients

VERSION = 1
CONTEXT = 512
"""Of the base model, so that an exercise of GSM8K fits; longer ones are left out."""
END = b"\x00"
"""Follows an answer."""
BASE_STEPS = {"1m": 800, "5m": 250}
"""Of pretraining, by size of the base model: minutes of one core."""
BASE_LR, BASE_AUXILIARY, BASE_SEED = 1e-2, 0.4, 1000
"""The base model is pretrained on WikiText-2 with Muon, and studies that compare Muon have to say so: at this length
AdamW stays on the plateau of the bigrams for 1200 steps."""
INITIALISATIONS = ("default", "gaussian", "pissa", "olora")
"""Of the LoRA factors, by PEFT's names; "default" is its own, with the second factor at zero, as in "gaussian"."""


@dataclass(frozen=True)
class Adaptation:
    """Fine-tune the base model, by LoRA on all linear layers or in full.

    Args:
        folder: local texts; None takes the hub's.
        cache: where the base model is kept.
        text: "shakespeare": every byte is predicted, 16 rows of 128 bytes a step; "gsm8k": a chat of question and
            answer, 4 a step, in which only the answer's bytes count.
        rank: of LoRA; None trains all weights. Dropout is 0.
        base: size of the base model, a key of `BASE_STEPS`.
        device: where the base model is pretrained, if it has to be.
        alpha_ratio: LoRA's alpha over the rank.
        init: of the factors, one of `INITIALISATIONS`.
        imbalance: c > 0; the factors start as cA and B/c, which leaves their product as it is.
        quantized: QLoRA: the base's linear layers in 4 bits (NF4), the factors in bfloat16. Needs bitsandbytes.
    """

    folder: Path | None
    cache: Path
    text: str = "shakespeare"
    rank: int | None = 8
    base: str = "1m"
    device: str = "cpu"
    alpha_ratio: float = 2.0
    init: str = "default"
    imbalance: float = 1.0
    quantized: bool = False
    steps: int = 200
    clip: float = 1.0
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup_steps=10, start=0.1))
    evaluate_every: int = 10
    evaluation_batches: int = 48
    curve_batches: int = 8

    def __post_init__(self) -> None:
        if self.text not in _SOURCES:
            raise ValueError(f"text must be one of {', '.join(_SOURCES)}, got {self.text!r}")
        if self.base not in BASE_STEPS:
            raise ValueError(f"base must be one of {', '.join(BASE_STEPS)}, got {self.base!r}")
        if self.init not in INITIALISATIONS:
            raise ValueError(f"init must be one of {', '.join(INITIALISATIONS)}, got {self.init!r}")
        for name in ("alpha_ratio", "imbalance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @cached_property
    def source(self) -> Any:
        return _SOURCES[self.text](self.folder)

    def prepare(self) -> None:
        """Pretrain the base model unless it is at hand."""
        self._base_weights()

    def model(self, seed: int) -> nn.Module:
        model = byte_gpt(LanguageModelling(**base_task(self.base)).shape, seed)
        model.load_state_dict(self._base_weights())
        if self.rank is None:
            return model
        if self.quantized:
            quantize(model)
        adapted = with_lora(model, self.rank, seed, self.alpha_ratio, self.init, self.imbalance)
        if self.quantized:
            for parameter in adapted.parameters():
                parameter.data = parameter.data.bfloat16() if parameter.requires_grad else parameter.data
        return adapted

    def _base_weights(self) -> dict[str, Tensor]:
        return base_weights(self.folder, self.cache, self.base, self.device)

    def batches(self, seed: int) -> Iterator[Batch]:
        return self._drawn(self.source.training, seed)

    def evaluation(self) -> Sequence[Batch]:
        drawn = self._drawn(self.source.validation, EVALUATION_SEED)
        return [next(drawn) for _ in range(self.evaluation_batches)]

    def _drawn(self, part: Any, seed: int) -> Iterator[Batch]:
        return windows(part, 16, 128, seed) if self.text == "shakespeare" else exercises(part, 4, seed)


_SOURCES = {"shakespeare": texts.shakespeare, "gsm8k": texts.gsm8k}


def with_lora(
    model: nn.Module, rank: int, seed: int, alpha_ratio: float = 2.0, init: str = "default", imbalance: float = 1.0
) -> nn.Module:
    """The model with PEFT's LoRA on all linear layers, its first factors drawn from `seed`; see `Adaptation`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha_ratio * rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(LINEAR_LAYERS),
        init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    if imbalance != 1.0:
        unbalance(adapted, imbalance)
    return adapted


def quantize(model: nn.Module) -> None:
    """Turn the linear layers into bitsandbytes' of 4 bits, in place: NF4, computing in float32.

    Source: QLoRA, Dettmers et al. (2023), arXiv:2305.14314.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in LINEAR_LAYERS:
            rows, columns = module.weight.shape
            narrow = Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            weight: Any = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            narrow.weight = weight.to("cpu")  # this is what quantizes
            model.set_submodule(name, narrow)
    keep_gradients(model)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks for it


@torch.no_grad()
def unbalance(model: nn.Module, factor: float) -> None:
    """Turn every pair of LoRA factors A and B into cA and B/c, in place: another place with the same product BA."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.mul_(factor)
        elif ".lora_B." in name:
            parameter.div_(factor)


def exercises(exchanges: Sequence[texts.Exchange], rows: int, seed: int) -> Iterator[Batch]:
    """Endless batches of random exchanges, padded to the longest; the labels are the answers and their end."""
    encoded = [pair for pair in map(_encoded, exchanges) if len(pair.tokens) <= CONTEXT]
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = [encoded[index] for index in torch.randint(len(encoded), (rows,), generator=generator).tolist()]
        tokens = pad_sequence([pair.tokens for pair in chosen], batch_first=True)
        labels = pad_sequence([pair.labels for pair in chosen], batch_first=True, padding_value=IGNORED)
        yield Batch(tokens, labels)


def _encoded(exchange: texts.Exchange) -> Batch:
    """Tokens (length,) and, for each, the byte that follows if it belongs to the answer."""
    prompt = f"User: {exchange.question}\nAssistant: ".encode()
    whole = torch.frombuffer(bytearray(prompt + exchange.answer.encode() + END), dtype=torch.uint8).long()
    labels = whole[1:].clone()
    labels[: len(prompt) - 1] = IGNORED
    return Batch(whole[:-1], labels)


# The base model


def base_task(size: str) -> dict[str, Any]:
    """What a base model is pretrained on: arguments of `LanguageModelling`."""
    steps = BASE_STEPS[size]
    return {"size": size, "rows": 4, "length": CONTEXT, "steps": steps, "evaluate_every": steps}


def base_weights(folder: Path | None, cache: Path, size: str = "1m", device: str = "cpu") -> dict[str, Tensor]:
    """Weights of a base model, pretrained at the first call and then read from `cache`.

    One made by another release of torch, or on another device, serves as well: every run tells in the digest of its
    initialisation which it started from, and runs that started from different ones are not compared.
    """
    made_from = [base_task(size), BASE_LR, BASE_AUXILIARY, BASE_SEED, folder is None]
    path = _base_file(cache, made_from)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}.tmp")
        # Their names once held torch's version.
        earlier = _base_file(cache, [*made_from, torch.__version__])
        if earlier.exists():
            shutil.copyfile(earlier, written)
        else:
            save_file(pretrain(folder, size, device).state_dict(), written)
        written.replace(path)
    return load_file(path)


def _base_file(cache: Path, made_from: Sequence[Any]) -> Path:
    return cache / f"base-{digest(made_from)}.safetensors"


def pretrain(folder: Path | None, size: str = "1m", device: str = "cpu") -> ByteGPT:
    """A base model, from scratch; on the CPU when it is returned."""
    task = LanguageModelling(folder=folder, **base_task(size))
    built: list[nn.Module] = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        built.append(model)
        scale = dict.fromkeys(("embedding", "vector"), BASE_AUXILIARY)
        return Muon(parameter_groups(model, weight_decay=0.1, lr=BASE_LR, lr_scale=scale), lr=BASE_LR)

    train(task, build, BASE_SEED, torch.device(device))
    model = built[0]
    assert isinstance(model, ByteGPT)
    return model.cpu()
