"""A run that is watched by a witness, and of which measurements alone are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.evaluate import Evaluation
from scao_hf.finetune.footprint import state_bytes
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.outcome import Measurement
from scao_hf.finetune.progress import Reporter
from scao_hf.finetune.record import RunRecord
from scao_hf.finetune.stages import Stages
from scao_hf.finetune.witness import Witness, WitnessedTrainer


class UnkeptRun(Stages):
    """A run in a folder that is removed, with a seed of its own for all but the rows that it holds out."""

    def __init__(self, recipe: Recipe, seed: int, observer: Observer, output_dir: Path) -> None:
        super().__init__(recipe, observer, output_dir)
        training = {**recipe.training, "seed": seed, "output_dir": str(output_dir)}
        self.recipe = replace(recipe, training=training)

    def prepare(self) -> None:
        """All stages before the training."""
        self.load_inputs()
        self.load_weights()
        self.build_trainer()

    def reporter(self) -> Reporter:
        """Tells the observer of the run, and writes nothing."""
        return Reporter(self.trainer, self.observer, RunRecord(self.output_dir, {}, "", writes=False))


class MeasuredRun(UnkeptRun):
    """The stages of `measure`, in order; `measurement` goes through them."""

    trainer_class = WitnessedTrainer
    trainer: WitnessedTrainer

    def measurement(self) -> Measurement:
        self.prepare()
        info, curve = self.info(), self._watch()
        self.observer.begin(info)
        self.trainer.evaluate()
        self.train()
        if curve[-1][0] != self.trainer.state.global_step:
            self.trainer.evaluate()
        trainer = self.trainer
        diverged = trainer.diverged_at is not None
        seconds = trainer.seconds_to_divergence if diverged else trainer.stopwatch.seconds
        return Measurement(
            info=info,
            loss=math.inf if diverged else curve[-1][1],
            curve=tuple(curve),
            conditions=trainer.witness.conditions(),
            step_seconds=seconds / (trainer.diverged_at or trainer.state.global_step),
            optimizer_state_bytes=state_bytes(trainer.optimizer),
            diverged_at=trainer.diverged_at,
        )

    def _watch(self) -> list[tuple[int, float]]:
        """Bring in the witness and the observer; the list that is returned will take the losses in."""
        trainer = self.trainer
        curve: list[tuple[int, float]] = []
        trainer.witness = Witness(trainer)
        reporter = self.reporter()
        reporter.moment = "during"

        def evaluated(result: Evaluation, seconds: float) -> None:
            curve.append((trainer.state.global_step, result.loss))
            reporter.evaluated(result, seconds)

        trainer.on_evaluated = evaluated
        trainer.add_callback(trainer.witness)
        trainer.add_callback(reporter)
        return curve
