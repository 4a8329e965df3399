"""YAML as recipes are read: the 1.2 core types, places, and no surprises."""

from __future__ import annotations

import math

import pytest

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.yaml_core import read_document, read_value, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("0o17", 15),
        ("010", 10),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-02", "2024-01-02"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'2e-4'", "2e-4"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_scalars_have_the_types_of_yaml_1_2(text: str, value: object) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_infinity_and_nan_are_numbers() -> None:
    assert read_value("-.inf") == -math.inf
    assert math.isnan(read_value(".nan"))


def test_what_is_written_reads_back_equal() -> None:
    data = {"a": "1e-4", "b": "no", "c": 1e-5, "d": None, "e": [1, {"f": "null"}], "g": "0x1", "h": "grüße", "i": True}
    assert read_document(write(data), "x").data == data


def test_a_doubled_key_is_an_error_that_names_both_lines() -> None:
    with pytest.raises(FinetuneError) as caught:
        read_document("training:\n  seed: 1\n  optim: scao\n  seed: 2\n", "my.yaml")
    error = caught.value
    assert error.code == "config.duplicate-key"
    assert error.exit_code == 2
    assert str(error.location) == "my.yaml:4:3"
    assert error.message == "key `training.seed` stands twice, first in line 2"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1", "f.yaml:1:6", "expected ',' or ']'"),
        ("a:\n\tb: 1", "f.yaml:2:1", "found character '\\t'"),
        ("a: &x 1\nb: *x", "f.yaml:2:4", "no `*aliases`"),
        ("- 1", "f.yaml:1:1", "holds a list"),
        ("a: b: c", "f.yaml:1:5", "mapping values are not allowed"),
    ],
)
def test_what_is_not_yaml_is_reported_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        read_document(text, "f.yaml")
    assert str(caught.value.location) == place
    assert words in caught.value.message


def test_a_control_character_is_reported() -> None:
    with pytest.raises(FinetuneError, match=r"U\+0000"):
        read_document("a: \x00", "f.yaml")


def test_the_excerpt_marks_the_key_under_its_line() -> None:
    location = read_document("a:\n  learing_rate: 1\n", "f.yaml").keys["a", "learing_rate"]
    assert location.excerpt() == "  |\n2 |   learing_rate: 1\n  |   ^~~~~~~~~~~~"
