"""What stops a run: it is named with what would do, nothing is lost, and the run goes on once the cause is gone."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune.resuming import SETTINGS, STEPS, assert_same_run, weights
from torch import nn

from scao_hf.finetune.checkpoints import checkpoints_in, last_checkpoint
from scao_hf.finetune.diverging import origin_of_gradient, origin_of_loss
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.evaluate import Evaluation
from scao_hf.finetune.observer import Observer, StepMetrics
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune
from scao_hf.finetune.trainer import GuardedTrainer
from scao_hf.finetune.units import byte_size


@pytest.fixture
def folder(recipe_file: Path) -> Path:
    return recipe_file.parent / "run"


@pytest.fixture
def whole(recipe_file: Path) -> Path:
    """The run in which nothing goes wrong."""
    folder = recipe_file.parent / "whole"
    finetune(load_recipe(str(recipe_file), [*SETTINGS, f"output_dir={folder}"]))
    return folder


def refusal(recipe_file: Path, *overrides: str, observer: Observer | None = None) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), [*SETTINGS, *overrides]), observer)
    return caught.value


def go_on(recipe_file: Path, *overrides: str) -> None:
    finetune(load_recipe(str(recipe_file), [*SETTINGS, *overrides]), resume=True)


@contextmanager
def failing_in_step(step: int, fail: Callable[[GuardedTrainer], Any]) -> Iterator[None]:
    """Within it, `fail` is called after the forward and backward pass of a step, and its value is the loss."""
    with pytest.MonkeyPatch.context() as patch:
        real = GuardedTrainer.__mro__[1].training_step

        def training_step(self: GuardedTrainer, *args: Any, **kwargs: Any) -> Any:
            loss = real(self, *args, **kwargs)
            return fail(self) if self.state.global_step == step - 1 else loss

        patch.setattr(GuardedTrainer.__mro__[1], "training_step", training_step)
        yield


def out_of_memory(_trainer: GuardedTrainer) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


# Numbers that are not finite


def test_a_run_that_diverged_goes_on_bit_for_bit_once_the_cause_is_gone(
    recipe_file: Path, folder: Path, whole: Path
) -> None:
    with failing_in_step(6, lambda _: torch.tensor(float("inf"))):
        error = refusal(recipe_file)
    assert (error.code, error.exit_code) == ("diverged.loss", 6)
    assert error.message == (
        "the loss became inf in step 6 of 12 (the outputs of all layers are finite: it is the loss itself that is "
        f"not); the steps before it are in {folder / 'checkpoint-5'}"
    )
    # The failed step has drawn random numbers for its dropout, which the checkpoint must not have seen.
    go_on(recipe_file)
    assert_same_run(folder, whole)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)))


def test_the_first_layer_whose_output_is_not_finite_is_named() -> None:
    model = Small()
    with torch.no_grad():
        model.second.weight.fill_(1e38)
        model.first.weight.fill_(1e3)
    batch = {"x": torch.ones(1, 2), "labels": torch.ones(1)}
    assert origin_of_loss(model, batch) == "the output of second is the first that is not finite"
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        model.last.bias.fill_(float("nan"))
    assert origin_of_loss(model, batch) == "the weights of last.bias are not finite"


def test_the_gradient_nearest_to_the_loss_is_named() -> None:
    model = Small()
    model(torch.ones(1, 2)).sum().backward()
    assert model.second.weight.grad is not None
    model.second.weight.grad.fill_(float("nan"))
    model.first.weight.grad = torch.full((2, 2), float("inf"))
    told = "on the way back from the loss it begins with second.weight and 1 others, of 6 that are trained"
    assert origin_of_gradient(model) == told


@pytest.mark.parametrize("bound", ["1.0", "0"])
def test_a_gradient_is_looked_at_before_clipping_spreads_it(recipe_file: Path, folder: Path, bound: str) -> None:
    def poison(trainer: GuardedTrainer) -> torch.Tensor:
        assert trainer.model is not None
        named = dict(trainer.model.named_parameters())
        next(weight for name, weight in named.items() if "v_proj.lora_B" in name).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return torch.tensor(1.0)

    with failing_in_step(4, poison):
        error = refusal(recipe_file, f"max_grad_norm={bound}")
    assert error.code == "diverged.gradient"
    assert "begins with model.layers.0.self_attn.v_proj.lora_B.default.weight, of 14" in error.message
    assert last_checkpoint(folder) == folder / "checkpoint-3"


# Memory


def test_memory_that_ran_out_in_a_step_names_the_overrides_that_go_on_with_the_run(
    recipe_file: Path, folder: Path, whole: Path
) -> None:
    with failing_in_step(6, out_of_memory):
        error = refusal(recipe_file)
    assert (error.code, error.exit_code) == ("memory.out", 5)
    assert error.message.startswith("out of memory: CUDA out of memory. Tried to allocate 2 GiB (in use: weights ")
    held = json.loads((whole / "run.json").read_text(encoding="utf-8"))["memory"]
    parts = ", ".join(f"{part} {byte_size(held[part])}" for part in ("weights", "gradients", "optimizer"))
    assert f"(in use: {parts}; the peak of the process was " in error.message
    assert error.message.endswith(f"); the steps before it are in {folder / 'checkpoint-5'}")
    assert error.hint is not None
    first, halved, checkpointing, *others = error.hint.splitlines()
    assert first == "one of these, or several:"
    assert halved == "training.per_device_train_batch_size=2 training.gradient_accumulation_steps=2"
    assert checkpointing.endswith("checkpointing=true")
    assert others == ["quantization.load_in_4bit=true (from the start)"]
    go_on(recipe_file, *halved.split(), checkpointing)
    assert weights(folder).keys() == weights(whole).keys()


def test_every_override_against_lack_of_memory_is_one_that_a_recipe_takes(recipe_file: Path) -> None:
    from scao_hf.finetune.advice import out_of_memory

    for given in ([], ["lora=null", "scao=null", "optim=adamw_torch", "data.max_length=128"], ["training.seed=3"]):
        hint = out_of_memory(load_recipe(str(recipe_file), given), "x", evaluating=False).hint
        assert hint is not None
        for line in hint.splitlines()[1:]:
            load_recipe(str(recipe_file), [*given, *line.partition(" (")[0].split()])


def test_memory_that_ran_out_on_held_out_rows_keeps_the_steps(
    recipe_file: Path, folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GuardedTrainer.held_out_loss

    def held_out_loss(self: GuardedTrainer) -> Any:
        return out_of_memory(self) if self.state.global_step == 8 else real(self)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedTrainer, "held_out_loss", held_out_loss)
        error = refusal(recipe_file, "per_device_eval_batch_size=2")
    assert (error.code, error.exit_code) == ("memory.evaluation", 5)
    assert error.hint == "training.per_device_eval_batch_size=1"
    assert error.message.endswith(f"the steps before it are in {folder / 'checkpoint-8'}")
    go_on(recipe_file)
    # The evaluation that failed is not made up for; everything else is as if it had not failed.
    assert weights(folder) == weights(whole)


def test_a_failure_after_training_leaves_the_weights(
    recipe_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scao_hf.finetune import sample

    real, prompts = sample.sample, []

    def second_fails(*args: Any) -> str:
        prompts.append(args[2])
        return real(*args) if len(prompts) == 1 else out_of_memory(args[0])  # type: ignore[return-value,func-returns-value]

    monkeypatch.setattr("scao_hf.finetune.kept_run.sample", second_fails)
    error = refusal(recipe_file)
    assert error.code == "memory.out"
    assert error.message.endswith(f"training is done, and its weights are in {folder / 'adapter'}")
    assert weights(folder)


def test_ctrl_c_after_training_leaves_the_weights(
    recipe_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Observer):
        def saved(self, path: Path) -> None:
            if path.name == "adapter":
                monkeypatch.setattr(GuardedTrainer, "held_out_loss", interrupt)

    def interrupt(_trainer: GuardedTrainer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        finetune(load_recipe(str(recipe_file), []), Stopping())
    assert caught.value.message == f"stopped by SIGINT after all 3 steps; their weights are in {folder / 'adapter'}"
    assert caught.value.exit_code == 130


# The disk


class Filling(Observer):
    """Lets no file grow beyond some bytes once a step is told, as a full disk would."""

    def __init__(self, at_step: int, size: int) -> None:
        self.at_step, self.size = at_step, size

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.fixture
def _disk() -> Iterator[None]:
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("_disk")
@pytest.mark.parametrize("size", [4_000, 24_000])
def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before(
    recipe_file: Path, folder: Path, whole: Path, size: int
) -> None:
    error = refusal(recipe_file, "logging_steps=1", observer=Filling(5, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # torch.save does not say why a write failed.
    assert (error.code, error.exit_code) == ("disk.full" if size == 4_000 else "disk.write", 7)
    assert error.message.endswith(f"the last checkpoint is {folder / 'checkpoint-3'}")
    complete, skipped = checkpoints_in(folder)
    assert ([checkpoint.step for checkpoint in complete], skipped) == ([3], [])
    go_on(recipe_file)
    assert weights(folder) == weights(whole)


# Rows


def test_rows_that_never_end_are_noticed(recipe_file: Path) -> None:
    class Noting(Observer):
        def __init__(self) -> None:
            self.notices: list[str] = []

        def notice(self, text: str) -> None:
            self.notices.append(text)

    ending, cut = Noting(), Noting()
    finetune(load_recipe(str(recipe_file), ["max_steps=1"]), ending)
    finetune(load_recipe(str(recipe_file), ["max_steps=1", "data.max_length=8"]), cut, overwrite=True)
    assert ending.notices == []
    assert len(cut.notices) == 1
    assert "the loss counts no end-of-text token" in cut.notices[0]
    assert "rows cut at data.max_length=8" in cut.notices[0]


# The model and its adapter


def test_a_layer_that_the_model_does_not_have_is_told(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scao_hf.finetune import preflight

    class Noting(Observer):
        def __init__(self) -> None:
            self.notices: list[str] = []

        def notice(self, text: str) -> None:
            self.notices.append(text)

    noting = Noting()
    monkeypatch.setattr(preflight, "SLOW_ON_CPU", 1000)
    overrides = ["lora.target_modules=[q_proj, k_porj, mlp.up_proj]", "max_steps=1"]
    finetune(load_recipe(str(recipe_file), overrides), noting)
    assert noting.notices == ["lora.target_modules names k_porj, and the model has no such layer"]


def test_a_model_of_some_size_is_not_trained_on_a_cpu_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from scao_hf.finetune import preflight

    monkeypatch.setattr(preflight, "SLOW_ON_CPU", 12)
    here, asked_for = (SimpleNamespace(device=torch.device("cpu"), use_cpu=use_cpu) for use_cpu in (False, True))
    [told] = preflight._slow(here, Small())
    assert told.startswith("no GPU was found, and 15 parameters train on the CPU: ")
    assert preflight._slow(asked_for, Small()) == []
    assert preflight._slow(here, nn.Linear(1, 1)) == []
    assert preflight._slow(SimpleNamespace(device=torch.device("cuda"), use_cpu=False), Small()) == []


# The best step


@pytest.fixture
def _best_at_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every run get better up to its third step, and worse from there on."""

    def held_out_loss(self: GuardedTrainer) -> Evaluation:
        return Evaluation(1.0 + abs(self.state.global_step - 3), 10)

    monkeypatch.setattr(GuardedTrainer, "held_out_loss", held_out_loss)


