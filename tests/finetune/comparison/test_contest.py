"""A recipe under several optimizers: real runs of three steps, and runs made up where only their order matters."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scao_hf.finetune.comparison.contest import Paused, Request, Spectator, hold
from scao_hf.finetune.comparison.outcome import Outcome
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError, Interrupted
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import Measurement, measure
from scao_hf.finetune.witness import WitnessedTrainer, schedule_digest

RATES = (1e-4, 2e-4, 4e-4)


class Watcher(Spectator):
    """Remembers which runs were made."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.notices: list[str] = []

    def run_begins(self, optimizer: str, setting: dict[str, Any], seed: int, done: int, total: int) -> None:
        self.begun.append((optimizer, setting["lr"], seed))

    def run_ended(self, run: Run, done: int, total: int) -> None:
        self.ended.append((done, total))

    def notice(self, text: str) -> None:
        self.notices.append(text)


# Real runs


@pytest.fixture(scope="module")
def small_recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of the tiny model on rows of equal length."""
    folder = tmp_path_factory.mktemp("contest")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n:02d} of them"}) + "\n" for n in range(20)), encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(
        f"""\
schema: 1
model: {{model_name_or_path: {tiny_model}}}
lora: {{r: 4, target_modules: all-linear}}
data: {{path: {rows}, test_split_size: 4, max_length: 64}}
training:
  output_dir: {folder / "run"}
  learning_rate: 1e-2
  max_steps: 3
  per_device_train_batch_size: 4
  warmup_steps: 1
  seed: 7
  use_cpu: true
