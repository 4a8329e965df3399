"""One fine-tuning run: from a recipe to a saved adapter or model."""

from __future__ import annotations

import gc
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.observer import EvalMetrics, Observer, RunInfo, Silence, StepMetrics
from scao_hf.finetune.results.card import model_card, write_card
from scao_hf.finetune.results.folder import open_run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scao_hf.finetune.data import Rows
    from scao_hf.finetune.evaluate import Evaluation
    from scao_hf.finetune.progress import Reporter
    from scao_hf.finetune.record import Earlier, RunRecord
    from scao_hf.finetune.resume import Change, Resumption
    from scao_hf.finetune.sample import Prompt
    from scao_hf.finetune.saving import AdapterStart
    from scao_hf.finetune.trainer import GuardedTrainer
    from scao_hf.finetune.witness import WitnessedTrainer

__all__ = [
    "EvalMetrics",
    "FinetuneReport",
    "Measurement",
    "Observer",
    "RunInfo",
    "Silence",
    "StepMetrics",
    "answers",
    "finetune",
    "identify",
    "measure",
]

# TrainingArguments writes it, and in releases before 5 the next run of the process takes it for its own setting.
_MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What a finished run came to. Losses are nats per supervised token on the held-out rows."""

    recipe: str
    output_dir: Path
    saved_dir: Path
    """`output_dir/adapter` (LoRA) or `output_dir/model`."""
    is_adapter: bool
    optimizer: str
    initial_eval_loss: float | None
    """None when the recipe holds out no rows."""
    final_eval_loss: float | None
    initial_perplexity: float | None
    final_perplexity: float | None
    train_loss: float
    """Mean over all steps."""
    steps: int
    epochs: float
    train_seconds: float
    """Seconds of training steps; loading, evaluation and saving left out."""
    tokens: int
    trainable_parameters: int
    total_parameters: int
    optimizer_state_bytes: int
    sample_prompt: str | None
    sample_before: str | None
    sample_after: str | None
    stopped_early: bool = False
    """Whether `training.early_stopping_patience` ended the run before its last step."""
    best_step: int | None = None
    """Step with the best `training.metric_for_best_model`; None where that is not looked at."""
    best_metric: float | None = None
    best_checkpoint: Path | None = None
    """Where the best step was saved; with `training.load_best_model_at_end` its weights are the saved ones."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    def _repr_html_(self) -> str:
        """The report as a table, for notebooks."""
        from scao_hf.finetune.tables import html_table
        from scao_hf.finetune.units import byte_size, count, counted, duration

        def shown(value: float | None) -> str:
            return "-" if value is None else f"{value:.3f}"

        rows = [
            ("held-out loss", f"{shown(self.initial_eval_loss)} before, {shown(self.final_eval_loss)} after"),
            ("perplexity", f"{shown(self.initial_perplexity)} before, {shown(self.final_perplexity)} after"),
            ("trained", f"{count(self.trainable_parameters)} of {count(self.total_parameters)} parameters"),
            ("optimizer state", byte_size(self.optimizer_state_bytes)),
            ("saved", str(self.saved_dir)),
        ]
        samples = (("prompt", self.sample_prompt), ("before", self.sample_before), ("after", self.sample_after))
        rows += [(name, text) for name, text in samples if text is not None]
        work = f"{counted(self.steps, 'step')} of {self.optimizer} in {duration(self.train_seconds)}"
        return html_table(rows, caption=f"{self.recipe}: {work}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run came to of which nothing else is kept. Losses are nats per supervised token on the held-out rows."""

    info: RunInfo
    loss: float
    """After the last step; infinite for a run that diverged."""
    curve: tuple[tuple[int, float], ...]
    """(step, loss), from step 0 on, as far as it is finite."""
    conditions: Mapping[str, Any]
    """See `Witness.conditions`."""
    step_seconds: float
    """Seconds of training per step, evaluation left out."""
    optimizer_state_bytes: int
    diverged_at: int | None
    """The step in which a number was not finite."""


def finetune(
    recipe: Recipe, observer: Observer | None = None, *, overwrite: bool = False, resume: bool | Path = False
) -> FinetuneReport:
    """Fine-tune as the recipe says: evaluate, train, evaluate again, and save.

    Nothing is written before the recipe, the data and the model have been checked. From then on `run.json` in the
    output directory says how the run stands, and it ends as "finished", "failed" or "interrupted".

    Args:
        recipe: from `load_recipe`.
        observer: told of every stage, step and evaluation; silent by default.
        overwrite: replace an earlier run in `training.output_dir` instead of refusing a directory that is not empty.
        resume: go on from the last complete checkpoint of `training.output_dir` (True), or from a checkpoint's or a
            run's directory. The run continues bit for bit; settings that cannot change are refused.

    Raises:
        FinetuneError: anything the user can answer; `exit_code` says of which kind.
        Interrupted: Ctrl-C or SIGTERM, after the step in hand was finished and a checkpoint saved.
    """
    from scao_hf.finetune import settings

    settings.require_complete(recipe)
    settings.check_reporters(recipe)
    output_dir = settings.output_directory(recipe)
    resumption = _resumption(resume, output_dir, overwrite)
    observer = observer if observer is not None and _is_first_process() else Silence()
    for notice in recipe.notices + (() if resumption is None else resumption.notices):
        observer.notice(notice)
    observer.stage("loading torch and transformers")
    from scao_hf.finetune.quiet import quiet
    from scao_hf.finetune.signals import terminating

    with quiet(), _restored(_MIXED_PRECISION), answers(output_dir), _no_trace(output_dir), terminating():
        return _Run(recipe, observer, output_dir, resumption).report()


def _resumption(resume: bool | Path, output_dir: Path, overwrite: bool) -> Resumption | None:
    """What is to be resumed, if anything, after a look at the output directory."""
    from scao_hf.finetune.record import check_directory, check_permission
    from scao_hf.finetune.resume import find_resumption

    found = None if resume is False else find_resumption(resume, output_dir, overwrite)
    if not _is_first_process():  # a later process would find what the first has begun to write
        return found
    if found is not None and found.in_place:
        check_permission(output_dir)
    else:
        check_directory(output_dir, overwrite)
    return found


def measure(recipe: Recipe, seed: int, observer: Observer | None = None) -> Measurement:
    """Train as the recipe says, keep nothing but measurements, and note under which conditions they were taken.

    A run that diverges is measured as well: its loss is infinite.

    Args:
        recipe: from `load_recipe`; holds rows out. `training.seed` decides which, `training.output_dir` is not used.
        seed: of the adapter's start and of the order of the batches.
        observer: told of every stage, step and evaluation; silent by default.

    Raises:
        FinetuneError: as `finetune`.
        Interrupted: Ctrl-C or SIGTERM, after the step in hand; nothing is saved.
    """
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    from scao_hf.finetune.quiet import quiet

    try:
        with tempfile.TemporaryDirectory(prefix="scao-finetune-") as name, quiet(), _restored(_MIXED_PRECISION):
            folder = Path(name)
            with answers(folder):
                return _MeasuredRun(recipe, seed, observer, folder).measurement()
    finally:
        _release_memory()


def identify(recipe: Recipe, observer: Observer | None = None) -> dict[str, Any]:
    """What tells the recipe's model and data from other ones, as plain values, after all checks that need no weights.

    Raises:
        FinetuneError: as `finetune`, for what can be seen without weights.
    """
    from scao_hf.finetune import model, settings

    settings.require_complete(recipe)
    observer = Silence() if observer is None else observer
    observer.stage("loading torch and transformers")
    from scao_hf.finetune.quiet import quiet

    output_dir = settings.output_directory(recipe)
    with quiet(), _restored(_MIXED_PRECISION), answers(output_dir):
        run = _Run(recipe, observer, output_dir)
        run._load_light()
        return {
            "data": run.rows.fingerprint,
            "model": model.fingerprint(run.config, run.reference),
            "device": str(run.device),
        }


def _release_memory() -> None:
    """Give a finished run's model back before the next one is loaded; a trainer is full of circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _restored(variable: str) -> Iterator[None]:
    """Leave an environment variable as it was found."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


@contextmanager
def answers(output_dir: Path) -> Iterator[None]:
    """Turn exceptions of the libraries and of the system that have an answer into errors that state it."""
    from scao_hf.finetune.failures import translated

    try:
        yield
    except FinetuneError:
        raise
    except KeyboardInterrupt as error:
        from scao_hf.finetune.signals import name_of

        raise Interrupted(name_of(error), 0, None) from error
    except Exception as error:
        known = translated(error, output_dir)
        if known is None:
            raise
        raise known from error


@contextmanager
def _no_trace(output_dir: Path) -> Iterator[None]:
    """Remove directories that Trainer made for a run that failed before it wrote anything."""
    missing = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class _Run:
    """The stages of one run, in order; `report` goes through them."""

    def __init__(
        self, recipe: Recipe, observer: Observer, output_dir: Path, resumption: Resumption | None = None
    ) -> None:
        self.recipe = recipe
        self.observer = observer
        self.output_dir = output_dir
        self.resumption = resumption
        self.checkpoint = None if resumption is None else resumption.checkpoint
        self.changes: list[Change] = []
        self.split_seed = int(recipe.training.get("seed", 42))

    def report(self) -> FinetuneReport:
        self._load_light()
        self._compare_with_checkpoint()
        self._load_weights()
        self._build_trainer()
        self._prepare_checkpoints()
        record = self._open_record()
        try:
            report = self._train_and_save(record)
        except BaseException as error:
            record.fail(self._named(error))
            raise
        record.add({"memory": self._footprint()})
        record.finish(report.to_dict())
        if _is_first_process():
            write_card(open_run(self.output_dir))
        return report

    def _footprint(self) -> dict[str, Any]:
        from scao_hf.finetune.footprint import footprint

        assert self.trainer.model is not None
        return footprint(self.trainer.model, state_bytes(self.trainer.optimizer), self.trainer.args.device)

    def _named(self, error: BaseException) -> BaseException:
        """The error as it will leave `finetune`, for run.json."""
        from scao_hf.finetune.failures import translated
        from scao_hf.finetune.signals import name_of

        if isinstance(error, KeyboardInterrupt):
            return Interrupted(name_of(error), self.trainer.state.global_step, None)
        return error if isinstance(error, FinetuneError) else translated(error, self.output_dir) or error

    # Everything that can be checked without weights

    def _load_light(self) -> None:
        from scao_hf.finetune.inputs import load_inputs

        inputs = load_inputs(self.recipe, self.split_seed, self.observer)
        self.device, self.reference, self.config = inputs.device, inputs.reference, inputs.config
        self.tokenizer: PreTrainedTokenizerBase = inputs.tokenizer
        self.rows: Rows = inputs.rows
        self.args = inputs.args

    def _compare_with_checkpoint(self) -> None:
        """Note what this run is, and refuse to go on from a checkpoint of another one."""
        from scao_hf.finetune import model, resume

        data = replace(self.recipe.data, format=self.rows.format, loss_on=self.rows.loss_on)
        named = model.fingerprint(self.config, self.reference)
        recipe = replace(self.recipe, data=data)
        self.facts = resume.facts_of(recipe, self.rows.fingerprint, named, self.args.world_size)
        if self.resumption is None or self.checkpoint is None:
            return
        self.changes = resume.check_resumable(self.checkpoint, self.facts)
        self.recipe = resume.with_settled_options(self.recipe, self.checkpoint)
        if self.args.max_steps > 0:
            resume.check_steps(self.checkpoint, self.args.max_steps, self.resumption.folder)
        for notice in resume.notices_of(self.checkpoint, self.changes, self.facts):
            self.observer.notice(notice)

    def _load_weights(self) -> None:
        from scao_hf.finetune import model

        self.observer.stage("loading the model")
        self.model: PreTrainedModel = model.load_model(self.recipe, self.reference, self.config, self.device)

    def _build_trainer(self) -> None:
        from peft import LoraConfig
        from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed

        from scao_hf.finetune import preflight, settings
        from scao_hf.finetune.safety import Safety
        from scao_hf.hf.callback import SCAOMonitorCallback

        self.observer.stage("tokenizing")
        # The adapter's start is random, and older releases of TRL leave the seed to the caller.
        set_seed(self.args.seed)
        lora = None if self.recipe.lora is None else LoraConfig(task_type="CAUSAL_LM", **self.recipe.lora)
        self.trainer: GuardedTrainer = self._trainer_class()(
            model=self.model,
            args=self.args,
            train_dataset=self.rows.training_set(self.args.seed),
            eval_dataset=self.rows.evaluation_set(),
            processing_class=self.tokenizer,
            peft_config=lora,
            callbacks=[SCAOMonitorCallback()] if self._has_diagnostics() else None,
        )
        self.start = self._adapter_start()
        stopping = settings.early_stopping(self.recipe)
        if stopping is not None:
            self.trainer.add_callback(EarlyStoppingCallback(**stopping))
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)
        self.safety = Safety(self.trainer, self.recipe, self.observer.notice)
        self.funnel = dict(self.rows.funnel)
        for notice in preflight.check(self.trainer, self.recipe, self.model, self.funnel):
            self.observer.notice(notice)
        for notice in preflight.notices(self.trainer, self.recipe, self.model):
            self.observer.notice(notice)
        self.steps = settings.settle_steps(self.trainer.args, self.recipe, self._train_rows())

    def _adapter_start(self) -> AdapterStart | None:
        from scao_hf.finetune.saving import adapter_start

        return adapter_start(self.recipe, self.trainer.model)

    def _prepare_checkpoints(self) -> None:
        """Tell the trainer what its checkpoints note, and what a checkpoint that it goes on from cannot know."""
        from scao_hf.finetune import resume
        from scao_hf.finetune.record import versions
        from scao_hf.finetune.settings import optimizer_options

        options = optimizer_options(self.recipe, self.steps)
        self.trainer.checkpoint_facts = {**self.facts, "options": options, "versions": versions()}
        if self.resumption is not None and self.checkpoint is not None:
            resume.check_steps(self.checkpoint, self.steps, self.resumption.folder)
            self.trainer.ledger.learning_rate_factor = resume.learning_rate_factor(self.checkpoint, self.changes)

    def _trainer_class(self) -> type[GuardedTrainer]:
        from scao_hf.finetune.trainer import GuardedTrainer

        return GuardedTrainer

    def _train_rows(self) -> int | None:
        """Rows of a pass over the training data; None for a stream."""
        dataset: Any = self.trainer.train_dataset
        return None if self.rows.stream is not None else len(dataset)

    def _has_diagnostics(self) -> bool:
        from scao_hf.hf.options import OPTIMIZERS

        return str(self.recipe.training["optim"]) in OPTIMIZERS

    # Writing begins here

    def _open_record(self) -> RunRecord:
        from scao_hf.finetune import resume
        from scao_hf.finetune.recipes import resolved_yaml
        from scao_hf.finetune.record import RunRecord

        info = self._info()
        if self.resumption is not None and _is_first_process():
            resume.drop_later(self.resumption)
        facts = {
            "recipe": self.recipe.name,
            "overrides": list(self.recipe.overrides),
            "seed": self.trainer.args.seed,
            "data": {
                "fingerprint": self.rows.fingerprint,
                "funnel": self.funnel,
                "conversational": self.rows.conversational,
            },
            "run": asdict(info),
        }
        resolved = resolved_yaml(self._resolved())
        record = RunRecord(self.output_dir, facts, resolved, _is_first_process(), self._earlier())
        self.observer.begin(info)
        return record

    def _earlier(self) -> Earlier | None:
        from scao_hf.finetune.record import Earlier

        if self.resumption is None or self.checkpoint is None:
            return None
        changes = {change.key: [change.before, change.now] for change in self.changes}
        path, step = self.checkpoint.path, self.checkpoint.step
        return Earlier(folder=self.resumption.folder, checkpoint=path, step=step, changes=changes)

    def _resolved(self) -> Recipe:
        """The recipe with what was settled in the place of "auto" and of fractions."""
        from scao_hf.finetune.settings import optimizer_options

        recipe, args = self.recipe, self.trainer.args
        return replace(
            recipe,
            model=replace(recipe.model, dtype=self._dtype_name()),
            data=replace(recipe.data, format=self.rows.format, loss_on=self.rows.loss_on),
            training={**recipe.training, "warmup_steps": args.warmup_steps, "bf16": args.bf16, "seed": args.seed},
            scao=optimizer_options(recipe, self.steps),
        )

    def _dtype_name(self) -> str:
        from scao_hf.finetune.model import weights_dtype

        return str(weights_dtype(self.recipe, self.device)).removeprefix("torch.")

    def _info(self) -> RunInfo:
        from scao_hf.finetune.settings import adam_steps, optimizer_options

        args, recipe = self.trainer.args, self.recipe
        rows = self._train_rows()
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        trainable, total = parameter_counts(self.trainer.model)
        passes = None if rows is None else self.steps * rows_per_step / rows
        if args.max_steps <= 0:
            passes = float(args.num_train_epochs)
        return RunInfo(
            recipe=recipe.name,
            output_dir=self.output_dir,
            model=str(recipe.model.model_name_or_path),
            dataset=str(recipe.data.path),
            dataset_format=self.rows.format,
            loss_on=self.rows.loss_on,
            device=str(self.trainer.args.device),
            dtype=self._dtype_name() + (" with bfloat16 autocast" if args.bf16 else ""),
            optimizer=str(recipe.training["optim"]),
            learning_rate=args.learning_rate,
            train_rows=rows,
            eval_rows=len(self.rows.evaluation),
            rows_per_step=rows_per_step,
            total_steps=self.steps,
            epochs=passes,
            trainable_parameters=trainable,
            total_parameters=total,
            lr_warmup_steps=int(args.warmup_steps),
            adam_steps=adam_steps(str(recipe.training["optim"]), optimizer_options(recipe, self.steps)),
            funnel=self.funnel,
        )

    def _train_and_save(self, record: RunRecord) -> FinetuneReport:
        from scao_hf.finetune.layers import LayerRecorder
        from scao_hf.finetune.progress import Reporter

        reporter = Reporter(self.trainer, self.observer, record)
        self.trainer.on_evaluated = reporter.evaluated
        self.trainer.add_callback(reporter)
        self.trainer.add_callback(LayerRecorder(self.trainer, record))
        prompt = self._prompt()
        if self.checkpoint is None:
            self._look_before_training(prompt)
        reporter.moment = "during"
        self._train()
        # Before anything else that may fail: from here on only measurements can be lost.
        saved = self._save()
        self.observer.saved(saved)
        reporter.moment = "after"
        with self.safety.weights_are_in(saved):
            self._evaluate_after(reporter)
            after = self._sample(prompt)
        before = self.trainer.ledger.sample_before
        return self._report(reporter, saved, (prompt.text if before is not None else None, before, after))

    def _look_before_training(self, prompt: Prompt) -> None:
        if self.rows.evaluation:
            self.observer.stage("evaluating before training")
            with self.safety.advice():
                self.trainer.evaluate()
        self.trainer.ledger.sample_before = self._sample(prompt)

    def _train(self) -> None:
        self.observer.stage("training")
        self.safety.train(None if self.checkpoint is None else self.checkpoint.path)

    def _evaluate_after(self, reporter: Reporter) -> None:
        if not self.rows.evaluation:
            return
        last = reporter.last_evaluation
        reloaded = self.trainer.args.load_best_model_at_end
        if last is not None and last.step == self.trainer.state.global_step and not reloaded:
            reporter.evaluated_again("after")
            return
        self.observer.stage("evaluating after training")
        self.trainer.evaluate()

    # Samples, saving and the report

    def _prompt(self) -> Prompt:
        from scao_hf.finetune.sample import given_prompt, prompt_of

        given = self.recipe.data.sample_prompt
        if given is not None:
            return given_prompt(given, self.rows.conversational)
        return prompt_of((self.rows.evaluation or self.rows.train)[0])

    def _sample(self, prompt: Prompt) -> str | None:
        from scao_hf.finetune.model import context_length
        from scao_hf.finetune.sample import sample

        tokens = self.recipe.data.sample_tokens
        if tokens == 0:
            return None
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return sample(model, self.tokenizer, prompt, tokens, context_length(self.config), self.trainer.args.seed)

    def _save(self) -> Path:
        from scao_hf.finetune.record import ADAPTER, MODEL
        from scao_hf.finetune.saving import save_weights

        self.observer.stage("saving")
        target = self.output_dir / (MODEL if self.recipe.lora is None else ADAPTER)
        if _is_first_process():
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            card = model_card(open_run(self.output_dir), target.name, adapter=self.recipe.lora is not None)
            save_weights(model, self.tokenizer, card, target, self.start)
        return target

    def _report(
        self, reporter: Reporter, saved: Path, samples: tuple[str | None, str | None, str | None]
    ) -> FinetuneReport:
        first, last, state = reporter.first_evaluation, reporter.last_evaluation, self.trainer.state
        trainable, total = parameter_counts(self.trainer.model)
        return FinetuneReport(
            recipe=self.recipe.name,
            output_dir=self.output_dir,
            saved_dir=saved,
            is_adapter=self.recipe.lora is not None,
            optimizer=str(self.recipe.training["optim"]),
            initial_eval_loss=None if first is None else first.loss,
            final_eval_loss=None if last is None else last.loss,
            initial_perplexity=None if first is None else first.perplexity,
            final_perplexity=None if last is None else last.perplexity,
            train_loss=self.trainer.ledger.mean_loss(),
            steps=state.global_step,
            epochs=float(state.epoch or 0.0),
            train_seconds=self.trainer.stopwatch.seconds,
            tokens=int(self.trainer._total_train_tokens),
            trainable_parameters=trainable,
            total_parameters=total,
            optimizer_state_bytes=state_bytes(self.trainer.optimizer),
            sample_prompt=samples[0],
            sample_before=samples[1],
            sample_after=samples[2],
            stopped_early=state.global_step < self.steps,
            best_step=state.best_global_step,
            best_metric=state.best_metric,
            best_checkpoint=None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint),
        )


