"""Plans against the runs that they foretell, and what is in them without weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.observer import Observer
from scao_hf.finetune.planning import memory
from scao_hf.finetune.planning.cautions import cautions
from scao_hf.finetune.planning.disk import disk_use
from scao_hf.finetune.planning.outcome import Disk, Plan
from scao_hf.finetune.planning.plan import plan
from scao_hf.finetune.planning.probe import longest_rows
from scao_hf.finetune.planning.rows import rows
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune


@pytest.fixture
def planned(recipe_file: Path) -> Callable[..., Plan]:
    return lambda *overrides, **options: plan(load_recipe(str(recipe_file), overrides), **options)


@pytest.mark.parametrize(
    "overrides",
    [
        ("scao.k_max=8",),
        ("lora=null", "scao.k_max=8"),
        ("scao.state_dtype=bfloat16",),
        ("lora=null", "scao.state_dtype=int8"),
        ("optim=adamw_torch",),
        ("lora=null", "optim=adamw_torch"),
        ("optim=soap", "scao=null"),
        ("lora=null", "optim=soap", "scao=null"),
    ],
    ids=" ".join,
)
def test_the_optimizer_takes_the_bytes_that_the_plan_says(recipe_file: Path, overrides: tuple[str, ...]) -> None:
    recipe = load_recipe(str(recipe_file), overrides)
    told = plan(recipe)
    report = finetune(recipe)
    assert told.memory.optimizer == report.optimizer_state_bytes
    assert told.info.trainable_parameters == report.trainable_parameters
    assert told.info.total_parameters == report.total_parameters
    assert told.info.total_steps == report.steps
    saved = sum(file.stat().st_size for file in report.saved_dir.glob("*.safetensors"))
    assert 0 <= saved - told.disk.saved < 8192  # The file's header.
    # The run has planned the same by itself, and found what can be counted.
    noted = json.loads((report.output_dir / "run.json").read_text(encoding="utf-8"))
    free = {"available": noted["memory_plan"]["available"]}
    assert noted["memory_plan"] == {**told.memory.to_dict(), **free}
    counted = ("weights", "gradients", "optimizer")
    assert [noted["memory"][part] for part in counted] == [noted["memory_plan"][part] for part in counted]


def test_a_model_that_cannot_be_laid_out_is_trained_all_the_same(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no shapes without values")

    class Heard(Observer):
        notices: ClassVar[list[str]] = []

        def notice(self, text: str) -> None:
            self.notices.append(text)

    monkeypatch.setattr("scao_hf.finetune.kept_run.shapes_of", refuse)
    report = finetune(load_recipe(str(recipe_file)), Heard())
    assert "the memory was not planned: RuntimeError: no shapes without values" in Heard.notices
    noted = json.loads((report.output_dir / "run.json").read_text(encoding="utf-8"))
    assert (noted["status"], noted["memory_plan"]) == ("finished", None)


def test_planning_its_memory_changes_nothing_of_a_run(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["lora.lora_dropout=0.3", "lora.init_lora_weights=pissa"]
    planned_run = finetune(load_recipe(str(recipe_file), given))
    monkeypatch.setattr("scao_hf.finetune.kept_run.KeptRun._plan_memory", lambda self: None)
    plain = finetune(load_recipe(str(recipe_file), given), overwrite=True)
    assert planned_run.final_eval_loss == plain.final_eval_loss


def test_a_stream_is_planned_from_its_start(planned: Callable[..., Plan], rows_file: Callable[..., Path]) -> None:
    # In bytes and an end: the 20 first rows have 3 tokens, those after them 9.
    path = rows_file([{"text": "x" * (2 if number < 24 else 8)} for number in range(40)], "stream.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scao_hf.finetune.planning.sampled.SAMPLED", 20)
        told = planned("data.streaming=true", f"data.path={path}", "data.loss_on=all", "training.max_steps=5")
    assert (told.info.train_rows, told.info.epochs, told.info.eval_rows, told.info.total_steps) == (None, None, 4, 5)
    tokens = told.tokens
    assert (tokens.rows, tokens.sampled, tokens.longest, tokens.total) == (20, True, 3, 60)
    assert told.run_tokens == 5 * 4 * 3
    assert told.info.funnel == {"read of the stream": 20, "after max_length": 20}
    lines = dict(rows(told))
    assert "of the first 20 rows of the stream, by which the run has about 60" in lines["tokens"]
    assert lines["steps"].startswith("5 of 4 rows · training.max_steps · ")
    assert told.to_dict()["run_tokens"] == 60
    (caution,) = [one for one in told.cautions if one.code == "sample"]
    assert caution.message == ("the longest of 20 rows has 3 tokens: one of data.max_length=64 takes more memory")
    assert caution.hint == "data.max_length=3 cuts it"


def test_a_short_stream_is_planned_whole(planned: Callable[..., Plan]) -> None:
    given = ("training.max_steps=5", "training.save_strategy=epoch")
    told, counted = planned("data.streaming=true", *given), planned("data.test_split_size=4", *given)
    assert (told.tokens.rows, told.tokens.sampled) == (counted.tokens.rows, False)
    assert told.info.train_rows is None
    assert told.disk.checkpoints == counted.disk.checkpoints == 1
    assert "sample" not in [one.code for one in told.cautions]


def test_a_bad_row_in_the_planned_part_of_a_stream_is_told_with_its_place(
    planned: Callable[..., Plan], rows_file: Callable[..., Path]
) -> None:
    # Behind the rows that are read for the format.
    path = rows_file([*({"text": "good"} for _ in range(200)), {"text": 5}], "stream.jsonl")
    with pytest.raises(FinetuneError, match=r"stream\.jsonl:201: column 'text' must be text") as caught:
        planned("data.streaming=true", f"data.path={path}")
    assert caught.value.code == "data.wrong-type"


def test_a_plan_needs_no_weights_and_writes_nothing(
    recipe_file: Path, tiny_model: Path, tmp_path: Path, planned: Callable[..., Plan]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    before = sorted(tmp_path.rglob("*"))
    with_weights, without = planned(), planned(f"model.model_name_or_path={bare}")
    assert replace(without.info, model="") == replace(with_weights.info, model="")
    assert without.memory.weights == with_weights.memory.weights
    assert sorted(tmp_path.rglob("*")) == before


def test_starts_that_decompose_the_weights_have_a_plan_as_well(planned: Callable[..., Plan]) -> None:
    assert planned("lora.init_lora_weights=pissa").memory.gradients == planned().memory.gradients


def test_tokens_are_those_of_the_rows(planned: Callable[..., Plan]) -> None:
    told = planned("data.loss_on=all", "data.max_length=32")
    # "the cat number N sat on the mat" and the end-of-text token, in bytes: 31 to 33, cut at 32.
    assert (told.tokens.longest, told.tokens.full_rows > 0) == (32, True)
    assert told.tokens.supervised == told.tokens.total
    assert told.info.funnel == {"read": 24, "parsed": 24, "formatted": 24, "for training": 20, "after max_length": 20}
    assert "cut" in [caution.code for caution in told.cautions]


def test_phases_are_told_in_steps(planned: Callable[..., Plan]) -> None:
    told = planned("max_steps=40", "scao.warmup_steps=10")
    assert told.preconditioned_from == 11
    assert "Adam phase until step 10, preconditioned 11–40 (75%)" in dict(rows(told))["optimizer"]
    never = planned("scao.warmup_steps=3")
    assert never.preconditioned_from is None
    assert "adam-only" in [caution.code for caution in never.cautions]


def test_an_optimizer_whose_state_is_not_known_is_counted_as_adamw(planned: Callable[..., Plan]) -> None:
    told = planned("optim=adafactor").memory
    assert told.optimizer is None
    assert told.total == told.weights + told.gradients + told.adamw + told.activations


def test_what_a_run_refuses_a_plan_refuses(planned: Callable[..., Plan]) -> None:
    with pytest.raises(FinetuneError) as caught:
        planned("data.max_length=4096")
    assert caught.value.code == "model.context"


def test_a_plan_is_json_a_table_and_text(planned: Callable[..., Plan]) -> None:
    told = planned()
    document = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert document["memory"]["total"] == told.memory.total
    assert document["info"]["output_dir"] == str(told.info.output_dir)
    assert told._repr_html_().count("<tr>") == len(rows(told)) == len(str(told).splitlines())


def test_a_probe_measures_real_steps_and_keeps_nothing(recipe_file: Path, planned: Callable[..., Plan]) -> None:
    told = planned(probe=True)
    assert told.probe is not None
    assert told.probe.optimizer_bytes == told.memory.optimizer
    assert told.probe.step_seconds > 0
    tokens = told.tokens.total / told.info.train_rows * told.info.rows_per_step * told.info.total_steps
    assert told.run_tokens == pytest.approx(tokens)
    assert told.probe.run_seconds == pytest.approx(tokens / told.probe.tokens_per_second)
    assert not (recipe_file.parent / "run").exists()


def test_a_stream_is_probed_on_its_longest_rows(planned: Callable[..., Plan]) -> None:
    told = planned("data.streaming=true", probe=True)
    assert told.probe is not None
    assert told.probe.optimizer_bytes == told.memory.optimizer
    assert told.probe.run_seconds == pytest.approx(told.run_tokens / told.probe.tokens_per_second)


def test_a_peak_that_an_earlier_one_hides_is_not_told(planned: Callable[..., Plan]) -> None:
    held = bytearray(b"1" * (256 << 20))
    assert len(held) > 0
    del held
    told = planned(probe=True)
    assert told.probe is not None
    assert told.probe.peak_bytes is None
    assert "peak not known (estimate " in dict(rows(told))["probe"]


def test_a_probe_takes_the_longest_rows() -> None:
    from datasets import Dataset

    dataset = Dataset.from_dict({"input_ids": [[1], [2, 2, 2], [3, 3], [4, 4, 4, 4]]})
    assert longest_rows(dataset, 2)["input_ids"] == [[4, 4, 4, 4], [2, 2, 2]]
    assert len(longest_rows(dataset, 9)) == 4


# Activations


class Chain(torch.nn.Module):
    """Two linear layers with tanh between them, called as a language model is."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="none")
        self.embedding = torch.nn.Embedding(10, 8)
        self.up, self.down = torch.nn.Linear(8, 32, bias=False), torch.nn.Linear(32, 10, bias=False)

    def set_attn_implementation(self, name: str) -> None:
        raise ValueError(f"no attention here to be {name}")

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, use_cache: bool) -> torch.Tensor:
        return self.down(torch.tanh(self.up(self.embedding(input_ids)))).sum()


