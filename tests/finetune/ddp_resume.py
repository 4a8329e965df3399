"""Run by two processes: a run that one of them is asked to stop, its continuation, and the same run without a stop."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from scao_hf.finetune.errors import Interrupted
from scao_hf.finetune.observer import Observer, StepMetrics
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune


class Stopping(Observer):
    """Only the first process is told anything, so that the other one learns of the signal from it."""

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == 5:
            os.kill(os.getpid(), signal.SIGINT)


def main(recipe: str, overrides: list[str]) -> None:
    whole = Path(recipe).parent / "whole"
    finetune(load_recipe(recipe, [*overrides, f"output_dir={whole}"]))
    with pytest.raises(Interrupted) as caught:
        finetune(load_recipe(recipe, overrides), Stopping())
    assert (caught.value.signal_name, caught.value.step) == ("SIGINT", 6)
    finetune(load_recipe(recipe, overrides), resume=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
