"""Every optimizer of the suite: that it trains all it is given, has the same chance, and what its cached runs go by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import SHAPE, walk
from torch import nn

from benchmarks.optimizers import ADAPTERS, code_digest, groups_of, keywords
from benchmarks.tasks.adaptation import with_lora
from benchmarks.tasks.models import byte_gpt
from scao_hf.finetune.comparison.runs import Setting, canonical

PLACES = [
    *((name, False) for name, adapter in ADAPTERS.items() if adapter.start),
    *((name, True) for name, adapter in ADAPTERS.items() if adapter.lora_start is not None),
]
"""Every optimizer from scratch and on LoRA, where it runs there."""


def built(name: str, lora: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A tiny model and an optimizer for it, at the start of its search."""
    adapter = ADAPTERS[name]
    if not adapter.is_available:
        pytest.skip(f"{adapter.package} is not installed")
    if lora:
        pytest.importorskip("peft")
    model: nn.Module = byte_gpt(SHAPE, seed=0)
    model = with_lora(model, rank=2, seed=0) if lora else model
    return model, adapter.build(model, adapter.space(lora).start)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """Steps on one batch; the loss before each, and after the last."""
    batch = walk(torch.Generator().manual_seed(0))
    if hasattr(optimizer, "train"):
        optimizer.train()
    losses = []
    for _ in range(count):
        loss = model(*batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, model(*batch).item()]


@pytest.mark.parametrize(("name", "lora"), PLACES)
def test_every_optimizer_lowers_the_loss_with_every_parameter_it_is_given(name: str, lora: bool) -> None:
    model, optimizer = built(name, lora)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = take_steps(model, optimizer, 3)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained)


@pytest.mark.parametrize(("name", "lora"), PLACES)
def test_every_trainable_parameter_is_in_one_group(name: str, lora: bool) -> None:
    model, optimizer = built(name, lora)
    # PEFT's LoRA-FA lists frozen parameters as well.
    given = [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    assert sorted(given) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "lora"), [place for place in PLACES if place[0] != "loraplus"])
def test_learning_rates_and_decays_are_those_of_the_setting(name: str, lora: bool) -> None:
    _, optimizer = built(name, lora)
    start = ADAPTERS[name].space(lora).start
    expected = {start["lr"], start["lr"] * start.get("auxiliary", 1.0)}
    assert {group["lr"] for group in optimizer.param_groups} == expected
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay for p, decay in decays.items() if p.ndim == 2} == {start["weight_decay"]}
    assert {decay for p, decay in decays.items() if p.ndim == 1} <= {0.0}