def test_activations_are_what_autograd_keeps() -> None:
    with torch.device("meta"):
        chain = Chain()
    tokens = 3 * 5
    # The ids (int64) for the embedding, its output for `up`, tanh's output once for tanh and `down`.
    kept = 8 * tokens + 4 * tokens * 8 + 4 * tokens * 32
    counted = memory.activation_bytes(chain, 3, 5, checkpointing=False, autocast=False)
    assert counted == kept + 4 * tokens * 32


def test_a_model_that_looks_at_values_has_no_estimate() -> None:
    class Choosy(Chain):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, use_cache: bool) -> torch.Tensor:
            return self.embedding(input_ids[input_ids > 0])

    with torch.device("meta"):
        choosy = Choosy()
    assert memory.activation_bytes(choosy, 3, 5, checkpointing=False, autocast=False) is None


def test_checkpointing_and_fused_attention_lower_the_activations(tiny_model: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 6

    def counted(attention: str, checkpointing: bool) -> int:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return memory.activation_bytes(model, 4, 128, checkpointing=checkpointing, autocast=False) or 0

    assert counted("sdpa", True) < counted("sdpa", False) < counted("eager", False)
    # Eager attention keeps its probabilities: 6 layers, 4 rows, 2 heads, 128 × 128, in float32.
    assert counted("eager", False) - counted("sdpa", False) > 6 * 4 * 2 * 128 * 128 * 4 * 0.9


@pytest.mark.parametrize(
    ("quantization", "per_weight"),
    [
        ({"load_in_4bit": True}, 0.5625),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 0.51587),
        ({"load_in_8bit": True}, 1.0),
    ],
)
def test_quantized_layers_count_as_they_are_packed(
    tiny_model: Path, quantization: dict[str, Any], per_weight: float
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model), dtype=torch.bfloat16)
    model.requires_grad_(False)
    layers = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    plain, packed = memory.weight_bytes(model, None), memory.weight_bytes(model, quantization)
    assert plain - packed == pytest.approx(layers * (2 - per_weight), abs=1)