class _MeasuredRun(_Run):
    """A run that is watched by a witness and saves nothing."""

    trainer: WitnessedTrainer

    def __init__(self, recipe: Recipe, seed: int, observer: Observer, output_dir: Path) -> None:
        super().__init__(recipe, observer, output_dir)
        training = {**recipe.training, "seed": seed, "output_dir": str(output_dir)}
        self.recipe = replace(recipe, training=training)

    def _trainer_class(self) -> type[GuardedTrainer]:
        from scao_hf.finetune.witness import WitnessedTrainer

        return WitnessedTrainer

    def measurement(self) -> Measurement:
        self._load_light()
        self._load_weights()
        self._build_trainer()
        info, curve = self._info(), self._watch()
        self.observer.begin(info)
        self.trainer.evaluate()
        self._train()
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
        from scao_hf.finetune.progress import Reporter
        from scao_hf.finetune.record import RunRecord
        from scao_hf.finetune.witness import Witness

        trainer, curve = self.trainer, []
        trainer.witness = Witness(trainer)
        reporter = Reporter(trainer, self.observer, RunRecord(self.output_dir, {}, "", writes=False))
        reporter.moment = "during"

        def evaluated(result: Evaluation, seconds: float) -> None:
            curve.append((trainer.state.global_step, result.loss))
            reporter.evaluated(result, seconds)

        trainer.on_evaluated = evaluated
        trainer.add_callback(trainer.witness)
        trainer.add_callback(reporter)
        return curve


def parameter_counts(model: Any) -> tuple[int, int]:
    """Trainable parameters and all parameters; a quantized matrix counts its original elements."""
    sizes = [(parameter, _elements(parameter)) for parameter in model.parameters()]
    return sum(size for parameter, size in sizes if parameter.requires_grad), sum(size for _, size in sizes)


def _elements(parameter: torch.Tensor) -> int:
    # bitsandbytes packs two 4-bit values into a byte and keeps the shape they had.
    quantized = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantized is None else int(quantized.shape.numel())


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in an optimizer's state; a view counts its own elements."""
    import torch

    optimizer = getattr(optimizer, "optimizer", optimizer)
    held = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in held if isinstance(value, torch.Tensor))