def test_lora_plus_multiplies_the_rate_of_the_second_factor() -> None:
    pytest.importorskip("peft")
    model, optimizer = built("loraplus", lora=True)
    start = ADAPTERS["loraplus"].space(lora=True).start
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {start["lr"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {start["lr"] * start["ratio"]}


def test_lora_fa_keeps_the_first_factor() -> None:
    pytest.importorskip("peft")
    model, optimizer = built("lorafa", lora=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    take_steps(model, optimizer, 2)
    moved = {name.split(".")[-3] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"lora_B"}


@pytest.mark.parametrize("lora", [False, True])
def test_all_that_share_a_coordinate_try_equally_many_values_of_it(lora: bool) -> None:
    counts: dict[str, dict[int, list[str]]] = {}
    for name in [name for name, on_lora in PLACES if on_lora is lora]:
        space = ADAPTERS[name].space(lora)
        for coordinate, values in space.alternatives.items():
            others = {canonical(value) for value in values} - {canonical(space.start[coordinate])}
            counts.setdefault(coordinate, {}).setdefault(len(others), []).append(name)
    assert {"betas", "weight_decay"} <= counts.keys()
    assert all(len(optimizers) == 1 and 0 not in optimizers for optimizers in counts.values()), counts


@pytest.mark.parametrize(("name", "lora"), PLACES)
def test_a_search_turns_everything_that_is_not_the_optimizers_own(name: str, lora: bool) -> None:
    space = ADAPTERS[name].space(lora)
    assert space.alternatives.keys() == space.start.keys() - {"lr"}


@pytest.mark.parametrize(("name", "lora"), PLACES)
def test_a_setting_is_plain_json(name: str, lora: bool) -> None:
    def assert_plain(value: Any) -> None:
        assert isinstance(value, (str, int, float, list, dict))
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            assert_plain(part)

    space = ADAPTERS[name].space(lora)
    assert_plain(space.start)
    assert_plain(space.alternatives)


def test_an_optimizer_without_a_start_on_lora_has_no_space_there() -> None:
    for name, adapter in ADAPTERS.items():
        if adapter.lora_start is None:
            with pytest.raises(ValueError, match="has no setting for LoRA"):
                ADAPTERS[name].space(lora=True)


def test_titles_tell_optimizers_apart() -> None:
    assert len({adapter.title for adapter in ADAPTERS.values()}) == len(ADAPTERS)


SETTING: Setting = {"lr": 0.1, "auxiliary": 0.5, "betas": [0.9, 0.95], "weight_decay": 0.2, "rho": 0.7}


def test_groups_scale_the_rate_of_tables_and_vectors() -> None:
    groups = groups_of(byte_gpt(SHAPE, seed=0), SETTING)
    rates = {group["kind"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {"matrix": (0.1, 0.2), "embedding": (0.05, 0.2), "vector": (0.05, 0.0)}


def test_what_is_not_common_is_handed_to_the_constructor() -> None:
    assert keywords(SETTING) == {"lr": 0.1, "weight_decay": 0.2, "betas": (0.9, 0.95), "rho": 0.7}


# What cached runs go by


SOURCE = '''"""A module."""

from scao_hf.numerics.powers import double


def quadruple(x: int) -> int:
    """Four times x."""
    return 2 * double(x)  # exactly
'''
REFORMATTED = """from scao_hf.numerics.powers import double
def quadruple(
    x: int,
) -> int: return 2*double(x)
"""
IMPORTED = "def double(x):\n    return 2 * x\n"


def digested(folder: Path, optimizer: str = SOURCE, imported: str = IMPORTED, **others: str) -> str:
    for name, text in {"optim/soap": optimizer, "numerics/powers": imported, **others}.items():
        path = folder / "scao_hf" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return code_digest("scao_hf.optim.soap", folder)


def test_comments_docstrings_and_formatting_do_not_change_the_digest_of_code(tmp_path: Path) -> None:
    assert digested(tmp_path / "one") == digested(tmp_path / "two", REFORMATTED)


def test_what_is_not_imported_does_not_change_the_digest(tmp_path: Path) -> None:
    assert digested(tmp_path / "one") == digested(tmp_path / "two", **{"optim/scao": "x = 1"})


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": SOURCE.replace("2 * double(x)", "double(x) * 2")},
        {"optimizer": SOURCE + 'NAME = "a text that is a value"\n'},
        {"imported": IMPORTED.replace("2 * x", "x + x")},
    ],
)
def test_code_and_what_it_imports_change_the_digest(tmp_path: Path, changes: dict[str, str]) -> None:
    assert digested(tmp_path / "one") != digested(tmp_path / "two", **changes)


def test_versions_name_all_that_a_cached_run_depends_on() -> None:
    torch_version = f"torch {torch.__version__.split('+')[0]}"
    assert ADAPTERS["adamw"].version().startswith(f"{torch_version}, fixed ")
    assert ADAPTERS["scao"].version() == f"{torch_version}, scao_hf.optim.scao {code_digest('scao_hf.optim.scao')}"
    assert ADAPTERS["muon"].version() == f"{torch_version}, benchmarks.muon {code_digest('benchmarks.muon')}"
    assert ADAPTERS["normuon"].version() != ADAPTERS["muon"].version()  # it fixes an option


def test_a_distribution_is_named_with_its_version() -> None:
    pytest.importorskip("peft")
    assert ", peft " in ADAPTERS["loraplus"].version()
