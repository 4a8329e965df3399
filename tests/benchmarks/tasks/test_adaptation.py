"""Fine-tuning a small GPT: which base it starts from, how its LoRA factors start, and which studies there are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_task import SHAPE, walk
from torch import Tensor, nn

from benchmarks.suite import ALL_LORA_OPTIMIZERS, STUDIES, Machine, make_task
from benchmarks.tasks import adaptation
from benchmarks.tasks.adaptation import BASE_STEPS, Adaptation, base_task, base_weights, with_lora
from benchmarks.tasks.lm import LanguageModelling
from benchmarks.tasks.models import LINEAR_LAYERS, byte_gpt
from scao_hf.finetune.comparison.runs import digest

KEPT = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


# Studies


@pytest.mark.parametrize("name", ["lora-shakespeare-r8", "lora-shakespeare-r16"])
def test_the_kept_runs_of_a_study_are_runs_of_its_task_as_it_is(name: str) -> None:
    study = STUDIES[name]
    with (KEPT / name / "runs.jsonl").open(encoding="utf-8") as lines:
        task = json.loads(next(lines))["config"]["task"]
    assert task == {"name": "lora", "version": adaptation.VERSION, **study.options}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora-gsm8k-r16", {"text": "gsm8k", "rank": 16}),
        ("lora-shakespeare-r8-short", {"text": "shakespeare", "rank": 8, "steps": 100}),
        ("lora-shakespeare-r64-long", {"text": "shakespeare", "rank": 64, "steps": 600}),
        ("lora-gsm8k-r8-5m", {"text": "gsm8k", "rank": 8, "base": "5m"}),
        ("lora-gsm8k-r8-5m-long", {"text": "gsm8k", "rank": 8, "base": "5m", "steps": 600}),
    ],
)
def test_a_study_is_named_after_what_it_does_and_says_nothing_that_is_the_default(
    name: str, options: dict[str, Any]
) -> None:
    assert STUDIES[name].options == options


def test_there_are_two_texts_three_ranks_two_bases_and_three_budgets() -> None:
    studies = {name: study for name, study in STUDIES.items() if name.startswith("lora-")}
    assert len(studies) == len({str(study.options) for study in studies.values()}) == 2 * 3 * 2 * 3
    assert {study.trials for study in studies.values()} == {5}


def test_one_study_compares_all_that_run_on_lora() -> None:
    whole = [name for name, study in STUDIES.items() if tuple(study.optimizers) == ALL_LORA_OPTIMIZERS]
    assert whole == ["lora-shakespeare-r8"]


# The base model


def tiny_base(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Bases that are pretrained in no time; the sizes that were."""
    made: list[str] = []

    def pretrain(folder: Path | None, size: str, device: str) -> nn.Module:
        made.append(f"{size} on {device}")
        return byte_gpt(SHAPE, seed=len(made))

    monkeypatch.setattr(adaptation, "pretrain", pretrain)
    return made


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_is_pretrained_once_for_every_size_where_the_machine_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_base(monkeypatch)
    for size in ("1m", "5m", "1m", "5m"):
        task = make_task(Machine(None, "cuda", tmp_path), {"name": "lora", "version": 1, "base": size})
        task.prepare()
    assert made == ["1m on cuda", "5m on cuda"]


