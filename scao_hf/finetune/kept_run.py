"""A run that is kept: checkpoints, samples, saved weights, and the record of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scao_hf.finetune import model, resume, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.devices import Gauge, available_bytes
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.failures import translated
from scao_hf.finetune.footprint import footprint, parameter_counts, state_bytes
from scao_hf.finetune.layers import LayerRecorder
from scao_hf.finetune.layout import ADAPTER, MODEL
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.outcome import FinetuneReport
from scao_hf.finetune.planning.memory import memory_of
from scao_hf.finetune.planning.outcome import Memory
from scao_hf.finetune.planning.shapes import shapes_of
from scao_hf.finetune.planning.space import check_space
from scao_hf.finetune.preflight import longest_row
from scao_hf.finetune.progress import Reporter
from scao_hf.finetune.recipes import resolved_yaml
from scao_hf.finetune.record import Earlier, RunRecord, versions
from scao_hf.finetune.results.card import model_card, write_card
from scao_hf.finetune.results.folder import open_run
from scao_hf.finetune.sample import Prompt, given_prompt, prompt_of, sample
from scao_hf.finetune.saving import adapter_start, save_weights
from scao_hf.finetune.signals import name_of
from scao_hf.finetune.stages import Stages
from scao_hf.finetune.surroundings import is_first_process

if TYPE_CHECKING:
    from scao_hf.finetune.resume import Change, Resumption


class KeptRun(Stages):
    """The stages of `finetune`, in order; `report` goes through them."""

    def __init__(
        self, recipe: Recipe, observer: Observer, output_dir: Path, resumption: Resumption | None = None
    ) -> None:
        super().__init__(recipe, observer, output_dir)
        self.resumption = resumption
        self.checkpoint = None if resumption is None else resumption.checkpoint
        self.changes: list[Change] = []

    def report(self) -> FinetuneReport:
        self.load_inputs()
        self._compare_with_checkpoint()
        self._check_space()
        self.load_weights()
        self.build_trainer()
        self._prepare_checkpoints()
        record = self._open_record()
        try:
            report = self._train_and_save(record)
        except BaseException as error:
            record.fail(self._named(error))
            raise
        assert self.trainer.model is not None
        record.add({"memory": footprint(self.trainer.model, state_bytes(self.trainer.optimizer), self.gauge)})
        record.finish(report.to_dict())
        if is_first_process():
            write_card(open_run(self.output_dir))
        return report

    def _check_space(self) -> None:
        if is_first_process():  # The others write nothing.
            for notice in check_space(self.recipe, self.inputs, self.output_dir):
                self.observer.notice(notice)

    def load_weights(self) -> None:
        self.gauge, self.available = Gauge(self.device), available_bytes(self.device)
        super().load_weights()

    def build_trainer(self) -> None:
        super().build_trainer()
        self.start = adapter_start(self.recipe, self.trainer.model)
        self.memory_plan = self._plan_memory() if is_first_process() else None

    def _plan_memory(self) -> Memory | None:
        """What `plan` says of the memory; None for a model that cannot be laid out without any, which is told."""
        trained, longest = self.trainer.model, longest_row(self.trainer.train_dataset)
        try:
            shapes = shapes_of(trained, self.recipe, self.config, self.device)
            return memory_of(self.recipe, self.trainer.args, shapes, longest, self.device, self.available)
        # The run can do without it, whatever went wrong in the code of a model.
        except Exception as error:
            self.observer.notice(f"the memory was not planned: {type(error).__name__}: {error}")
            return None

    def _named(self, error: BaseException) -> BaseException:
        """The error as it will leave `finetune`, for run.json."""
        if isinstance(error, KeyboardInterrupt):
            return Interrupted(name_of(error), self.trainer.state.global_step, None)
        return error if isinstance(error, FinetuneError) else translated(error, self.output_dir) or error

    # Going on from a checkpoint

    def _compare_with_checkpoint(self) -> None:
        """Note what this run is, and refuse to go on from a checkpoint of another one."""
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

    def _prepare_checkpoints(self) -> None:
        """Tell the trainer what its checkpoints note, and what a checkpoint that it goes on from cannot know."""
        options = settings.optimizer_options(self.recipe, self.steps)
        self.trainer.checkpoint_facts = {**self.facts, "options": options, "versions": versions()}
        if self.resumption is not None and self.checkpoint is not None:
            resume.check_steps(self.checkpoint, self.steps, self.resumption.folder)
            self.trainer.ledger.learning_rate_factor = resume.learning_rate_factor(self.checkpoint, self.changes)

    # Writing begins here

    def _open_record(self) -> RunRecord:
        info = self.info()
        if self.resumption is not None and is_first_process():
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
            "memory_plan": None if self.memory_plan is None else self.memory_plan.to_dict(),
        }
        resolved = resolved_yaml(self._resolved())
        record = RunRecord(self.output_dir, facts, resolved, is_first_process(), self._earlier())
        self.observer.begin(info)
        return record

    def _earlier(self) -> Earlier | None:
        if self.resumption is None or self.checkpoint is None:
            return None
        changes = {change.key: [change.before, change.now] for change in self.changes}
        path, step = self.checkpoint.path, self.checkpoint.step
        return Earlier(folder=self.resumption.folder, checkpoint=path, step=step, changes=changes)

    def _resolved(self) -> Recipe:
        """The recipe with what was settled in the place of "auto" and of fractions."""
        recipe, args = self.recipe, self.trainer.args
        return replace(
            recipe,
            model=replace(recipe.model, dtype=self.dtype_name()),
            data=replace(recipe.data, format=self.rows.format, loss_on=self.rows.loss_on),
            training={**recipe.training, "warmup_steps": args.warmup_steps, "bf16": args.bf16, "seed": args.seed},
            scao=settings.optimizer_options(recipe, self.steps),
        )

    def _train_and_save(self, record: RunRecord) -> FinetuneReport:
        reporter = Reporter(self.trainer, self.observer, record)
        self.trainer.on_evaluated = reporter.evaluated
        self.trainer.add_callback(reporter)
        self.trainer.add_callback(LayerRecorder(self.trainer, record))
        prompt = self._prompt()
        if self.checkpoint is None:
            self._look_before_training(prompt)
        reporter.moment = "during"
        self.train(None if self.checkpoint is None else self.checkpoint.path)
        # Before anything else that may fail: from here on only measurements can be lost.
        saved = self.save()
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
        given = self.recipe.data.sample_prompt
        if given is not None:
            return given_prompt(given, self.rows.conversational)
        return prompt_of((self.rows.evaluation or self.rows.train)[0])

    def _sample(self, prompt: Prompt) -> str | None:
        tokens = self.recipe.data.sample_tokens
        if tokens == 0:
            return None
        unwrapped = self.trainer.accelerator.unwrap_model(self.trainer.model)
        context = model.context_length(self.config)
        return sample(unwrapped, self.tokenizer, prompt, tokens, context, self.trainer.args.seed)

    def save(self) -> Path:
        """Write the adapter or the model, and return its folder."""
        self.observer.stage("saving")
        target = self.output_dir / (MODEL if self.recipe.lora is None else ADAPTER)
        if is_first_process():
            unwrapped = self.trainer.accelerator.unwrap_model(self.trainer.model)
            card = model_card(open_run(self.output_dir), target.name, adapter=self.recipe.lora is not None)
            save_weights(unwrapped, self.tokenizer, card, target, self.start)
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
