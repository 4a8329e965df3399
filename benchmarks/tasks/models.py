"""The byte-level GPT of the published tables, at their sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256
GPT2_VOCABULARY = 50_257
INITIAL_DEVIATION = 0.02
IGNORED = -100
"""Label of a position that is not to be predicted."""


class Shape(NamedTuple):
    """A GPT's dimensions."""

    width: int
    layers: int
    heads: int
    context: int = 128
    vocabulary: int = BYTES


SHAPES = {
    "1m": Shape(128, 4, 4),
    "5m": Shape(256, 6, 8),
    "10m": Shape(320, 8, 8),
    # The tables of GPT-2's vocabulary give these the parameters of GPT-2 small and medium; the tokens are bytes.
    "125m": Shape(768, 12, 12, 1024, GPT2_VOCABULARY),
    "350m": Shape(1024, 24, 16, 1024, GPT2_VOCABULARY),
    # What the published tables call 5M, 10M, 125M and 350M: 2.7, 4.9, 85 and 302 million parameters.
    "published-5m": Shape(192, 6, 4),
    "published-10m": Shape(256, 6, 8, 256),
    "published-125m": Shape(768, 12, 12, 64),
    "published-350m": Shape(1024, 24, 16, 64),
}


class Block(nn.Module):
    """Attention and a fourfold MLP, each after a layer norm and added to its input; linear layers without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        fused = self.query_key_value(self.attention_norm(x)).view(rows, length, 3, self.heads, -1)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class ByteGPT(nn.Module):
    """A causal GPT with learnt positions and tied embeddings.

    `forward(tokens, labels)` is the mean cross-entropy in nats of labels (rows, length) given tokens (rows, length);
    labels of `IGNORED` do not count. With `narrow`, products are taken in bfloat16 and the weights stay in float32.
    """

    def __init__(self, shape: Shape, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=INITIAL_DEVIATION / (math.sqrt(2 * shape.layers) if residual else 1.0))

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.narrow):
            x = self.norm(self.blocks(self.tokens(tokens) + self.positions(positions)))
            logits = (x @ self.tokens.weight.T).flatten(0, 1)
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORED)


LINEAR_LAYERS = ("query_key_value", "projection", "up", "down")


def byte_gpt(shape: Shape, seed: int, narrow: bool = False) -> ByteGPT:
    """A freshly initialised GPT, the same for a seed whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ByteGPT(shape, narrow)