def test_a_base_serves_another_release_and_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_base(monkeypatch)
    first = base_weights(None, tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert same(base_weights(None, tmp_path, device="cuda"), first)
    assert len(made) == 1


def test_a_base_that_is_kept_under_a_name_with_torchs_version_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_base(monkeypatch)
    task = {"size": "1m", "rows": 4, "length": 512, "steps": 800, "evaluate_every": 800}
    earlier = tmp_path / f"base-{digest([task, 1e-2, 0.4, 1000, True, torch.__version__])}.safetensors"
    save_file(byte_gpt(SHAPE, seed=7).state_dict(), earlier)
    assert same(base_weights(None, tmp_path), load_file(earlier))
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert same(base_weights(None, tmp_path), load_file(earlier))
    assert made == []


def test_pretraining_trains_the_size_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wikitext2").mkdir()
    for part in ("test", "valid"):
        (tmp_path / "wikitext2" / f"{part}.txt").write_text("the cat sat on the mat\n" * 100, encoding="utf-8")
    monkeypatch.setitem(BASE_STEPS, "5m", 1)
    monkeypatch.setattr(adaptation, "CONTEXT", 16)
    monkeypatch.setattr(adaptation, "LanguageModelling", _judged_briefly)
    model = adaptation.pretrain(tmp_path, "5m")
    assert sum(parameter.numel() for parameter in model.parameters()) > 4e6
    fresh = byte_gpt(LanguageModelling(**base_task("5m")).shape, adaptation.BASE_SEED)
    assert not torch.equal(model.tokens.weight, fresh.tokens.weight)


def _judged_briefly(**options: Any) -> LanguageModelling:
    return replace(LanguageModelling(**options), evaluation_batches=1, curve_batches=1, rows=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "2m"}, "base must be one of 1m, 5m, got '2m'"),
        ({"init": "pizza"}, "init must be one of default, gaussian, pissa, olora, got 'pizza'"),
        ({"alpha_ratio": 0.0}, "alpha_ratio must be positive, got 0.0"),
        ({"imbalance": -1.0}, "imbalance must be positive, got -1.0"),
    ],
)
def test_a_value_that_there_is_not_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptation(None, tmp_path, **changes)


# The factors


def adapted(rank: int = 4, **options: Any) -> dict[str, nn.Parameter]:
    pytest.importorskip("peft")
    return dict(with_lora(byte_gpt(SHAPE, seed=0), rank, 1, **options).named_parameters())


def factor(parameters: dict[str, nn.Parameter], letter: str) -> nn.Parameter:
    return next(p for name, p in parameters.items() if f"up.lora_{letter}." in name)


def loss_of(rank: int = 4, **options: Any) -> float:
    model = with_lora(byte_gpt(SHAPE, seed=0), rank, 1, **options)
    return model(*walk(torch.Generator().manual_seed(0))).item()


def test_by_default_alpha_is_twice_the_rank_and_the_second_factor_zero() -> None:
    pytest.importorskip("peft")
    for ratio in (1.0, 2.0, 4.0):
        model = with_lora(byte_gpt(SHAPE, seed=0), 4, 1, alpha_ratio=ratio)
        scalings = {m.scaling["default"] for m in model.modules() if hasattr(m, "scaling")}
        assert scalings == {ratio}
    usual = adapted()
    assert all(torch.equal(p, q) for p, q in zip(usual.values(), adapted(alpha_ratio=2.0).values(), strict=True))
    assert not factor(usual, "B").any()


@pytest.mark.parametrize("init", ["gaussian", "pissa", "olora"])
def test_another_start_of_the_factors_is_the_same_model(init: str) -> None:
    pytest.importorskip("peft")
    assert loss_of(init=init) == pytest.approx(loss_of(), abs=1e-5)
    assert not torch.equal(factor(adapted(init=init), "A"), factor(adapted(), "A"))
    assert bool(factor(adapted(init=init), "B").any()) == (init != "gaussian")


def test_imbalance_scales_the_factors_and_leaves_their_product() -> None:
    even, uneven = adapted(init="pissa"), adapted(init="pissa", imbalance=4.0)
    torch.testing.assert_close(factor(uneven, "A"), 4 * factor(even, "A"))
    torch.testing.assert_close(factor(uneven, "B"), factor(even, "B") / 4)
    assert loss_of(init="pissa", imbalance=4.0) == pytest.approx(loss_of(), abs=1e-5)


def test_a_quantized_base_holds_four_bits_an_entry_and_narrow_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    weights = byte_gpt(LanguageModelling(**base_task("1m")).shape, 0).state_dict()
    monkeypatch.setattr(adaptation, "base_weights", lambda *args: weights)
    model = Adaptation(None, tmp_path, rank=4, quantized=True).model(1)
    frozen = [p for name, p in model.named_parameters() if "base_layer" in name]
    assert len(frozen) == 16
    assert {p.dtype for p in frozen} == {torch.uint8}
    linear = [weight for name, weight in weights.items() if name.split(".")[-2] in LINEAR_LAYERS]
    assert sum(p.numel() for p in frozen) * 2 == sum(weight.numel() for weight in linear)
    factors = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in factors} == {torch.bfloat16}
    tokens = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))
    model(tokens, tokens).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in factors)
