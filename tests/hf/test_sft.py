"""TRL's SFTTrainer, with LoRA and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf import tiny

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from peft import AutoPeftModelForCausalLM, LoraConfig  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from scao_hf import SCAO, SCAOMonitorCallback  # noqa: E402
from scao_hf.hf.callback import unwrap_optimizer  # noqa: E402
from scao_hf.hf.sft import SCAOSFTTrainer  # noqa: E402


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(tiny.VOCABULARY - 4))]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sft_arguments(folder: Path, **changes: Any) -> Any:
    settled = {"bf16": False, "max_length": 16, "dataset_text_field": "text", "learning_rate": 2e-2, "max_steps": 30}
    return trl.SFTConfig(**tiny.argument_values(folder, **(settled | changes)))


def sft_trainer(folder: Path, trainer_class: Any = trl.SFTTrainer, *, lora: bool = True, **changes: Any) -> Any:
    rows = [{"text": " ".join(f"w{(i + j) % 60}" for j in range(10))} for i in range(60)]
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    ours = {name: changes.pop(name) for name in ("callbacks", "scao_kwargs") if name in changes}
    model = tiny.llama()
    # As large as trained weights are, so that adapters below a frozen head can change what it says.
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder / "base")
    model.name_or_path = model.config._name_or_path = str(folder / "base")
    return trainer_class(
        model,
        sft_arguments(folder, **changes),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=config,
        **ours,
    )


def test_lora_trains_logs_and_reloads(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, callbacks=[SCAOMonitorCallback()])
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0] - 1
    optimizer = unwrap_optimizer(trainer.optimizer)
    assert isinstance(optimizer, SCAO)
    assert {group["kind"] for group in optimizer.param_groups} == {"lora_a", "lora_b"}
    entry = next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry)
    assert entry["scao/phase"] == 2
    assert "mean_token_accuracy" in entry

    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, trainer.model.eval()(ids).logits)


def test_lora_resumes_bit_for_bit(tmp_path: Path) -> None:
    changes = {"max_steps": 16, "save_strategy": "steps", "save_steps": 8}
    straight = sft_trainer(tmp_path, **changes)
    straight.train()
    resumed = sft_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    expected = dict(straight.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_full_fine_tuning_lowers_the_loss(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, lora=False, learning_rate=1e-2)
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0] - 0.5
    assert {group["kind"] for group in unwrap_optimizer(trainer.optimizer).param_groups} >= {"matrix", "head"}


def test_scao_sft_trainer_takes_options_and_logs_without_asking(tmp_path: Path) -> None:
    options = {"warmup_steps": 2, "precond_freq": 3}
    trainer = sft_trainer(
        tmp_path, SCAOSFTTrainer, scao_kwargs=options, optim="adamw_torch_fused", optim_args=None, max_steps=4
    )
    assert (trainer.args.optim, trainer.args.optim_args) == ("scao", "warmup_steps=2,precond_freq=3")
    trainer.train()
    assert unwrap_optimizer(trainer.optimizer).param_groups[0]["precond_freq"] == 3
    assert trainer.state.log_history[1]["scao/rank_mean"] > 0


def test_plain_training_arguments_are_converted(tmp_path: Path) -> None:
    trainer = trl.SFTTrainer(
        tiny.llama(),
        tiny.arguments(tmp_path, "soap", bf16=False),
        train_dataset=datasets.Dataset.from_list([{"text": "w1 w2 w3"}] * 8),
        processing_class=tokenizer(),
    )
    assert type(trainer.create_optimizer()).__name__ == "SOAP"
