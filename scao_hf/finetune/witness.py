"""What a run is given, noted as it is given: a comparison trusts no configuration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.evaluate import IGNORED, Evaluation
from scao_hf.finetune.trainer import GuardedTrainer

# Exact fractions such as 1/1024 lie on the edge between two numbers of six decimals, where the last bit of a learning
# rate would decide; an irrational shift takes them off it.
_SHIFT = 1 / math.pi


class Witness(TrainerCallback):
    """Notes the conditions of one run. Made when the model is ready and before the first step.

    Args:
        trainer: of the run; its clipping is wrapped, so that the bound that counts is the one that is used.
    """

    def __init__(self, trainer: WitnessedTrainer) -> None:
        assert trainer.model is not None
        self._initialisation = digest_of(p for p in trainer.model.parameters() if p.requires_grad)
        self._evaluation_set: str | None = None
        self._batches = hashlib.sha256()
        self._supervised_tokens = 0
        self._rates: list[float] = []
        self._bounds: set[float] = set()
        trainer.accelerator.clip_grad_norm_ = self._noting_bounds(trainer.accelerator.clip_grad_norm_)

    def _noting_bounds(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        def noted(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            self._bounds.add(float(max_norm))
            return clip(parameters, max_norm, *args, **kwargs)

        return noted

    def training_batch(self, batch: Mapping[str, Any]) -> None:
        """Note a batch that the model is trained on."""
        _add_batch(self._batches, batch)
        self._supervised_tokens += int((batch["labels"][:, 1:] != IGNORED).sum())

    def evaluation_batches(self, batches: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """The batches, noted on their way; every evaluation of a run must see the same ones."""
        state = hashlib.sha256()
        for batch in batches:
            _add_batch(state, batch)
            yield batch
        seen = _short(state)
        assert self._evaluation_set in (None, seen), "the held-out rows changed during the run"
        self._evaluation_set = seen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rates.append(max(float(group["lr"]) for group in kwargs["optimizer"].param_groups))

    def conditions(self) -> dict[str, Any]:
        """What must be equal between the optimizers of a comparison, as plain values."""
        bound = min(self._bounds, default=math.inf)
        return {
            "initialisation": self._initialisation,
            "data_order": _short(self._batches),
            "evaluation_set": self._evaluation_set,
            "clipping": bound if math.isfinite(bound) else None,
            "schedule": schedule_digest(self._rates),
            "token_budget": self._supervised_tokens,
            "steps": len(self._rates),
        }


class WitnessedTrainer(GuardedTrainer):
    """A trainer for runs of which only the measurements are kept: it saves nothing, and its witness sees every batch.

    A run that diverges is a result as well: from then on gradients are zero and the remaining batches only pass by, so
    that the witness sees the same data as in other runs.
    """

    witness: Witness
    diverged_at: int | None = None
    """The step in which a number was not finite."""
    seconds_to_divergence: float = 0.0

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.diverged_at is None:
            loss = super().training_step(model, inputs, *args, **kwargs)
        else:
            self._zero_gradients()
            loss = torch.full((), math.nan, device=self.args.device)
        with self.stopwatch.paused():
            self.witness.training_batch(inputs)
        return loss

    def diverged(self, code: str, what: str, origin: Callable[[], str]) -> None:
        self._give_up_in(self.state.global_step + 1)

    def _give_up_in(self, step: int) -> None:
        self.diverged_at = step
        self.seconds_to_divergence = self.stopwatch.seconds
        self._zero_gradients()

    def _zero_gradients(self) -> None:
        # Zeros rather than none at all: a gradient scaler refuses a step without gradients.
        assert self.model is not None
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.diverged_at is not None:
            return {"eval_loss": math.inf}
        try:
            return super().evaluate(*args, **kwargs)
        except FinetuneError as error:
            # Before the first step it is the model that is broken, not the training.
            if not error.code.startswith("diverged") or self.state.global_step == 0:
                raise
            self._give_up_in(self.state.global_step)
            return {"eval_loss": math.inf}

    def held_out_loss(self) -> Evaluation:
        # Schedule-free methods are judged at an average of the weights that they train.
        optimizer: Any = self.optimizer
        averaging = hasattr(optimizer, "eval")
        if averaging:
            optimizer.eval()
        result = super().held_out_loss()
        if averaging:
            optimizer.train()
        return result

    def _held_out_batches(self) -> Any:
        return self.witness.evaluation_batches(super()._held_out_batches())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        return

    def save_resumable(self) -> None:
        return


def schedule_digest(rates: list[float]) -> str:
    """Digest of learning rates over the highest of them, to six decimals: equal for runs at different rates."""
    peak = max(rates, default=0.0) or 1.0
    factors = [math.floor(1e6 * rate / peak + _SHIFT) for rate in rates]
    return hashlib.sha256(repr(factors).encode()).hexdigest()[:16]


def digest_of(tensors: Iterable[torch.Tensor]) -> str:
    """16 hexadecimal digits of the bytes of some tensors, in order."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(_bytes(tensor))
    return _short(state)


def _add_batch(state: Any, batch: Mapping[str, Any]) -> None:
    for name in sorted(batch):
        if isinstance(batch[name], torch.Tensor):
            state.update(f"{name}{tuple(batch[name].shape)}".encode())
            state.update(_bytes(batch[name]))


def _bytes(tensor: torch.Tensor) -> Any:
    """A buffer of the tensor's bytes, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _short(state: Any) -> str:
    return state.hexdigest()[:16]
