"""How the options of an optimizer are read, from text and from mappings."""

from __future__ import annotations

from typing import Any

import pytest

from scao_hf import PublishedSCAO
from scao_hf.hf.options import (
    OPTIMIZERS,
    OptionError,
    format_options,
    hyperparameters,
    option_defaults,
    resolve_options,
)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("scao", "damping=0.9", {"damping": 0.9}),
        ("scao", "eps=1e-4, precond_freq = 7", {"eps": 1e-4, "precond_freq": 7}),
        ("scao", "epsilon_sparse=0", {"epsilon_sparse": 0.0}),
        ("scao", "warmup_steps=1e2", {"warmup_steps": 100}),
        ("scao", "tau=none", {"tau": None}),
        ("scao", "tau=None", {"tau": None}),
        ("scao", "k_max=16", {"k_max": 16}),
        ("scao", "betas=0.9|0.95", {"betas": (0.9, 0.95)}),
        ("scao", "betas=(0.9, 0.95),damping=0.5", {"betas": (0.9, 0.95), "damping": 0.5}),
        ("scao", "beta1=0.8,beta2=0.7", {"betas": (0.8, 0.7)}),
        ("scao_published", "beta2=0.7", {"betas": (0.9, 0.7)}),
        ("scao", "state_dtype=int8", {"state_dtype": "int8"}),
        ("scao_published", "use_int8_ema=true", {"use_int8_ema": True}),
        ("scao_published", "use_int8_ema=False,tau=1", {"use_int8_ema": False, "tau": 1.0}),
        ("soap", "betas=none,fp32_matmul_prec=highest", {"betas": None, "fp32_matmul_prec": "highest"}),
        ("soap", "precondition_frequency=5", {"precondition_frequency": 5}),
        ("scao", "", {}),
        ("scao", None, {}),
    ],
)
def test_text_becomes_values_of_the_constructors_types(name: str, text: str | None, expected: dict[str, Any]) -> None:
    resolved = resolve_options(name, text)
    assert resolved == expected
    assert {key: type(value) for key, value in resolved.items()} == {k: type(v) for k, v in expected.items()}


def test_a_mapping_may_hold_values_or_text() -> None:
    # PyYAML reads 1e-4 as text and a tuple as a list.
    resolved = resolve_options("scao", {"eps": "1e-4", "betas": [0.9, 0.95], "tau": None, "precond_freq": 4.0})
    assert resolved == {"eps": 1e-4, "betas": (0.9, 0.95), "tau": None, "precond_freq": 4}
    assert isinstance(resolved["precond_freq"], int)


def test_a_schedule_can_be_given_in_a_mapping() -> None:
    def frequency(step: int) -> int:
        return 1 if step < 5 else 10

    assert resolve_options("soap", {"precondition_frequency": frequency}) == {"precondition_frequency": frequency}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_default_can_be_written_and_read_back(name: str) -> None:
    defaults = option_defaults(name)
    assert resolve_options(name, format_options(defaults)) == defaults


def test_text_keeps_numbers_to_the_last_bit() -> None:
    options = {"damping": 0.1 + 0.2, "betas": (1 / 3, 2 / 3), "eps": 1e-12}
    assert resolve_options("scao", format_options(options)) == options


def test_a_misspelt_option_names_its_neighbour_and_the_list() -> None:
    with pytest.raises(
        OptionError, match=r"no option precond_frq: did you mean precond_freq\?.*warmup_steps, "
    ) as info:
        resolve_options("scao", "precond_frq=3")
    assert info.value.option == "precond_frq"


def test_an_option_of_a_sibling_is_refused() -> None:
    with pytest.raises(OptionError, match="scao has no option rho"):
        resolve_options("scao", "rho=0.9")


@pytest.mark.parametrize(
    ("option", "field"), [("lr", "learning_rate"), ("learning_rate", "learning_rate"), ("weight_decay", "weight_decay")]
)
def test_what_training_arguments_decide_is_refused_by_the_name_of_the_field(option: str, field: str) -> None:
    with pytest.raises(OptionError, match=rf"set TrainingArguments\({field}=\.\.\.\)"):
        resolve_options("scao", f"{option}=0.1")


@pytest.mark.parametrize(
    "text", ["damping", "damping=", "=0.9", "damping=0.9,", "damping=0.9;k_max=3=4", "damping==0.9", ","]
)
def test_malformed_text_is_explained(text: str) -> None:
    with pytest.raises(OptionError, match=r"name=value pairs between commas, such as 'damping=1e-3,k_max=16'"):
        resolve_options("scao", text)


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="sets damping twice"):
        resolve_options("scao", "damping=0.9,damping=0.8")
    with pytest.raises(OptionError, match="not both"):
        resolve_options("scao", "betas=0.9|0.9,beta1=0.8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("scao", "damping=high", "damping is a finite number, got 'high'"),
        ("scao", "damping=true", "damping is a finite number"),
        ("scao", "damping=nan", "damping is a finite number"),
        ("scao", "eps=inf", "eps is a finite number"),
        ("scao", "precond_freq=2.5", "precond_freq is a whole number"),
        ("scao", "precond_freq=none", "precond_freq is a whole number, got 'none'"),
        ("scao", "k_max=many", "k_max is a whole number"),
        ("scao", "betas=0.9", r"betas is a tuple such as 0.9\|0.95"),
        ("scao", "betas=0.9|0.95|0.99", "betas is a tuple"),
        ("scao_published", "use_int8_ema=1", "use_int8_ema is true or false"),
        ("soap", "precondition_frequency=often", "precondition_frequency is a whole number or a function"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(name: str, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve_options(name, text)


@pytest.mark.parametrize(
    ("text", "option"),
    [("epsilon_sparse=1.5", "epsilon_sparse"), ("k_min=16,k_max=8", "k_min"), ("state_dtype=half", "state_dtype")],
)
def test_the_constructor_judges_the_values(text: str, option: str) -> None:
    with pytest.raises(OptionError, match=f"scao: {option} must") as info:
        resolve_options("scao", text)
    assert info.value.option == option


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_constructor_fills_in_what_was_left_out(name: str) -> None:
    settled = hyperparameters(name, {"eps": 1e-5})
    assert settled.keys() == option_defaults(name).keys()
    assert settled["eps"] == 1e-5
    assert len(settled["betas"]) == 2


def test_recommended_settings_are_options() -> None:
    recommended = PublishedSCAO.recommended(100_000_000)
    assert resolve_options("scao_published", recommended) == recommended


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of scao, scao_published, soap, got 'adamw'"):
        resolve_options("adamw", "")
