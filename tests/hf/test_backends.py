"""Sharded training is refused with a sentence instead of becoming Adam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hf import tiny
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import TrainingArguments

from scao_hf import SCAOTrainer
from scao_hf.hf.backends import UnsupportedBackendError, refuse_sharding

WHAT_WORKS = r".*a single device and DDP.* work"


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # TrainingArguments(fsdp=...) sets these for accelerate and leaves them behind.
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_fsdp_in_the_arguments_is_refused(tmp_path: Path) -> None:
    args = TrainingArguments(**tiny.argument_values(tmp_path, fsdp="full_shard", fsdp_config={"version": 2}))
    with pytest.raises(UnsupportedBackendError, match=rf"optim='scao' cannot train with FSDP{WHAT_WORKS}"):
        refuse_sharding("scao", args, None)


def test_deepspeed_in_the_arguments_is_refused(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path)
    args.deepspeed = {"zero_optimization": {"stage": 1}}  # without DeepSpeed installed the constructor refuses it
    with pytest.raises(UnsupportedBackendError, match=rf"DeepSpeed{WHAT_WORKS}"):
        tiny.trainer(tmp_path).get_optimizer_cls_and_kwargs(args, tiny.llama())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_accelerate_launch_was_told_is_refused(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny.arguments(tmp_path)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UnsupportedBackendError, match=f"{variable} is set"):
        refuse_sharding("scao", args, None)


@pytest.mark.parametrize("backend", ["FSDP", "DEEPSPEED"])
def test_the_state_of_accelerate_is_refused(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    args = tiny.arguments(tmp_path)
    monkeypatch.setitem(AcceleratorState._shared_state, "distributed_type", DistributedType(backend))
    with pytest.raises(UnsupportedBackendError, match=f"{backend} \\(accelerate's distributed_type"):
        refuse_sharding("scao", args, None)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_a_model_in_fsdp1_is_refused(use_orig_params: bool, tmp_path: Path) -> None:
    model = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    with pytest.raises(UnsupportedBackendError, match="FSDP1"):
        refuse_sharding("scao", tiny.arguments(tmp_path), model)


@pytest.mark.usefixtures("one_process")
def test_a_model_in_fsdp2_is_refused(tmp_path: Path) -> None:
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = fully_shard(nn.Linear(4, 4), mesh=mesh)
    with pytest.raises(UnsupportedBackendError, match="DTensor parameters"):
        refuse_sharding("scao", tiny.arguments(tmp_path), model)


def test_scao_trainer_refuses_at_construction(tmp_path: Path) -> None:
    args: Any = tiny.arguments(tmp_path)
    model = tiny.llama()
    next(model.parameters()).ds_id = 0  # what ZeRO-3 marks its partitioned parameters with
    with pytest.raises(UnsupportedBackendError, match="ZeRO-3"):
        SCAOTrainer(model, args)


def test_one_device_is_not_refused(tmp_path: Path) -> None:
    refuse_sharding("scao", tiny.arguments(tmp_path), tiny.llama())