# Disk and cautions


def arguments(**changes: Any) -> SimpleNamespace:
    settings = {
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "save_only_model": False,
    }
    return SimpleNamespace(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "checkpoints"),
    [
        ({}, 10),
        ({"save_steps": 0.25}, 4),
        ({"save_strategy": "epoch"}, 3),
        ({"save_strategy": "no"}, 0),
        ({"save_total_limit": 2}, 3),
        ({"save_total_limit": 1, "load_best_model_at_end": True}, 3),
        ({"save_total_limit": 20}, 10),
    ],
)
def test_checkpoints_are_counted_as_they_lie_there(changes: dict[str, Any], checkpoints: int, tmp_path: Path) -> None:
    disk = disk_use(arguments(**changes), 100, 40, saved=7, state=5, output_dir=tmp_path / "to" / "be")
    assert (disk.checkpoints, disk.checkpoint, disk.total) == (checkpoints, 12, 12 * checkpoints + 7)
    assert disk.available > 0


def test_too_little_memory_and_disk_are_told_with_what_would_do(
    recipe_file: Path, planned: Callable[..., Plan]
) -> None:
    told, recipe = planned(), load_recipe(str(recipe_file))
    small = replace(told.memory, available=told.memory.total // 2)
    full = Disk(checkpoint=10, checkpoints=3, saved=10, available=39)
    found = {one.code: one.hint for one in cautions(recipe, told.info, told.tokens, small, full)}
    assert found["memory"] == "per_device_train_batch_size=2 gradient_accumulation_steps=2"
    assert found["disk"] is not None
    assert "memory" not in [one.code for one in told.cautions]
    assert "disk" not in [one.code for one in told.cautions]
