"""Whole runs: the stock Trainers, their checkpoints, and what they log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf import tiny
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from scao_hf import SCAO, SCAOMonitorCallback
from scao_hf.hf.callback import unwrap_optimizer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optim", list(tiny.PHASES))
def test_twenty_steps_resumed_for_twenty_equal_forty_bit_for_bit(
    optim: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    def trainer() -> Trainer:
        steps = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20, "logging_steps": 40}
        args = tiny.arguments(tmp_path, optim, weight_decay=0.1, **steps)
        # One epoch: transformers 4.57 resumes a later one with other rows, whatever the optimizer.
        return Trainer(tiny.llama().to(dtype), args, train_dataset=tiny.sequences(rows=160))

    straight = trainer()
    straight.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))

    assert resumed.state.global_step == 40
    assert unwrap_optimizer(resumed.optimizer).diagnostics()["phase"] == 2
    expected = weights(straight.model)
    for name, weight in weights(resumed.model).items():
        assert torch.equal(weight, expected[name]), name
    assert not torch.equal(weight, weights(tiny.llama().to(dtype))[name])


@pytest.mark.parametrize("optim", list(tiny.PHASES))
def test_the_stock_trainer_trains_and_lowers_the_loss(optim: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim=optim, max_steps=30, learning_rate=1e-2)
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0] - 0.5
    optimizer = unwrap_optimizer(trainer.optimizer)
    assert {"matrix", "embedding", "head", "vector"} == {group["kind"] for group in optimizer.param_groups}
    assert optimizer.diagnostics()["preconditioned_fraction"] == pytest.approx(_fraction(optimizer), abs=1e-6)


def _fraction(optimizer: Any) -> float:
    """Matrices, and but for SCAO embeddings and heads too, as a share of all parameters."""
    kinds = {"matrix"} if isinstance(optimizer, SCAO) else {"matrix", "embedding", "head"}
    sizes = [(group["kind"], sum(p.numel() for p in group["params"])) for group in optimizer.param_groups]
    return sum(size for kind, size in sizes if kind in kinds) / sum(size for _, size in sizes)


def test_the_learning_rate_in_the_log_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, lr_scheduler_type="constant", max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 5e-3


def _told_steps(trainer: Trainer) -> set[int | None]:
    return {group.get("told_steps") for group in unwrap_optimizer(trainer.optimizer).param_groups}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"max_steps": 6}, 6), ({"max_steps": -1, "num_train_epochs": 0.5, "gradient_accumulation_steps": 2}, 4)],
    ids=["steps", "epochs"],
)
def test_the_optimizer_is_told_how_long_the_run_is(changes: dict[str, Any], steps: int, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, **changes)
    trainer.train()
    assert trainer.state.max_steps == steps
    assert _told_steps(trainer) == {steps}


def test_a_run_that_goes_on_for_longer_is_as_long_as_that(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = tiny.trainer(tmp_path, max_steps=12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert _told_steps(resumed) == {12}


def test_a_length_that_was_asked_for_is_the_checkpoints_as_every_option_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.trainer(tmp_path, optim_args="total_steps=30", max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = Trainer(
        tiny.llama(),
        tiny.arguments(tmp_path, max_steps=6, optim_args=None),
        train_dataset=tiny.sequences(),
        callbacks=[SCAOMonitorCallback()],
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert {group["total_steps"] for group in unwrap_optimizer(resumed.optimizer).param_groups} == {30}
    assert "the checkpoint's total_steps=30 is used" in caplog.text


def test_a_ready_optimizer_is_told_as_well(tmp_path: Path) -> None:
    model = tiny.llama()
    optimizer = SCAO(model.parameters(), lr=1e-3)
    args = tiny.arguments(tmp_path, max_steps=3)
    Trainer(model, args, train_dataset=tiny.sequences(), optimizers=(optimizer, None)).train()
    assert {group["told_steps"] for group in optimizer.param_groups} == {3}


@pytest.mark.parametrize("steps", [0, 2.5])
def test_a_scheduler_of_no_steps_or_of_a_fraction_can_be_made(steps: float, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    trainer.create_optimizer()
    trainer.create_scheduler(steps)  # type: ignore[arg-type]
    assert _told_steps(trainer) == ({3} if steps else {None})


def test_a_sequence_classification_encoder_trains(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, max_steps=40, learning_rate=1e-2)
    trainer = Trainer(tiny.bert(), args, train_dataset=tiny.classified(), callbacks=[SCAOMonitorCallback()])
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0] - 0.2  # from chance, ln 2
    fraction = _fraction(unwrap_optimizer(trainer.optimizer))
    assert trainer.state.log_history[-2]["scao/preconditioned_fraction"] == pytest.approx(fraction, abs=1e-6)


def test_seq2seq_trainer_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=tiny.VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        dropout=0.0,
    )
    args = Seq2SeqTrainingArguments(**tiny.argument_values(tmp_path, max_steps=30, learning_rate=1e-2))
    trainer = Seq2SeqTrainer(BartForConditionalGeneration(config), args, train_dataset=tiny.sequences())
    trainer.train()
    losses = tiny.losses(trainer.state.log_history)
    assert losses[-1] < losses[0] - 0.5
    assert isinstance(unwrap_optimizer(trainer.optimizer), SCAO)


def test_gradient_accumulation_takes_one_optimizer_step_for_several_batches(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=5, gradient_accumulation_steps=3)
    trainer.train()
    state = unwrap_optimizer(trainer.optimizer).state
    assert {entry["step"] for entry in state.values()} == {5}


def test_a_second_train_goes_on_with_the_same_optimizer(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=3)
    trainer.train()
    trainer.train()
    assert {entry["step"] for entry in unwrap_optimizer(trainer.optimizer).state.values()} == {6}


def test_a_checkpoint_with_other_groups_is_refused(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    model = tiny.llama()
    model.model.embed_tokens.requires_grad_(False)
    with pytest.raises(ValueError, match="parameter groups"):
        tiny.trainer(tmp_path, model, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# Logs

METRICS = {
    f"scao/{name}"
    for name in (
        "phase",
        "blend",
        "rank_mean",
        "rank_max",
        "mass_kept",
        "curvature_norm",
        "basis_drift",
        "state_bytes",
        "preconditioned_fraction",
        "failures",
    )
}


def monitored(folder: Path, **changes: Any) -> Trainer:
    args: TrainingArguments = tiny.arguments(folder, **changes)
    return Trainer(
        tiny.llama(),
        args,
        train_dataset=tiny.sequences(),
        eval_dataset=tiny.sequences(8),
        callbacks=[SCAOMonitorCallback()],
    )


def test_the_history_carries_the_metrics_of_every_training_entry_and_of_no_other(tmp_path: Path) -> None:
    trainer = monitored(tmp_path, max_steps=10, eval_strategy="steps", eval_steps=5)
    trainer.train()
    history = trainer.state.log_history
    with_loss = [entry for entry in history if "loss" in entry]
    assert len(with_loss) == 5
    assert all(entry.keys() >= METRICS for entry in with_loss)
    assert not any(METRICS & entry.keys() for entry in history if "loss" not in entry)
    assert [entry["scao/phase"] for entry in with_loss] == [0, 0, 1, 2, 2]
    assert all(isinstance(entry[name], float) for entry in with_loss for name in METRICS)


def test_tensorboard_gets_the_metrics_of_an_ordinary_callback(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monitored(tmp_path, report_to=["tensorboard"], max_steps=4).train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    board = event_accumulator.EventAccumulator(str(events.parent))
    board.Reload()
    assert {f"train/{name}" for name in METRICS} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/scao/rank_mean")] == [2, 4]


def test_an_adam_phase_longer_than_the_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitored(tmp_path, optim="scao_published", optim_args=None, max_steps=3).train()
    assert "PublishedSCAO is plain Adam up to step 100 and training ends after 3" in caplog.text


@pytest.mark.parametrize(
    ("options", "max_steps", "told"),
    [
        (
            "warmup_steps=8",
            8,
            "nothing will be preconditioned. Train longer, or lower the optimizer's own warmup_steps",
        ),
        ("warmup_steps=19", 20, "only the last 1 will be preconditioned"),
        ("warmup_steps=19", 20, "lower the optimizer's own warmup_steps: 2 would be a tenth of the run"),
        ("warmup_steps=2,min_precond_updates=8", 8, "lower the optimizer's own min_precond_updates:"),
        ("warmup_steps=8,min_precond_updates=8", 8, "the optimizer's own warmup_steps and min_precond_updates:"),
        ("warmup_steps=18", 20, None),
    ],
)
def test_a_run_with_hardly_a_second_phase_is_told_which_option_leaves_it_none(
    options: str, max_steps: int, told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = monitored(tmp_path, optim_args=options, max_steps=max_steps)
    trainer.create_optimizer_and_scheduler(max_steps)
    trainer.state.max_steps = max_steps
    trainer.callback_handler.optimizer = trainer.optimizer
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert ("plain Adam" in caplog.text) == (told is not None)
    assert told is None or told in caplog.text


def test_a_run_with_a_second_phase_is_not_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitored(tmp_path, max_steps=6).train()
    assert "plain Adam" not in caplog.text


def test_a_checkpoint_that_brings_other_settings_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    monitored(tmp_path, optim_args="precond_freq=7", **saved).train()
    monitored(tmp_path, optim_args="precond_freq=7", **saved).train(resume_from_checkpoint=True)
    assert "the checkpoint's" not in caplog.text
    resumed = monitored(tmp_path, optim_args="precond_freq=2", **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "the checkpoint's precond_freq=7 is used, and the arguments' precond_freq=2 is not" in caplog.text
    assert unwrap_optimizer(resumed.optimizer).param_groups[0]["precond_freq"] == 7


def test_the_monitor_says_so_when_there_is_nothing_to_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = monitored(tmp_path, optim="adamw_torch", max_steps=2)
    trainer.train()
    assert "has nothing to report about AdamW" in caplog.text
    assert not any(METRICS & entry.keys() for entry in trainer.state.log_history)
