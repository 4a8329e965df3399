"""`optim="scao"` wherever transformers reads, writes, copies or parses training arguments."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hf import tiny
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from scao_hf import SCAO, SOAP, PublishedSCAO, register
from scao_hf.hf import registration

CLASSES = {"scao": SCAO, "scao_published": PublishedSCAO, "soap": SOAP}


def python(program: str, *arguments: object, **environment: str) -> str:
    """What a fresh interpreter prints that runs a program."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_take_the_name_and_write_it_as_text(name: str, tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, name)
    assert args.optim == name
    assert args.to_dict()["optim"] == name
    assert json.loads(args.to_json_string())["optim"] == name
    assert args.to_sanitized_dict()["optim"] == name


def test_arguments_can_be_copied_replaced_and_rebuilt(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path)
    rebuilt = TrainingArguments(**{**args.to_dict(), "use_cpu": True})
    for other in (copy.deepcopy(args), dataclasses.replace(args, seed=1), pickle.loads(pickle.dumps(args)), rebuilt):
        assert other.optim == "scao"
    assert tiny.arguments(tmp_path, "adamw_torch").set_optimizer("soap").optim == "soap"


@pytest.mark.parametrize("arguments_class", [TrainingArguments, Seq2SeqTrainingArguments])
def test_the_argument_parser_takes_the_name_from_a_command_line_and_a_dictionary(
    arguments_class: Any, tmp_path: Path
) -> None:
    parser = HfArgumentParser(arguments_class)
    (parsed,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", "scao", "--optim_args", "damping=0.9", "--use_cpu", "true"]
    )
    (from_dictionary,) = parser.parse_dict({"output_dir": str(tmp_path), "optim": "scao_published", "use_cpu": True})
    assert (parsed.optim, parsed.optim_args, from_dictionary.optim) == ("scao", "damping=0.9", "scao_published")


def test_an_unknown_name_is_still_refused_and_the_list_has_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scaoo is not a valid OptimizerNames.*'scao', 'scao_published', 'soap'"):
        tiny.arguments(tmp_path, "scaoo")


def test_a_member_behaves_like_the_ones_transformers_defines() -> None:
    member = OptimizerNames("scao")
    assert member is OptimizerNames.SCAO is OptimizerNames["SCAO"]  # type: ignore[attr-defined,misc]
    assert isinstance(member, OptimizerNames)
    assert member in list(OptimizerNames)
    assert {member: 1}["scao"] == 1
    assert (member.name, member.value, hash(member)) == ("SCAO", "scao", hash("scao"))


def test_registering_twice_changes_nothing() -> None:
    before, answer = list(OptimizerNames), Trainer.get_optimizer_cls_and_kwargs
    register()
    registration.register_on_import()
    assert list(OptimizerNames) == before
    assert Trainer.get_optimizer_cls_and_kwargs is answer


def test_a_name_that_transformers_brings_itself_stays_transformers() -> None:
    class Names(StrEnum):
        SCAO = "scao"

    module = ModuleType("stand-in")
    module.OptimizerNames = Names  # type: ignore[attr-defined]
    module._OPTIMIZER_HANDLERS = {"scao": "theirs"}  # type: ignore[attr-defined]
    theirs, own = Names.SCAO, set(registration._OWN)
    try:
        registration._OWN.clear()
        registration._extend_names(module)
        assert sorted(registration._OWN) == ["scao_published", "soap"]
    finally:
        registration._OWN.update(own)
    registration._extend_handlers(module)
    assert Names("scao") is theirs
    assert module._OPTIMIZER_HANDLERS["scao"] == "theirs"


@pytest.mark.parametrize(
    ("patch", "missing"),
    [
        (registration._extend_names, "no enumeration OptimizerNames"),
        (registration._extend_handlers, "no table _OPTIMIZER_HANDLERS"),
        (registration._wrap_trainer, "no method get_optimizer_cls_and_kwargs"),
    ],
)
def test_a_private_name_that_has_moved_is_reported_with_a_way_out(patch: Any, missing: str) -> None:
    with pytest.raises(registration.RegistrationError, match=rf"{missing}.*Pass optimizers="):
        patch(ModuleType("transformers.empty"))


