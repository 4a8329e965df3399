"""Twelve steps of the tiny model with every optimizer, alone or as one of several processes.

torchrun ... ddp_run.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hf import tiny

import scao_hf  # noqa: F401  (registers the optimizers)


def train(folder: Path, optim: str, processes: int = 1) -> dict[str, torch.Tensor]:
    """The weights after training on batches of eight rows, shared among the processes."""
    # Sums over the batch are made in another order by two processes. In float64 that is 1e-16 of a gradient, which an
    # eigenbasis of a nearly singular factor does not blow up to something visible.
    trainer = tiny.trainer(
        folder,
        tiny.llama().double(),
        optim,
        max_steps=12,
        per_device_train_batch_size=8 // processes,
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
    )
    trainer.train()
    assert trainer.args.world_size == processes
    return {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    weights = {optim: train(folder, optim, int(os.environ["WORLD_SIZE"])) for optim in tiny.PHASES}
    torch.save(weights, folder / f"rank-{rank}.pt")
