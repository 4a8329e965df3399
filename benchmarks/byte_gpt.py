"""Pretrain the 837,888-parameter byte-level GPT of the published tables, one optimizer a run.

    python benchmarks/byte_gpt.py --data WIKITEXT2_DIRECTORY --optimizer scao --lr 8e-3 --embedding-lr 4e-3

The directory holds `valid.txt` and `test.txt` of WikiText-2: the training text is test.txt and the first half of
valid.txt, the validation text the rest. 16 rows of 128 bytes a step, gradient norm clipped at 1, 25 steps of
learning-rate warm-up, then a cosine to 0; every optimizer sees the same initialisation and the same batches for a seed.
Prints one JSON line: validation loss in nats per byte over 48 fixed batches, and CPU seconds a step in the optimizer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scao_hf import SCAO, SOAP, PublishedSCAO

WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY = 128, 4, 4, 128, 256


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        parts = self.query_key_value(self.attention_norm(x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class ByteGPT(nn.Module):
    """A GPT over bytes with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions(positions)))
        return F.cross_entropy((x @ self.tokens.weight.T).flatten(0, 1), targets.flatten())


def batches(text: Tensor, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (rows,), generator=generator)
        window = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        yield window[:, :-1], window[:, 1:]


def read_bytes(directory: Path) -> tuple[Tensor, Tensor]:
    test, valid = (directory / "test.txt").read_bytes(), (directory / "valid.txt").read_bytes()
    half = len(valid) // 2
    return tuple(
        torch.frombuffer(bytearray(text), dtype=torch.uint8).long() for text in (test + valid[:half], valid[half:])
    )  # type: ignore[return-value]


def build_optimizer(model: ByteGPT, args: argparse.Namespace) -> torch.optim.Optimizer:
    tables = [model.tokens.weight, model.positions.weight]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    embedding_lr = args.embedding_lr or args.lr
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": args.lr, "kind": "matrix"},
        {"params": tables, "lr": embedding_lr, "kind": "embedding"},
        {"params": vectors, "lr": embedding_lr, "kind": "vector"},
    ]
    classes = {"scao": SCAO, "scao_published": PublishedSCAO, "soap": SOAP, "adamw": torch.optim.AdamW}
    options = {name: json.loads(value) for name, value in (option.split("=") for option in args.option)}
    return classes[args.optimizer](
        groups, lr=args.lr, weight_decay=args.weight_decay, betas=tuple(args.betas), **options
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--optimizer", choices=["scao", "scao_published", "soap", "adamw"], default="scao")
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--embedding-lr", type=float)
    parser.add_argument("--betas", type=float, nargs=2, default=[0.95, 0.95])
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="of the optimizer")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    training, validation = read_bytes(args.data)
    model = ByteGPT()
    optimizer = build_optimizer(model, args)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, (t + 1) / 25) * 0.5 * (1 + math.cos(math.pi * max(0, t - 25) / (args.steps - 25)))
    )
    held_out = [next(stream) for stream in [batches(validation, 16, seed=0)] for _ in range(48)]
    optimizer_seconds = 0.0
    for _, (tokens, targets) in zip(range(args.steps), batches(training, 16, args.seed), strict=False):
        model(tokens, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        start = time.process_time()
        optimizer.step()
        optimizer_seconds += time.process_time() - start
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        loss = sum(model(*batch).item() for batch in held_out) / len(held_out)
    settings = {name: value for name, value in vars(args).items() if name != "data"}
    state_bytes = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    report = {"loss": round(loss, 4), "optimizer_ms": round(1e3 * optimizer_seconds / args.steps, 2)}
    print(json.dumps({**report, "state_bytes": state_bytes, **settings}))


if __name__ == "__main__":
    main()