@pytest.mark.parametrize("name", CLASSES)
def test_trainer_answers_with_class_groups_and_the_fields_of_the_arguments(name: str, tmp_path: Path) -> None:
    model = tiny.llama()
    args = tiny.arguments(tmp_path, name, weight_decay=0.1, adam_epsilon=1e-7)
    found, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert found is CLASSES[name]
    assert (kwargs["lr"], kwargs["eps"], kwargs["weight_decay"]) == (5e-3, 1e-7, 0.1)
    assert {group["weight_decay"] for group in kwargs["params"]} == {0.1, 0.0}
    assert "betas" not in kwargs


def test_without_a_model_there_are_no_groups(tmp_path: Path) -> None:
    assert "params" not in Trainer.get_optimizer_cls_and_kwargs(tiny.arguments(tmp_path))[1]


def test_other_optimizers_are_answered_as_before(tmp_path: Path) -> None:
    found, kwargs = Trainer.get_optimizer_cls_and_kwargs(tiny.arguments(tmp_path, "adamw_torch"), tiny.llama())
    assert found is torch.optim.AdamW
    assert kwargs["betas"] == (0.9, 0.999)


def test_untouched_betas_are_the_optimizers_and_others_are_passed(tmp_path: Path) -> None:
    def betas(**changes: Any) -> Any:
        return Trainer.get_optimizer_cls_and_kwargs(tiny.arguments(tmp_path, **changes))[1].get("betas")

    assert betas() is None
    assert betas(adam_beta2=0.99) == (0.9, 0.99)
    assert betas(adam_beta2=0.99, optim_args="betas=0.8|0.7") == (0.8, 0.7)
    assert betas(adam_beta2=0.99, optim_args="beta1=0.8") == (0.8, 0.99)


def test_an_overridden_field_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Trainer.get_optimizer_cls_and_kwargs(tiny.arguments(tmp_path, adam_beta1=0.8, optim_args="betas=0.7|0.6"))
    assert (
        "optim_args betas=(0.7, 0.6) is used, and TrainingArguments adam_beta1, adam_beta2=(0.8, 0.999)" in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("precond_frq=3", "did you mean precond_freq"), ("damping", "name=value pairs"), ("lr=0.1", "learning_rate")],
)
def test_a_bad_text_is_explained_when_training_starts(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, optim_args=text).train()


def test_targets_narrow_what_is_preconditioned(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, optim_target_modules=["q_proj"])
    groups = Trainer.get_optimizer_cls_and_kwargs(args, tiny.llama())[1]["params"]
    assert [len(group["params"]) for group in groups if group.get("sides") != "none"] == [2]


# In other processes


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    program = "import scao_hf, sys; print(sorted({'torch', 'transformers', 'typer'} & sys.modules.keys()))"
    assert python(program) == "[]"


def test_importing_the_package_before_transformers_is_enough_and_its_sources_can_still_be_read() -> None:
    program = """
import inspect, sys, scao_hf
from transformers import TrainingArguments, training_args
args = TrainingArguments("out", optim="scao", use_cpu=True)
from transformers import Trainer
readable = "class OptimizerNames" in inspect.getsource(training_args)
print(Trainer.get_optimizer_cls_and_kwargs(args)[0].__name__, readable)
"""
    assert python(program) == "SCAO True"


def test_registration_can_be_switched_off_and_done_after_transformers_is_imported() -> None:
    program = """
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
import scao_hf
print("scao" in OptimizerNames._value2member_map_)
scao_hf.hf.registration.register_on_import()  # what the import does, unless it is switched off
args = TrainingArguments("out", optim="scao", use_cpu=True)
scao_hf.register()
print(Trainer.get_optimizer_cls_and_kwargs(args)[0].__name__, list(OptimizerNames).count("scao"))
"""
    assert python(program, SCAO_HF_NO_AUTO_REGISTER="1").splitlines() == ["False", "SCAO 1"]


def test_training_args_bin_can_be_read_without_this_package(tmp_path: Path) -> None:
    torch.save(tiny.arguments(tmp_path), tmp_path / "training_args.bin")
    program = """
import sys, torch
args = torch.load(sys.argv[1], weights_only=False)
assert "scao_hf" not in sys.modules
print(args.optim, type(args.optim).__name__)
import scao_hf
from transformers import TrainingArguments
print(repr(TrainingArguments("out", optim=args.optim, use_cpu=True).optim))
"""
    printed = python(program, tmp_path / "training_args.bin").splitlines()
    assert printed == ["scao str", "<OptimizerNames.SCAO: 'scao'>"]
