"""`SCAOTrainer`: where its options come from, when they are checked, and what it leaves in the arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf import tiny
from transformers import Trainer

from scao_hf import SCAO, SOAP, SCAOMonitorCallback, SCAOTrainer
from scao_hf.hf.callback import unwrap_optimizer
from scao_hf.hf.options import OptionError


def scao_trainer(folder: Path, scao_kwargs: dict[str, Any] | None = None, **changes: Any) -> SCAOTrainer:
    optim = changes.pop("optim", "adamw_torch_fused")
    args = tiny.arguments(folder, optim, **({"optim_args": None} | changes))
    return SCAOTrainer(tiny.llama(), args, train_dataset=tiny.sequences(), scao_kwargs=scao_kwargs)


def group_of(trainer: Trainer, kind: str = "matrix") -> dict[str, Any]:
    groups = unwrap_optimizer(trainer.create_optimizer()).param_groups
    return next(group for group in groups if group["kind"] == kind)


def test_the_options_reach_the_optimizer_and_the_arguments(tmp_path: Path) -> None:
    trainer = scao_trainer(tmp_path, {"damping": 0.9, "betas": (0.8, 0.7), "k_max": 16})
    group = group_of(trainer)
    assert isinstance(trainer.optimizer, SCAO)
    assert (group["damping"], group["betas"], group["k_max"], group["lr"]) == (0.9, (0.8, 0.7), 16, 5e-3)
    assert (trainer.args.optim, trainer.args.optim_args) == ("scao", "damping=0.9,betas=0.8|0.7,k_max=16")


def test_the_caller_s_arguments_stay_as_they_were_for_the_next_trainer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = tiny.arguments(tmp_path, "adamw_torch", optim_args=None)
    before = args.to_dict()
    first, second = (
        SCAOTrainer(tiny.llama(), args, train_dataset=tiny.sequences(), scao_kwargs=options)
        for options in ({"damping": 0.5, "lr": 1e-2}, {"k_max": 8})
    )
    assert args.to_dict() == before
    assert (first.args.optim_args, second.args.optim_args) == ("damping=0.5", "k_max=8")
    assert group_of(second)["damping"] == 1e-4
    assert group_of(second)["lr"] == args.learning_rate
    assert "damping" not in caplog.text


def test_a_stock_trainer_with_the_arguments_left_behind_trains_the_same(tmp_path: Path) -> None:
    scao_kwargs = {"warmup_steps": 2, "precond_freq": 3, "beta1": 0.9, "lr": 1e-2, "weight_decay": 0.05}
    first = scao_trainer(tmp_path, scao_kwargs)
    first.train()
    second = Trainer(tiny.llama(), first.args, train_dataset=tiny.sequences())
    second.train()
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert first.args.learning_rate == 1e-2
    assert first.args.weight_decay == 0.05


def test_scao_kwargs_come_before_optim_args_and_both_before_the_fields(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = scao_trainer(
        tmp_path,
        {"damping": 0.5, "eps": 1e-5},
        optim="scao",
        optim_args="damping=0.9,precond_freq=4,betas=0.7|0.6",
        adam_epsilon=1e-6,
        adam_beta2=0.98,
    )
    group = group_of(trainer)
    assert (group["damping"], group["precond_freq"], group["betas"], group["eps"]) == (0.5, 4, (0.7, 0.6), 1e-5)
    assert "scao_kwargs damping=0.5 is used, and optim_args damping=0.9 is not" in caplog.text
    assert "scao_kwargs eps=1e-05 is used, and TrainingArguments adam_epsilon=1e-06 is not" in caplog.text
    fields = "TrainingArguments adam_beta1, adam_beta2"
    assert f"optim_args betas=(0.7, 0.6) is used, and {fields}=(0.9, 0.98) is not" in caplog.text


def test_a_rate_in_scao_kwargs_replaces_that_of_the_arguments_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = scao_trainer(tmp_path, {"lr": 2e-3}, learning_rate=1e-3)
    assert group_of(trainer)["lr"] == 2e-3
    assert "scao_kwargs lr=0.002 is used, and TrainingArguments learning_rate=0.001 is not" in caplog.text


def test_agreeing_and_untouched_settings_raise_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scao_trainer(tmp_path, {"damping": 0.9, "eps": 1e-6}, optim="scao", optim_args="damping=0.9")
    assert "is used, and" not in caplog.text


def test_options_that_need_each_other_may_come_from_two_places(tmp_path: Path) -> None:
    group = group_of(scao_trainer(tmp_path, {"k_min": 2}, optim="scao", optim_args="k_max=4"))
    assert (group["k_min"], group["k_max"]) == (2, 4)


@pytest.mark.parametrize(
    ("scao_kwargs", "optim_args"), [({"dampin": 0.9}, None), (None, "dampin=0.9"), ({"damping": 0.9}, "dampin=0.9")]
)
def test_a_bad_option_is_refused_before_training(
    scao_kwargs: dict[str, Any] | None, optim_args: str | None, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="did you mean damping"):
        scao_trainer(tmp_path, scao_kwargs, optim="scao", optim_args=optim_args)


def test_a_sibling_named_in_the_arguments_is_kept(tmp_path: Path) -> None:
    trainer = scao_trainer(tmp_path, {"precondition_frequency": 3}, optim="soap")
    assert group_of(trainer)["precondition_frequency"] == 3
    assert isinstance(trainer.optimizer, SOAP)


def test_another_optimizer_named_in_the_arguments_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert scao_trainer(tmp_path, optim="adafactor").args.optim == "scao"
    assert "SCAOTrainer's optim=scao is used, and TrainingArguments optim=adafactor is not" in caplog.text


def test_a_schedule_is_used_though_no_text_can_hold_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = scao_trainer(tmp_path, {"precondition_frequency": len, "use_eigh": True}, optim="soap")
    assert group_of(trainer)["precondition_frequency"] is len
    assert trainer.args.optim_args == "use_eigh=True"
    assert "leaves out an option: precondition_frequency" in caplog.text


def test_a_ready_optimizer_is_used_as_it_is(tmp_path: Path) -> None:
    model = tiny.llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = tiny.arguments(tmp_path, "adamw_torch", optim_args=None)
    trainer = SCAOTrainer(model, args, optimizers=(optimizer, None))
    assert trainer.create_optimizer() is optimizer
    assert args.optim == "adamw_torch"
    ready = (torch.optim.SGD, {"lr": 0.1})
    trainer = SCAOTrainer(model, args, optimizer_cls_and_kwargs=ready)
    assert isinstance(trainer.create_optimizer(), torch.optim.SGD)


def test_a_ready_optimizer_and_scao_kwargs_are_refused_together(tmp_path: Path) -> None:
    model = tiny.llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="give one of them"):
        SCAOTrainer(model, tiny.arguments(tmp_path), optimizers=(optimizer, None), scao_kwargs={"damping": 0.9})


def test_a_model_made_anew_gets_an_optimizer_of_its_own(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, max_steps=2)
    data = tiny.sequences()
    trainer = SCAOTrainer(model_init=lambda: tiny.llama(), args=args, train_dataset=data, scao_kwargs={"damping": 0.9})
    trainer.train()
    first = unwrap_optimizer(trainer.optimizer)
    trainer.train()
    second = unwrap_optimizer(trainer.optimizer)
    assert first is not second
    assert {entry["step"] for entry in second.state.values()} == {2}


def test_the_metrics_are_logged_once_without_asking(tmp_path: Path) -> None:
    trainer = scao_trainer(tmp_path, max_steps=2)
    trainer.train()
    assert "scao/rank_mean" in trainer.state.log_history[0]
    args = tiny.arguments(tmp_path)
    trainer = SCAOTrainer(tiny.llama(), args, callbacks=[SCAOMonitorCallback()])
    assert [type(callback) for callback in trainer.callback_handler.callbacks].count(SCAOMonitorCallback) == 1
