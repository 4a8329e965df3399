"""Train the tiny model for twelve steps, alone or under torchrun, and save each rank's weights.

python ddp_run.py FOLDER OPTIM
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hf import tiny

import scao_hf  # noqa: F401  (registers the optimizers)


def main() -> None:
    folder, optim = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    distributed = {"ddp_backend": "gloo"} if processes > 1 else {}
    trainer = tiny.trainer(
        folder, optim=optim, max_steps=12, per_device_train_batch_size=8 // processes, adam_epsilon=1e-4, **distributed
    )
    trainer.train()
    weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    torch.save(weights, folder / f"{optim}-{processes}-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main()