@pytest.mark.usefixtures("_best_at_three")
def test_a_run_that_gets_no_better_stops_early_and_keeps_the_best_step(recipe_file: Path, folder: Path) -> None:
    from safetensors.torch import load_file

    overrides = ["eval_steps=1", "save_steps=1", "save_total_limit=1"]
    overrides += ["early_stopping_patience=2", "load_best_model_at_end=true"]
    report = finetune(load_recipe(str(recipe_file), [*SETTINGS, *overrides]))
    assert (report.stopped_early, report.steps) == (True, 5)
    assert (report.best_step, report.best_metric) == (3, 1.0)
    assert report.best_checkpoint == folder / "checkpoint-3"
    saved, best = (load_file(path / "adapter_model.safetensors") for path in (report.saved_dir, report.best_checkpoint))
    assert saved
    assert all(torch.equal(saved[name], best[name]) for name in saved.keys() | best.keys())


@pytest.mark.usefixtures("_best_at_three")
def test_the_count_of_evaluations_without_gain_survives_an_interruption(recipe_file: Path) -> None:
    from finetune.test_resume import Interrupting

    recipe = load_recipe(str(recipe_file), [*SETTINGS, "eval_steps=1", "logging_steps=1", "early_stopping_patience=2"])
    with pytest.raises(Interrupted) as caught:
        finetune(recipe, Interrupting(3))
    assert caught.value.step == 4
    report = finetune(recipe, resume=True)
    assert (report.steps, report.stopped_early, report.best_step) == (5, True, 3)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["early_stopping_patience=2", "eval_strategy=no"], "counts evaluations without an improvement"),
        (["early_stopping_patience=0"], "must be at least 1, got 0"),
        (["metric_for_best_model=accuracy"], "must be one of loss, perplexity, got accuracy"),
    ],
)
def test_a_best_step_that_nothing_could_tell_is_refused(recipe_file: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(str(recipe_file), [*SETTINGS, *overrides])
    assert told in caught.value.message
    assert caught.value.exit_code == 2


def test_a_perplexity_is_better_when_it_is_lower(recipe_file: Path) -> None:
    report = finetune(load_recipe(str(recipe_file), [*SETTINGS, "metric_for_best_model=perplexity", "eval_steps=3"]))
    assert report.best_step == STEPS
