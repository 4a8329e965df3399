"""Ways of adapting a model: each saved adapter, on the original base, is the model that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from scao_hf.finetune import model
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.kept_run import KeptRun
from scao_hf.finetune.planning.plan import plan
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import FinetuneReport, finetune

IDS = torch.tensor([[72, 105, 32, 116, 104, 101, 114, 101]])


def trained(recipe_file: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[FinetuneReport, torch.Tensor]:
    """A finished run, and the logits of its model before it was saved."""
    held: list[torch.Tensor] = []
    save = KeptRun.save

    def look_and_save(self: Any) -> Path:
        self.trainer.model.eval()
        with torch.no_grad():
            held.append(self.trainer.model(input_ids=IDS).logits.float())
        return save(self)

    monkeypatch.setattr(KeptRun, "save", look_and_save)
    return finetune(load_recipe(str(recipe_file), overrides)), held[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.use_rslora=true", "lora.lora_alpha=4"],
        ["lora.use_dora=true"],
        ["lora.init_lora_weights=pissa"],
        ["lora.init_lora_weights=pissa_niter_4"],
        ["lora.init_lora_weights=olora", "lora.use_rslora=true"],
    ],
    ids=lambda overrides: "-".join(each.partition(".")[2] for each in overrides),
)
def test_the_saved_adapter_on_the_original_base_is_the_trained_model(
    recipe_file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report, expected = trained(recipe_file, monkeypatch, *overrides, "learning_rate=5e-2")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        untrained = base(input_ids=IDS).logits
        loaded = PeftModel.from_pretrained(base, report.saved_dir)(input_ids=IDS).logits
    torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)
    assert (expected - untrained).abs().max() > 0.01


def test_activation_checkpointing_changes_no_number(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = trained(recipe_file, monkeypatch)
    _, checkpointed = trained(
        recipe_file, monkeypatch, "gradient_checkpointing=true", f"training.output_dir={recipe_file.parent / 'other'}"
    )
    torch.testing.assert_close(checkpointed, plain)


def test_the_attention_that_a_recipe_asks_for_is_used(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    build = KeptRun.build_trainer

    def look(self: Any) -> None:
        build(self)
        used.append(self.trainer.model.config._attn_implementation)

    monkeypatch.setattr(KeptRun, "build_trainer", look)
    finetune(load_recipe(str(recipe_file), ["model.attn_implementation=eager"]))
    assert used == ["eager"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["lora.init_lora_weights=pissa", "quantization={load_in_4bit: true}"], "quantized ones cannot be"),
        (
            ["lora.init_lora_weights=olora", "lora.use_rslora=true", "lora.rank_pattern={q_proj: 2}"],
            "cannot be converted for the original weights",
        ),
    ],
)
def test_starts_that_could_not_be_saved_are_refused_on_reading(
    recipe_file: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(str(recipe_file), overrides)
    assert caught.value.code == "config.invalid-value"
    assert sentence in caught.value.message


def blocks_of_64(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose sides are multiples of 64, as bitsandbytes' processor kernels want them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_model, hidden_size=64, intermediate_size=128, head_dim=32)
    directory = tmp_path / "blocks"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


def test_an_evaluation_leaves_the_gradients_of_a_quantized_model_as_they_were(
    recipe_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    base = blocks_of_64(tiny_model, tmp_path)
    overrides = ["quantization={load_in_4bit: true}", f"model.model_name_or_path={base}"]
    recipe = load_recipe(str(recipe_file), overrides)
    config = model.load_config(recipe.model, str(base))
    quantized = model.load_model(recipe, str(base), config, torch.device("cpu"))
    adapted = get_peft_model(quantized, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tokens = torch.arange(32).view(2, 16)

    def gradients() -> torch.Tensor:
        adapted.train().zero_grad()
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None]).clone()

    before = gradients()
    with torch.no_grad():
        adapted.eval()(input_ids=tokens, labels=tokens)
    assert before.any()
    assert torch.equal(gradients(), before)


@pytest.mark.parametrize(
    "quantization",
    ["{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}", "{load_in_8bit: true}"],
)
def test_a_quantized_base_takes_an_adapter(
    recipe_file: Path, tiny_model: Path, tmp_path: Path, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    overrides = [f"quantization={quantization}", f"model.model_name_or_path={blocks_of_64(tiny_model, tmp_path)}"]
    recipe = load_recipe(str(recipe_file), overrides)
    told = plan(recipe)
    report = finetune(recipe)
    assert told.memory.optimizer == report.optimizer_state_bytes
    assert (told.info.trainable_parameters, told.info.total_parameters) == (
        report.trainable_parameters,
        report.total_parameters,
    )
    assert report.steps == 3
    assert report.final_eval_loss is not None
    assert report.initial_eval_loss is not None
    assert report.final_eval_loss < report.initial_eval_loss
    assert (report.saved_dir / "adapter_model.safetensors").is_file()


def test_quantized_layers_compute_in_the_dtype_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.49.0")  # Which older transformers ask for.
    given = model._quantization({"load_in_4bit": True}, torch.device("cpu"), torch.bfloat16)
    assert given["quantization_config"].bnb_4bit_compute_dtype is torch.bfloat16
    asked = model._quantization(
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}, torch.device("cpu"), torch.bfloat16
    )
    assert asked["quantization_config"].bnb_4bit_compute_dtype is torch.float32
