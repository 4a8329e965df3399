"""From the Trainer's logs to the observer and to metrics.jsonl."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from transformers import TrainerCallback

from scao_hf.finetune.checkpoints import checkpoint_path
from scao_hf.finetune.devices import peak_bytes
from scao_hf.finetune.evaluate import Evaluation
from scao_hf.finetune.observer import EvalMetrics, Observer, StepMetrics
from scao_hf.finetune.record import RunRecord
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.hf.callback import PREFIX


class Reporter(TrainerCallback):
    """Tells the observer and the record of every logging step, evaluation and checkpoint."""

    def __init__(self, trainer: GuardedTrainer, observer: Observer, record: RunRecord) -> None:
        self.trainer = trainer
        self.observer = observer
        self.record = record
        self.moment = "before"
        self.tokens = 0
        self._tokens_at, self._seconds_at = 0, 0.0

    @property
    def first_evaluation(self) -> EvalMetrics | None:
        """Before training."""
        return self.trainer.ledger.first_evaluation

    @property
    def last_evaluation(self) -> EvalMetrics | None:
        """The latest, in this process or in the one that it resumed."""
        return self.trainer.ledger.last_evaluation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run starts with the tokens and seconds of its checkpoint, which its pace leaves out.
        self.tokens = self._tokens_at = int(self.trainer._total_train_tokens)
        self._seconds_at = self.trainer.stopwatch.seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        metrics = self._step_metrics(state, logs)
        self.record.metrics("step", _flat(metrics))
        self.observer.step(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.observer.saved(checkpoint_path(self.trainer.folder, state.global_step))

    def evaluated(self, result: Evaluation, seconds: float) -> None:
        """Report one evaluation."""
        metrics = EvalMetrics(
            moment=self.moment,
            step=self.trainer.state.global_step,
            loss=result.loss,
            perplexity=result.perplexity,
            tokens=result.tokens,
            seconds=seconds,
        )
        ledger = self.trainer.ledger
        ledger.first_evaluation = ledger.first_evaluation or metrics
        ledger.last_evaluation = metrics
        self.record.metrics("evaluation", asdict(metrics))
        self.observer.evaluated(metrics)

    def evaluated_again(self, moment: str) -> None:
        """Report the last evaluation under another moment: nothing has changed since."""
        assert self.last_evaluation is not None
        self.trainer.ledger.last_evaluation = replace(self.last_evaluation, moment=moment)
        self.observer.evaluated(self.trainer.ledger.last_evaluation)

    def _step_metrics(self, state: Any, logs: dict[str, Any]) -> StepMetrics:
        seconds = self.trainer.stopwatch.seconds
        self.tokens = int(logs.get("num_tokens", self.tokens))
        pace = (self.tokens - self._tokens_at) / max(seconds - self._seconds_at, 1e-9)
        self._tokens_at, self._seconds_at = self.tokens, seconds
        return StepMetrics(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=None if logs.get("grad_norm") is None else float(logs["grad_norm"]),
            tokens=self.tokens,
            tokens_per_second=pace,
            elapsed_seconds=seconds,
            eta_seconds=seconds / state.global_step * (state.max_steps - state.global_step),
            scao={name.removeprefix(PREFIX): float(value) for name, value in logs.items() if name.startswith(PREFIX)},
            memory_bytes=peak_bytes(self.trainer.args.device),
        )


def _flat(metrics: StepMetrics) -> dict[str, Any]:
    values = asdict(metrics)
    scao = values.pop("scao")
    return values | {PREFIX + name: value for name, value in scao.items()}
