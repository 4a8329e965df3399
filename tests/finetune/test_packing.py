"""Packed rows see only themselves, or packing is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.isolation import check_isolation
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune


def packing_trainer(model: Any, strategy: str = "bfd") -> Any:
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(packing_strategy=strategy, bf16=False, fp16=False),
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True),
    )


def llama(attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM._from_config(LlamaConfig(vocab_size=64, **sizes), attn_implementation=attention)


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_goes_by_positions_keeps_rows_apart(attention: str) -> None:
    model = llama(attention)
    check_isolation(packing_trainer(model))
    assert model.training


def test_a_model_whose_rows_see_each_other_is_refused() -> None:
    with pytest.raises(FinetuneError) as caught:
        check_isolation(packing_trainer(bloom()))
    assert (caught.value.code, caught.value.exit_code) == ("data.packing", 3)
    assert "see the rows before them" in caught.value.message


def test_running_text_may_see_what_comes_before() -> None:
    check_isolation(packing_trainer(bloom(), "wrapped"))


def test_a_model_without_weights_is_not_asked() -> None:
    with torch.device("meta"):
        check_isolation(packing_trainer(bloom()))


def test_wrapped_packing_is_refused_for_rows_that_have_a_reply(recipe_file: Path, chats: Path) -> None:
    overrides = [f"data.path={chats}", "data.packing=true", "training.packing_strategy=wrapped"]
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), overrides))
    assert (caught.value.code, caught.value.hint) == (
        "data.packing",
        "training.packing_strategy=bfd keeps rows whole and apart",
    )


def test_a_run_asks_its_own_model_before_it_packs(
    recipe_file: Path, rows_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scao_hf.finetune import model

    for made in ("shapes_only", "load_model"):
        monkeypatch.setattr(model, made, lambda *_: bloom_of_the_tiny_vocabulary())
    recipe = load_recipe(str(recipe_file), ["data.packing=true", "lora.target_modules=[query_key_value]"])
    with pytest.raises(FinetuneError) as caught:
        finetune(recipe)
    assert caught.value.code == "data.packing"
    assert not (recipe_file.parent / "run").exists()


def bloom_of_the_tiny_vocabulary() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=16, n_layer=1, n_head=2))
