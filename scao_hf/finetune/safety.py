"""Whatever stops a run: what is saved of it on the way out, and the error that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scao_hf.finetune.advice import out_of_memory
from scao_hf.finetune.checkpoints import last_checkpoint
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.devices import peak_bytes
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.failures import memory_reason, translated
from scao_hf.finetune.footprint import peak_of, shares, state_bytes
from scao_hf.finetune.signals import StopCallback, StopRequest, name_of
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.finetune.units import byte_size


class Safety:
    """Sees to it that nothing is lost when one run stops.

    Args:
        trainer: of the run.
        recipe: of the run, for advice that fits it.
        notice: told what the user should know.
    """

    def __init__(self, trainer: GuardedTrainer, recipe: Recipe, notice: Callable[[str], None]) -> None:
        self.trainer = trainer
        self.recipe = recipe
        self.notice = notice

    def train(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint if there is one, to the end.

        Raises:
            Interrupted: after a signal, when the step in hand was finished and saved; after a second one, at once.
            FinetuneError: with the steps before it saved, if they can be.
        """
        processes = self.trainer.args.world_size
        request = StopRequest(lambda name: self.notice(f"{name}: stopping after this step"), processes)
        self.trainer.add_callback(StopCallback(request))
        try:
            with request.listening():
                self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except KeyboardInterrupt as error:
            last = last_checkpoint(self.trainer.folder)
            raise Interrupted(name_of(error), self.trainer.state.global_step, last, at_once=True) from error
        except Exception as error:
            known, kept = self._answered(error), self._keep_steps(error)
            if known is None:
                if last_checkpoint(self.trainer.folder) is not None:
                    self.notice(kept)
                raise
            raise _more(known, kept) from error
        name = request.agreed(self.trainer.args.device)
        if name is not None and self.trainer.state.global_step < self.trainer.state.max_steps:
            raise Interrupted(name, self.trainer.state.global_step, self.trainer.save_resumable())

    @contextmanager
    def advice(self) -> Iterator[None]:
        """Within it, an exception that has an answer becomes an error with what this run's recipe could do about it."""
        try:
            yield
        except FinetuneError:
            raise
        except Exception as error:
            known = self._answered(error)
            if known is None:
                raise
            raise known from error

    @contextmanager
    def weights_are_in(self, saved: Path) -> Iterator[None]:
        """Within it, every failure says that training is done and where its weights are."""
        try:
            with self.advice():
                yield
        except KeyboardInterrupt as error:
            raise Interrupted(name_of(error), self.trainer.state.global_step, None, weights=saved) from error
        except FinetuneError as error:
            raise _more(error, f"training is done, and its weights are in {saved}") from error

    def _keep_steps(self, error: Exception) -> str:
        """Save the steps before an error, if that can be done, and say where they are."""
        known, unsaved = self._answered(error), ""
        # Where the disk failed it would fail again, and a process alone cannot save a run of several.
        if (known is None or not known.code.startswith("disk.")) and self.trainer.args.world_size == 1:
            try:
                checkpoint = self.trainer.save_resumable()
            except Exception as failure:
                unsaved = f"the steps before it could not be saved ({failure}); "
            else:
                if checkpoint is not None:
                    return f"the steps before it are in {checkpoint}"
        last = last_checkpoint(self.trainer.folder)
        return unsaved + ("there is no checkpoint" if last is None else f"the last checkpoint is {last}")

    def _answered(self, error: Exception) -> FinetuneError | None:
        """The error as one that states what would do; None if nobody foresaw it."""
        known = error if isinstance(error, FinetuneError) else translated(error, self.trainer.folder)
        if known is not None and known.code == "memory.out":
            reason = f"{memory_reason(error)} ({self._held()})"
            return out_of_memory(self.recipe, reason, self.trainer.evaluating)
        return known

    def _held(self) -> str:
        """What the memory holds, by what it is for, and how much of it was taken at most."""
        trainer: Any = self.trainer
        state = 0 if trainer.optimizer is None else state_bytes(trainer.optimizer)
        known = ", ".join(f"{part} {byte_size(size)}" for part, size in shares(trainer.model, state).items())
        device = trainer.args.device
        return f"in use: {known}; the peak of {peak_of(device)} was {byte_size(peak_bytes(device))}"


def _more(error: FinetuneError, told: str) -> FinetuneError:
    """The error with half a sentence more."""
    return FinetuneError(error.code, f"{error.message}; {told}", error.hint, error.location)
