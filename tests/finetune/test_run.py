"""Whole runs of three steps on a tiny model: what they leave behind, and how they end when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.observer import EvalMetrics, Observer, RunInfo, StepMetrics
from scao_hf.finetune.recipes import load_recipe, recipe_names
from scao_hf.finetune.run import FinetuneReport, finetune


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self, at_step: Callable[[int], None] | None = None) -> None:
        self.stages: list[str] = []
        self.info: RunInfo | None = None
        self.steps: list[StepMetrics] = []
        self.evaluations: list[EvalMetrics] = []
        self.paths: list[Path] = []
        self.notices: list[str] = []
        self.at_step = at_step

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def begin(self, info: RunInfo) -> None:
        self.info = info

    def step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)
        if self.at_step is not None:
            self.at_step(metrics.step)

    def evaluated(self, metrics: EvalMetrics) -> None:
        self.evaluations.append(metrics)

    def saved(self, path: Path) -> None:
        self.paths.append(path)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def run_json(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


def refusal(recipe_file: Path, *overrides: str, **options: Any) -> FinetuneError:
    recipe = load_recipe(str(recipe_file), overrides)
    with pytest.raises(FinetuneError) as caught:
        finetune(recipe, **options)
    return caught.value


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneReport, Recorder]:
    """A run of three steps of SCAO with LoRA on chats, evaluated at every step."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "chats.jsonl"
    chats = (
        [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": f"it is {n}."}]
        for n in range(24)
    )
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    recipe = load_recipe(
        "lora-sft",
        [
            f"model.model_name_or_path={tiny_model}",
            f"data.path={data}",
            f"output_dir={folder / 'run'}",
            "data.max_length=96",
            "data.test_split_size=4",
            "data.sample_tokens=4",
            "learning_rate=1e-2",
            "max_steps=3",
            "gradient_accumulation_steps=1",
            "logging_steps=1",
            "eval_steps=1",
            "save_steps=2",
            "use_cpu=true",
            "scao.precond_freq=1",
        ],
    )
    recorder = Recorder()
    return finetune(recipe, recorder), recorder


def test_a_run_reports_falling_held_out_loss_and_consistent_counts(
    finished: tuple[FinetuneReport, Recorder],
) -> None:
    report, recorder = finished
    assert report.final_eval_loss is not None
    assert report.initial_eval_loss is not None
    assert report.final_eval_loss < report.initial_eval_loss
    assert report.final_perplexity == pytest.approx(torch.tensor(report.final_eval_loss).double().exp().item())
    assert (report.steps, report.optimizer, report.is_adapter) == (3, "scao", True)
    assert report.trainable_parameters < report.total_parameters
    assert report.optimizer_state_bytes == recorder.steps[-1].scao["state_bytes"]
    assert report.sample_prompt is not None
    assert report.sample_prompt.startswith("what is ")
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_observer_is_told_of_every_step_evaluation_and_file(finished: tuple[FinetuneReport, Recorder]) -> None:
    report, recorder = finished
    assert [metrics.step for metrics in recorder.steps] == [1, 2, 3]
    assert [(metrics.moment, metrics.step) for metrics in recorder.evaluations] == [
        ("before", 0),
        ("during", 1),
        ("during", 2),
        ("during", 3),
        ("after", 3),
    ]
    assert recorder.evaluations[-1].loss == report.final_eval_loss
    assert [path.name for path in recorder.paths] == ["checkpoint-2", "checkpoint-3", "adapter"]
    assert recorder.steps[-1].tokens == report.tokens
    assert recorder.info is not None
    assert recorder.info.total_steps == 3
    assert recorder.info.funnel == {
        "read": 24,
        "parsed": 24,
        "formatted": 24,
        "for training": 20,
        "after max_length": 20,
    }
    assert recorder.info.loss_on == "assistant"


def test_preconditioning_begins_after_the_adam_phase_that_was_announced(
    finished: tuple[FinetuneReport, Recorder],
) -> None:
    _, recorder = finished
    assert recorder.info is not None
    assert recorder.info.adam_steps is not None
    assert [metrics.scao["phase"] > 0 for metrics in recorder.steps] == [
        metrics.step > recorder.info.adam_steps for metrics in recorder.steps
    ]


def test_the_reloaded_adapter_has_the_held_out_loss_of_the_run(
    finished: tuple[FinetuneReport, Recorder], tiny_model: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from scao_hf.finetune.config import DataSection
    from scao_hf.finetune.data import Template, prepare_rows
    from scao_hf.finetune.evaluate import evaluate

    report, _ = finished
    model = AutoPeftModelForCausalLM.from_pretrained(report.saved_dir)
    tokenizer = AutoTokenizer.from_pretrained(report.saved_dir)
    data = DataSection(path=str(report.output_dir.parent / "chats.jsonl"), test_split_size=4)
    rows = prepare_rows(data, seed=42, template=Template(exists=True, masks_assistant=True))
    batches = [_assistant_batch(tokenizer, row["messages"]) for row in rows.evaluation]
    assert evaluate(model, batches).loss == pytest.approx(report.final_eval_loss, rel=1e-6)


def _assistant_batch(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = torch.tensor([encoded["input_ids"]])
    spoken = torch.tensor([encoded["assistant_masks"]]).bool()
    return {"input_ids": ids, "labels": torch.where(spoken, ids, -100)}


def test_a_run_leaves_its_record(finished: tuple[FinetuneReport, Recorder]) -> None:
    report, recorder = finished
    record = run_json(report.output_dir)
    assert (record["status"], record["exit_code"]) == ("finished", 0)
    assert record["report"] == report.to_dict()
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 42
    assert record["data"]["fingerprint"].startswith("sha256:")
    lines = [json.loads(line) for line in (report.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["event"] == "step"] == [step.loss for step in recorder.steps]
    assert all("scao/rank_mean" in line for line in lines if line["event"] == "step")
    assert [line["step"] for line in lines if line["event"] == "layers"] == [1, 2, 3]
    assert [line["moment"] for line in lines if line["event"] == "evaluation"] == ["before"] + ["during"] * 3
    assert sorted(path.name for path in report.output_dir.iterdir()) == [
        "README.md",
        "adapter",
        "checkpoint-2",
        "checkpoint-3",
        "metrics.jsonl",
        "recipe.resolved.yaml",
        "run.json",
    ]


def test_the_resolved_recipe_says_what_auto_became(finished: tuple[FinetuneReport, Recorder]) -> None:
    report, _ = finished
    resolved = load_recipe(str(report.output_dir / "recipe.resolved.yaml"))
    assert resolved.scao["warmup_steps"] == 0
    assert resolved.training["warmup_steps"] == 1
    assert resolved.model.dtype == "float32"
    assert (resolved.data.format, resolved.data.loss_on) == ("messages", "assistant")


def test_a_run_repeats_bit_for_bit_from_its_resolved_recipe(
    finished: tuple[FinetuneReport, Recorder], tmp_path: Path
) -> None:
    report, recorder = finished
    again = Recorder()
    recipe = load_recipe(str(report.output_dir / "recipe.resolved.yaml"), [f"output_dir={tmp_path / 'again'}"])
    repeated = finetune(recipe, again)
    assert [step.loss for step in again.steps] == [step.loss for step in recorder.steps]
    assert repeated.final_eval_loss == report.final_eval_loss
    assert repeated.sample_after == report.sample_after


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_trains_two_steps(
    name: str, tiny_model: Path, texts: Path, chats: Path, tmp_path: Path
) -> None:
    packed = name in ("text-completion", "tiny-llama")
    data = texts if packed else chats
    overrides = [
        f"model.model_name_or_path={tiny_model}",
        f"data.path={data}",
        f"output_dir={tmp_path / 'run'}",
        "data.max_length=64",
        "data.sample_tokens=2",
        "max_steps=2",
        "gradient_accumulation_steps=1",
        "use_cpu=true",
        f"data.eval_path={data}" if name == "tiny-llama" else "data.test_split_size=2",
        "quantization=null",  # The quantized base has a test of its own, which needs bitsandbytes.
    ]
    report = finetune(load_recipe(name, overrides))
    assert report.steps == 2
    assert report.is_adapter == (name not in ("full-ft-small", "tiny-llama"))
    assert report.saved_dir.is_dir()
    assert run_json(report.output_dir)["status"] == "finished"


def test_full_fine_tuning_saves_a_model_with_the_held_out_loss_of_the_run(recipe_file: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scao_hf.finetune.config import DataSection
    from scao_hf.finetune.data import Template, prepare_rows
    from scao_hf.finetune.evaluate import evaluate

    recipe = load_recipe(str(recipe_file), ["lora=null", "optim=adamw_torch"])
    report = finetune(recipe)
    assert report.trainable_parameters == report.total_parameters
    assert report.saved_dir.name == "model"
    model = AutoModelForCausalLM.from_pretrained(report.saved_dir)
    tokenizer = AutoTokenizer.from_pretrained(report.saved_dir)
    data = DataSection(path=recipe.data.path, test_split_size=4)
    rows = prepare_rows(data, seed=42, template=Template(exists=True, masks_assistant=True))
    texts = (row["text"] + tokenizer.eos_token for row in rows.evaluation)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    again = evaluate(model, [{"input_ids": row, "labels": row} for row in ids])
    assert again.loss == pytest.approx(report.final_eval_loss, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["scao_published", "soap", "adamw_torch"])
def test_other_optimizers_train_from_the_same_recipe(recipe_file: Path, optimizer: str) -> None:
    report = finetune(load_recipe(str(recipe_file), ["scao=null", f"optim={optimizer}"]))
    assert report.optimizer == optimizer
    assert report.final_eval_loss is not None
    assert report.final_eval_loss < 6


def test_a_run_without_held_out_rows_reports_the_training_loss_alone(recipe_file: Path) -> None:
    report = finetune(load_recipe(str(recipe_file), ["data.test_split_size=null"]))
    assert report.initial_eval_loss is None
    assert report.final_perplexity is None
    assert report.train_loss > 0


# What must be refused, with nothing written


@pytest.mark.parametrize(
    ("overrides", "code", "exit_code"),
    [
        (["data.path=null"], "config.missing-value", 2),
        (["model.model_name_or_path=null", "data.path=null"], "config.several", 2),
        (["model.model_name_or_path=./nowhere"], "model.not-found", 4),
        (["data.path=nowhere.jsonl"], "data.missing-file", 3),
        (["data.max_length=129"], "model.context", 4),
        (["lora.target_modules=[no_such_layer]"], "model.target-modules", 4),
        (["data.column_mapping={text: words}"], "data.column-mapping", 3),
        (["report_to=wandb"], "extra.missing", 1),
        (["report_to=wandbb"], "config.invalid-value", 2),
        (["load_best_model_at_end=true", "eval_strategy=steps", "eval_steps=1"], "config.invalid-value", 2),
    ],
)
def test_a_run_that_cannot_start_writes_nothing(
    recipe_file: Path, overrides: list[str], code: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scao_hf.finetune import settings

    monkeypatch.setattr(settings, "_REPORTERS", {"wandb": "no_such_module"})
    error = refusal(recipe_file, *overrides)
    assert (error.code, error.exit_code) == (code, exit_code)
    assert error.message
    assert not (recipe_file.parent / "run").exists()


def test_rows_that_the_cut_leaves_nothing_of_are_refused(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    data = rows_file([{"prompt": "word " * 40, "completion": f"answer {n}"} for n in range(8)], "long.jsonl")
    error = refusal(recipe_file, f"data.path={data}")
    assert (error.code, error.exit_code) == ("data.nothing-left", 3)
    assert error.hint == "raise data.max_length, or data.loss_on=all"
    assert "read 8 → parsed 8 → formatted 8 → for training 4 → after max_length 0" in error.message
    assert not (recipe_file.parent / "run").exists()


def test_a_run_that_trains_hardly_any_token_says_so(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    data = rows_file([{"prompt": "x" * 124, "completion": "y"} for _ in range(8)], "long.jsonl")
    recorder = Recorder()
    finetune(load_recipe(str(recipe_file), [f"data.path={data}", "data.max_length=128", "max_steps=1"]), recorder)
    assert [notice for notice in recorder.notices if "of the tokens" in notice] == [
        "the loss counts 1.6% of the tokens: `scao-finetune preview` shows which, data.loss_on changes it"
    ]


def test_rows_whose_labels_are_all_masked_are_refused(
    recipe_file: Path, tiny_model: Path, chats: Path, tmp_path: Path
) -> None:
    template = (
        "{% for message in messages %}{{ message['role'] + message['content'] }}"
        "{% if message['role'] == 'tool' %}{% generation %}{{ 'x' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    model = Path(shutil.copytree(tiny_model, tmp_path / "masking"))
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    error = refusal(recipe_file, f"data.path={chats}", f"model.model_name_or_path={model}")
    assert (error.code, error.exit_code) == ("data.all-masked", 3)
    assert error.hint == "data.loss_on=completion, or another chat template"
    assert not (recipe_file.parent / "run").exists()


def test_a_directory_in_use_is_refused_and_only_a_runs_directory_is_overwritten(recipe_file: Path) -> None:
    directory = recipe_file.parent / "run"
    directory.mkdir()
    (directory / "thesis.txt").write_text("mine", encoding="utf-8")
    error = refusal(recipe_file)
    assert (error.code, error.exit_code) == ("config.output-exists", 2)
    assert refusal(recipe_file, overwrite=True).code == "config.output-exists"
    (directory / "run.json").write_text("{}", encoding="utf-8")
    (directory / "checkpoint-9").mkdir()
    finetune(load_recipe(str(recipe_file)), overwrite=True)
    assert (directory / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert not (directory / "checkpoint-9").exists()
    assert run_json(directory)["status"] == "finished"


# What goes wrong on the way


def poisoned(tiny_model: Path, folder: Path) -> Path:
    """A copy of the model with a NaN among its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_model_with_nan_weights_is_refused_before_training(
    recipe_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    bad = poisoned(tiny_model, tmp_path / "nan-model")
    error = refusal(recipe_file, f"model.model_name_or_path={bad}")
    assert (error.code, error.exit_code) == ("diverged.loss", 6)
    assert error.message == "the held-out loss is nan after step 0"
    record = run_json(recipe_file.parent / "run")
    assert (record["status"], record["exit_code"]) == ("failed", 6)
    assert record["error"]["code"] == "diverged.loss"


def test_a_nan_loss_in_training_stops_the_run_before_the_weights(
    recipe_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    bad = poisoned(tiny_model, tmp_path / "nan-model")
    error = refusal(recipe_file, f"model.model_name_or_path={bad}", "data.test_split_size=null", "data.sample_tokens=0")
    assert (error.code, error.exit_code) == ("diverged.loss", 6)
    assert error.message == (
        "the loss became nan in step 1 of 3 (the weights of model.layers.0.mlp.up_proj.weight are not finite); "
        "there is no checkpoint"
    )
    assert not list((recipe_file.parent / "run").glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_steps_before_it(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scao_hf.finetune.trainer import GuardedTrainer

    step = GuardedTrainer.training_step

    def poison(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 2:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(GuardedTrainer, "training_step", poison)
    error = refusal(recipe_file)
    directory = recipe_file.parent / "run"
    assert (error.code, error.exit_code) == ("diverged.gradient", 6)
    assert error.message == (
        "the gradient is not finite in step 3 of 3 (on the way back from the loss it begins with "
        "model.layers.0.self_attn.q_proj.lora_A.default.weight, of 14 that are trained); "
        f"the steps before it are in {directory / 'checkpoint-2'}"
    )
    state = torch.load(directory / "checkpoint-2" / "optimizer.pt", weights_only=True)
    tensors = [value for entry in state["state"].values() for value in entry.values() if torch.is_tensor(value)]
    assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
    assert not (directory / "adapter").exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    recipe_file: Path, number: signal.Signals, exit_code: int
) -> None:
    before = signal.getsignal(number)
    recorder = Recorder(lambda step: os.kill(os.getpid(), number) if step == 1 else None)
    recipe = load_recipe(str(recipe_file), ["max_steps=6"])
    with pytest.raises(Interrupted) as caught:
        finetune(recipe, recorder)
    directory = recipe_file.parent / "run"
    stopped = caught.value
    assert stopped.exit_code == exit_code
    assert stopped.checkpoint == directory / f"checkpoint-{stopped.step}"
    assert stopped.step == recorder.steps[-1].step <= 2
    assert (stopped.checkpoint / "optimizer.pt").is_file()
    record = run_json(directory)
    assert (record["status"], record["exit_code"]) == ("interrupted", exit_code)
    assert record["error"]["checkpoint"] == str(stopped.checkpoint)
    assert f"{number.name}: stopping after this step" in recorder.notices
    assert signal.getsignal(number) is before


def test_ctrl_c_before_the_first_step_leaves_nothing(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scao_hf.finetune import model

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "load_model", interrupt)
    recipe = load_recipe(str(recipe_file))
    with pytest.raises(Interrupted) as caught:
        finetune(recipe)
    assert (caught.value.exit_code, caught.value.checkpoint) == (130, None)
    assert not (recipe_file.parent / "run").exists()


def failing_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory.out", 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "memory.out", 5),
        (OSError(28, "No space left on device"), "disk.full", 7),
        (OSError(13, "Permission denied", "run"), "disk.permission", 7),
    ],
)
def test_what_fails_in_training_is_named_and_recorded(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: str, exit_code: int
) -> None:
    from scao_hf.finetune.trainer import GuardedTrainer

    monkeypatch.setattr(GuardedTrainer, "training_step", failing_with(error))
    raised = refusal(recipe_file)
    assert (raised.code, raised.exit_code) == (code, exit_code)
    record = run_json(recipe_file.parent / "run")
    assert (record["status"], record["exit_code"], record["error"]["code"]) == ("failed", exit_code, code)


def test_a_checkpoint_that_cannot_be_written_leaves_no_part_of_it(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    full = failing_with(OSError(28, "No space left on device"))
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    error = refusal(recipe_file, "save_strategy=steps", "save_steps=1")
    assert (error.code, error.exit_code) == ("disk.full", 7)
    assert sorted(path.name for path in (recipe_file.parent / "run").iterdir()) == [
        "README.md",
        "metrics.jsonl",
        "recipe.resolved.yaml",
        "run.json",
    ]


def test_weights_that_cannot_be_written_leave_no_part_of_them(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    full = failing_with(OSError(28, "No space left on device"))
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    error = refusal(recipe_file)
    assert (error.code, error.exit_code) == ("disk.full", 7)
    left = {path.name for path in (recipe_file.parent / "run").iterdir()}
    assert left == {"metrics.jsonl", "recipe.resolved.yaml", "run.json"}


def test_what_a_killed_run_left_is_not_saved_with_the_next_ones_weights(recipe_file: Path) -> None:
    directory = recipe_file.parent / "run"
    left_over = directory / ".adapter.part"
    left_over.mkdir(parents=True)
    for path in (directory / "run.json", directory / "error.log", left_over / "shard-7.safetensors"):
        path.write_text("{}", encoding="utf-8")
    report = finetune(load_recipe(str(recipe_file)), overwrite=True)
    assert not (report.saved_dir / "shard-7.safetensors").exists()
    assert not left_over.exists()
    assert not (directory / "error.log").exists()


def test_an_unknown_failure_is_recorded_and_raised_as_it_is(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scao_hf.finetune.trainer import GuardedTrainer

    monkeypatch.setattr(GuardedTrainer, "training_step", failing_with(LookupError("a bug")))
    recipe = load_recipe(str(recipe_file))
    with pytest.raises(LookupError, match="a bug"):
        finetune(recipe)
    record = run_json(recipe_file.parent / "run")
    assert (record["status"], record["exit_code"]) == ("failed", 1)
    assert record["error"] == {"code": "internal", "message": "LookupError: a bug"}


def test_the_libraries_print_nothing(recipe_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(str(recipe_file), ["eval_strategy=steps", "eval_steps=1"])
    capfd.readouterr()
    finetune(recipe)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_packed_rows_do_not_see_each_other(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    """At learning rate zero, one step over all rows has the same loss per token packed and one by one."""
    rows = [{"prompt": f"row {n} ", "completion": f"of length {'x' * (n % 5)}"} for n in range(24)]
    data = rows_file(rows, "pc.jsonl")
    still = [f"data.path={data}", "max_steps=1", "learning_rate=0", "per_device_train_batch_size=32"]
    apart = finetune(load_recipe(str(recipe_file), still))
    shared = ["data.packing=true", "training.packing_strategy=bfd", f"output_dir={recipe_file.parent / 'packed'}"]
    packed = finetune(load_recipe(str(recipe_file), [*still, *shared]))
    assert packed.train_loss == pytest.approx(apart.train_loss, rel=1e-5)