scao: {{precond_freq: 1, tau: null}}
""",
        encoding="utf-8",
    )
    return path


def request(recipe: Path, **changes: Any) -> Request:
    # The middle rate is the best: the first hardly moves the model, and the last one throws it far off or diverges.
    default: dict[str, Any] = {"optimizers": ["scao", "adamw_torch"], "rates": [1e-6, 1e-2, 1e6], "trials": 3}
    return Request(recipe=str(recipe), **{**default, **changes})


@pytest.fixture(scope="module")
def held(small_recipe: Path) -> tuple[Outcome, Watcher]:
    watcher = Watcher()
    return hold(request(small_recipe, seeds=2), watcher), watcher


def test_optimizers_take_turns_and_the_tuning_has_a_seed_of_its_own(held: tuple[Outcome, Watcher]) -> None:
    _, watcher = held
    tuned = [(name, rate, 7) for rate in (1e-6, 1e-2, 1e6) for name in ("scao", "adamw_torch")]
    finals = [(name, 1e-2, seed) for seed in (8, 9) for name in ("scao", "adamw_torch")]
    assert watcher.begun == tuned + finals
    assert watcher.ended == [(done, 10) for done in range(1, 11)]


def test_every_optimizer_is_given_the_same_and_every_seed_something_else(held: tuple[Outcome, Watcher]) -> None:
    entries = held[0].comparison.entries
    scao, adamw = ({run.seed: run.conditions for run in entries[name].finals} for name in ("scao", "adamw_torch"))
    assert scao == adamw
    assert scao[8]["initialisation"] != scao[9]["initialisation"]
    assert scao[8]["data_order"] != scao[9]["data_order"]
    every = [run.conditions for _, run in held[0].runs]
    assert len({conditions["evaluation_set"] for conditions in every}) == 1
    assert len({conditions["schedule"] for conditions in every}) == 1


def test_the_conditions_count_what_was_really_trained_on(held: tuple[Outcome, Watcher], tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = len(tokenizer("row 00 of them" + tokenizer.eos_token)["input_ids"])
    conditions = held[0].comparison.entries["scao"].finals[0].conditions
    # Three steps of four rows; the first token of a row has nothing before it to be predicted from.
    assert (conditions["steps"], conditions["token_budget"]) == (3, 3 * 4 * (row - 1))
    assert conditions["clipping"] == 1.0


def test_a_run_that_diverged_has_seen_the_same_data_as_the_others(held: tuple[Outcome, Watcher]) -> None:
    trials = held[0].comparison.entries["adamw_torch"].trials
    diverged = [run for run in trials if run.setting["lr"] == 1e6]
    assert [math.isfinite(run.loss) for run in diverged] == [False]
    assert diverged[0].measures["diverged_at"] in (2, 3)
    assert diverged[0].conditions == trials[0].conditions


def test_the_curve_reaches_from_the_start_to_the_final_loss(held: tuple[Outcome, Watcher]) -> None:
    for _, run in held[0].runs:
        assert run.curve[0][0] == 0
        if math.isfinite(run.loss):
            assert [step for step, _ in run.curve] == [0, 1, 2, 3]
            assert run.curve[-1][1] == run.loss
    finals = held[0].comparison.entries["scao"].finals
    assert all(run.loss < run.curve[0][1] for run in finals)


def test_memory_and_time_are_of_the_runs(held: tuple[Outcome, Watcher]) -> None:
    outcome = held[0]
    _, adamw = outcome.standings
    # Two moments in float32 for every parameter, and a step counter of four bytes for every tensor: 7 layers, A and B.
    assert adamw.state_bytes == 8 * outcome.facts["trainable_parameters"] + 4 * 14
    assert all(standing.step_seconds > 0 for standing in outcome.standings)


def test_only_metrics_are_left(held: tuple[Outcome, Watcher], small_recipe: Path) -> None:
    assert held[0].output_dir == small_recipe.parent / "run-compare"
    assert [path.name for path in held[0].output_dir.iterdir()] == ["runs.jsonl"]
    assert not (small_recipe.parent / "run").exists()


def test_the_same_request_again_makes_no_run(held: tuple[Outcome, Watcher], small_recipe: Path) -> None:
    watcher = Watcher()
    again = hold(request(small_recipe, seeds=2), watcher)
    assert watcher.begun == []
    assert again.standings == held[0].standings


def test_a_measured_run_leaves_no_file_behind(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    measured = measure(load_recipe(str(small_recipe), ["max_grad_norm=0.5", "save_strategy=steps", "save_steps=1"]), 8)
    assert measured.conditions["clipping"] == 0.5
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_a_run_whose_last_step_spoils_the_weights_has_diverged_in_it(small_recipe: Path) -> None:
    overrides = ["max_steps=1", "learning_rate=1e30", "warmup_steps=0", "optim=adamw_torch", "scao=null"]
    measured = measure(load_recipe(str(small_recipe), overrides), 8)
    assert (measured.loss, measured.diverged_at, [step for step, _ in measured.curve]) == (math.inf, 1, [0])


def test_a_run_without_clipping_says_so(small_recipe: Path) -> None:
    measured = measure(load_recipe(str(small_recipe), ["max_grad_norm=0", "max_steps=1"]), 8)
    assert measured.conditions["clipping"] is None


def test_a_gradient_that_is_not_finite_is_a_run_that_diverged(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = WitnessedTrainer.training_step

    def poison(self: WitnessedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 1 and self.diverged_at is None:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(WitnessedTrainer, "training_step", poison)
    measured = measure(load_recipe(str(small_recipe), ["eval_strategy=steps", "eval_steps=1"]), 8)
    assert (measured.loss, measured.diverged_at, measured.conditions["steps"]) == (math.inf, 2, 3)
    assert [point for point, _ in measured.curve] == [0, 1]


# The schedule


def linear(peak: float, steps: int) -> list[float]:
    return [peak * (steps - step) / steps for step in range(steps)]


@pytest.mark.parametrize("peak", [1e-4, 1.414e-3, 0.3, 7e-5])
def test_a_schedule_is_known_whatever_the_learning_rate(peak: float) -> None:
    assert schedule_digest(linear(peak, 1024)) == schedule_digest(linear(1.0, 1024))


def test_schedules_that_differ_are_told_apart() -> None:
    warm = [0.5, *linear(1.0, 1024)[1:]]
    digests = {schedule_digest(rates) for rates in (linear(1.0, 1024), linear(1.0, 1023), [1.0] * 1024, warm)}
    assert len(digests) == 4


def test_a_method_that_averages_its_weights_is_judged_at_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    from scao_hf.finetune.trainer import GuardedTrainer

    calls: list[str] = []

    class Averaging:
        def eval(self) -> None:
            calls.append("eval")

        def train(self) -> None:
            calls.append("train")

    monkeypatch.setattr(GuardedTrainer, "held_out_loss", lambda self: calls.append("judged"))
    trainer = WitnessedTrainer.__new__(WitnessedTrainer)
    trainer.optimizer = Averaging()
    trainer.held_out_loss()
    assert calls == ["eval", "judged", "train"]


# Runs made up


Measure = Callable[[Recipe, int, Any], Measurement]


def loss_of(name: str, rate: float, seed: int) -> float:
    """The distance of the rate from 2e-4 in octaves, and a hundredth for every seed; AdamW is a tenth worse."""
    return 1 + abs(math.log2(rate / 2e-4)) + seed / 100 + 0.1 * (name == "adamw_torch")


class MadeUp:
    """Stands in for `measure`: no model is loaded."""

    def __init__(self, template: Measurement) -> None:
        self.template = template
        self.recipes: list[Recipe] = []
        self.loss = loss_of
        self.conditions: Callable[[str, int], dict[str, Any]] = lambda name, seed: {}
        self.interrupt_at: int | None = None

    def __call__(self, recipe: Recipe, seed: int, observer: Any = None) -> Measurement:
        if self.interrupt_at == len(self.recipes):
            raise Interrupted("SIGTERM", 2, None)
        self.recipes.append(recipe)
        name, rate = str(recipe.training["optim"]), recipe.training["learning_rate"]
        loss = self.loss(name, rate, seed)
        conditions = {**self.template.conditions, "data_order": str(seed), "initialisation": str(seed)}
        curve = ((0, 9.0), (3, loss)) if math.isfinite(loss) else ((0, 9.0),)
        return replace(self.template, loss=loss, curve=curve, conditions={**conditions, **self.conditions(name, seed)})


@pytest.fixture(scope="module")
def template(small_recipe: Path) -> Measurement:
    return measure(load_recipe(str(small_recipe), ["max_steps=1"]), 8)


@pytest.fixture
def made_up(template: Measurement, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made = MadeUp(template)
    monkeypatch.setattr("scao_hf.finetune.run.measure", made)
    monkeypatch.setattr("scao_hf.finetune.run.identify", lambda recipe, observer: {"data": "d", "model": "m"})
    return made


def quick(recipe: Path, folder: Path, **changes: Any) -> Request:
    default: dict[str, Any] = {"optimizers": ["scao", "adamw_torch"], "rates": RATES, "output_dir": folder}
    return Request(recipe=str(recipe), **{**default, **changes})


def refusal(asked: Request) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        hold(asked)
    return caught.value


def test_by_default_the_grid_is_about_the_recipes_rate_and_two_trials_refine(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp
) -> None:
    asked = quick(small_recipe, tmp_path / "out", rates=None, overrides=["learning_rate=2e-4"])
    entries = hold(asked).comparison.entries
    first = [run.setting["lr"] for run in entries["scao"].trials]
    assert first == [1e-4, 2e-4, 4e-4, pytest.approx(2e-4 / math.sqrt(2), rel=1e-3), pytest.approx(2.828e-4)]
    assert first == [run.setting["lr"] for run in entries["adamw_torch"].trials]
    assert [run.seed for run in entries["scao"].finals] == [8, 9, 10]


def test_a_best_rate_on_the_edge_widens_the_grid(small_recipe: Path, tmp_path: Path, made_up: MadeUp) -> None:
    made = hold(quick(small_recipe, tmp_path / "out", rates=[5e-5, 1e-4, 2e-4], trials=4))
    assert [run.setting["lr"] for run in made.comparison.entries["scao"].trials] == [5e-5, 1e-4, 2e-4, 4e-4]
    assert [standing.learning_rate for standing in made.standings] == [2e-4, 2e-4]


def test_no_final_run_is_spent_on_a_rate_that_lies_on_the_edge(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp
) -> None:
    asked = quick(small_recipe, tmp_path / "out", rates=[1.25e-5, 2.5e-5, 5e-5], trials=3)
    error = refusal(asked)
    assert (error.code, error.exit_code) == ("config.comparison", 2)
    assert error.message.startswith("the best learning rate of scao, 5e-05, is on the edge of those tried")
    assert "--trials 5" in error.message
    assert {recipe.training["seed"] for recipe in made_up.recipes} == {7}
    assert len(made_up.recipes) <= 6
    assert len(hold(replace(asked, trials=7)).comparison.entries["scao"].trials) == 7


def test_after_an_interruption_the_same_request_makes_only_the_missing_runs(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp
) -> None:
    asked = quick(small_recipe, tmp_path / "out", trials=3, seeds=1)
    made_up.interrupt_at = 3
    with pytest.raises(Paused) as caught:
        hold(asked)
    assert caught.value.exit_code == 143
    assert caught.value.message == (
        f"stopped by SIGTERM; 3 of 8 runs are done and kept in {tmp_path / 'out' / 'runs.jsonl'}"
    )
    made_up.interrupt_at = None
    watcher = Watcher()
    hold(asked, watcher)
    assert len(watcher.begun) == 5
    assert watcher.ended == [(done, 8) for done in (4, 5, 6, 7, 8)]


def test_ctrl_c_while_a_model_is_loading_says_how_far_the_comparison_is(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scao_hf.finetune.run.identify", interrupt)
    error = refusal(quick(small_recipe, tmp_path / "out", trials=3))
    assert (type(error), error.exit_code) == (Paused, 130)
    assert error.message.startswith("stopped by SIGINT; 0 of 12 runs are done")


@pytest.mark.parametrize(
    "changed",
    [
        {"overrides": ["weight_decay=0.1"]},
        {"overrides": ["scao.precond_freq=2"]},
        {"identity": {"data": "other rows", "model": "m"}},
        {"identity": {"data": "d", "model": "other weights"}},
    ],
)
def test_a_run_is_made_again_when_anything_that_determines_it_has_changed(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    asked = quick(small_recipe, tmp_path / "out", trials=3, seeds=1)
    hold(asked)
    before = len(made_up.recipes)
    if "identity" in changed:
        monkeypatch.setattr("scao_hf.finetune.run.identify", lambda recipe, observer: changed["identity"])
    hold(replace(asked, overrides=changed.get("overrides", ())))
    again = {str(recipe.training["optim"]) for recipe in made_up.recipes[before:]}
    # SCAO's own options are nothing to AdamW, whose runs stay.
    assert again == ({"scao"} if changed == {"overrides": ["scao.precond_freq=2"]} else {"scao", "adamw_torch"})


def test_more_seeds_make_only_the_new_final_runs(small_recipe: Path, tmp_path: Path, made_up: MadeUp) -> None:
    asked = quick(small_recipe, tmp_path / "out", trials=3, seeds=1)
    hold(asked)
    watcher = Watcher()
    hold(replace(asked, seeds=2), watcher)
    assert [(name, seed) for name, _, seed in watcher.begun] == [("scao", 9), ("adamw_torch", 9)]


@pytest.mark.parametrize(
    ("overrides", "owner"),
    [([], "scao"), (["optim=adamw_torch"], "scao"), (["optim=soap", "scao={precondition_1d: true}"], "soap")],
)
def test_options_of_one_optimizer_reach_no_other(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp, overrides: list[str], owner: str
) -> None:
    names = ["adamw_torch", "scao", "scao_published", "soap"]
    outcome = hold(quick(small_recipe, tmp_path / "out", optimizers=names, overrides=overrides, trials=3, seeds=1))
    assert [name for name in names if outcome.recipes[name].scao] == [owner]
    assert {str(recipe.training["optim"]): bool(recipe.scao) for recipe in made_up.recipes} == {
        name: name == owner for name in names
    }


def test_conditions_that_differ_end_the_comparison(small_recipe: Path, tmp_path: Path, made_up: MadeUp) -> None:
    made_up.conditions = lambda name, seed: {"data_order": name} if seed == 9 else {}
    error = refusal(quick(small_recipe, tmp_path / "out", trials=3, seeds=2))
    assert (error.code, error.exit_code) == ("config.comparison", 2)
    assert error.message == "different data order in the final runs of seed 9: scao scao, adamw_torch adamw_torch"


def test_an_optimizer_whose_trials_all_diverge_ends_the_comparison(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp
) -> None:
    made_up.loss = lambda name, rate, seed: math.inf if name == "scao" else loss_of(name, rate, seed)
    error = refusal(quick(small_recipe, tmp_path / "out", trials=3))
    assert error.code == "config.comparison"
    assert error.message.startswith("none of the 3 trials of scao ended with a finite loss")


# What is refused before anything is loaded


@pytest.mark.parametrize(
    ("changes", "code", "hint"),
    [
        ({"optimizers": ["scao"]}, "config.optimizers", "--optim scao --optim adamw_torch"),
        ({"optimizers": ["scao", "scao"]}, "config.optimizers", "--optim scao --optim adamw_torch"),
        ({"optimizers": ["scao", "adamw_trch"]}, "config.wrong-type", "did you mean `adamw_torch`?"),
        ({"overrides": ["data.test_split_size=null"]}, "config.no-held-out", "data.test_split_size=0.05"),
        ({"overrides": ["data.path=null"]}, "config.missing-value", "data.path=a file or a hub id"),
        ({"rates": [1e-4, 0.0]}, "config.rates", "--lrs"),
        ({"rates": None, "overrides": ["learning_rate=null"]}, "config.rates", "--lrs"),
        ({"trials": 2}, "config.trials", "--trials 3 or more"),
        ({"rates": [1e-4, 2e-4, 4e-4, 8e-4], "trials": 3}, "config.trials", "--trials 4 or more"),
        ({"assertions": ["scao.eval_loss < soap.eval_loss"]}, "config.assertion", "there are scao, adamw_torch"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_is_loaded(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], code: str, hint: str
) -> None:
    def load(*_args: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("scao_hf.finetune.run.identify", load)
    error = refusal(quick(small_recipe, tmp_path / "out", **changes))
    assert (error.code, error.exit_code) == (code, 2)
    assert error.hint is not None
    assert error.hint.startswith(hint)
    assert not (tmp_path / "out").exists()


def test_an_assertion_is_read_before_the_recipe() -> None:
    asked = Request(recipe="nowhere.yaml", optimizers=["scao", "soap"], assertions=["scao.loss < 1"])
    assert refusal(asked).code == "config.assertion"


def test_a_full_disk_is_an_error_with_an_answer(
    small_recipe: Path, tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    error = refusal(quick(small_recipe, tmp_path / "out", trials=3))
    assert (error.code, error.exit_code) == ("disk.full", 7)


@pytest.mark.parametrize("name", ["thesis.txt", "run.json"])
def test_a_folder_of_something_else_is_left_alone(small_recipe: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    error = refusal(quick(small_recipe, tmp_path))
    assert (error.code, error.hint) == ("config.output-exists", "give another one: --output-dir NEW")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_damaged_line_among_the_runs_is_named(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("{}\n", encoding="utf-8")
    error = refusal(quick(small_recipe, tmp_path))
    assert error.code == "config.runs-file"
    assert error.message.startswith(f"{tmp_path / 'runs.jsonl'}, line 1, is no recorded run")


def test_several_processes_are_refused(small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refusal(quick(small_recipe, tmp_path / "out")).code == "config.processes"
