"""An assertion is read without `eval`, means what it says, and is refused with a place where it means nothing."""

from __future__ import annotations

import pytest

from scao_hf.finetune.comparison.assertion import parse
from scao_hf.finetune.errors import FinetuneError

OPTIMIZERS = ("scao", "adamw_torch")
VALUES: dict[str, dict[str, float | None]] = {
    "scao": {"eval_loss": 2.0, "steps_to_target": 60.0, "seconds_to_target": None, "state_bytes": 300},
    "adamw_torch": {"eval_loss": 1.99, "steps_to_target": 80.0, "seconds_to_target": 40.0, "state_bytes": 100},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scao.eval_loss <= 1.01 * adamw_torch.eval_loss", True),  # 2.0 against 2.0099
        ("scao.eval_loss <= 1.001 * adamw_torch.eval_loss", False),  # 2.0 against 1.99199
        ("scao.eval_loss < adamw_torch.eval_loss", False),
        ("scao.eval_loss - adamw_torch.eval_loss > 0.009", True),
        ("scao.steps_to_target / adamw_torch.steps_to_target == 0.75", True),
        ("scao.eval_loss + 2 * 3 != 8", False),
        ("(scao.eval_loss + 2) * 3 >= 12", True),
        ("-scao.eval_loss < -1", True),
        ("1.9 < adamw_torch.eval_loss < scao.eval_loss", True),
        ("1.9 < scao.eval_loss < adamw_torch.eval_loss", False),
        ("not scao.eval_loss < 1", True),
        ("scao.eval_loss < 1 or scao.state_bytes == 300", True),
        ("scao.eval_loss < 1 and scao.state_bytes == 300", False),
        ("not (scao.eval_loss < 1 or scao.state_bytes == 300)", False),
    ],
)
def test_an_assertion_means_what_it_says(text: str, expected: bool) -> None:
    assert parse(text, OPTIMIZERS).holds(VALUES) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scao.seconds_to_target < 1e300", False),
        ("scao.seconds_to_target > 2 * adamw_torch.seconds_to_target", True),
        ("scao.seconds_to_target < scao.seconds_to_target", False),
    ],
)
def test_a_target_that_is_never_reached_takes_forever(text: str, expected: bool) -> None:
    assert parse(text, OPTIMIZERS).holds(VALUES) is expected


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "=="])
def test_nothing_holds_of_a_division_by_zero(sign: str) -> None:
    assert not parse(f"scao.eval_loss / 0 {sign} 1", OPTIMIZERS).holds(VALUES)


def test_the_values_that_it_speaks_of_are_told_once_each() -> None:
    read = parse("scao.eval_loss < 3 and scao.eval_loss > scao.seconds_to_target", OPTIMIZERS)
    assert read.figures(VALUES) == "scao.eval_loss = 2, scao.seconds_to_target = never"


@pytest.mark.parametrize(
    ("text", "message", "hint", "column"),
    [
        ("scoa.eval_loss < 1", "`scoa` is not an optimizer of this comparison", "did you mean `scao`?", 1),
        ("1 < soap.eval_loss", "`soap` is not an optimizer of this comparison", "there are scao, adamw_torch", 5),
        ("scao.eval_los < 1", "`eval_los` is not a measure", "did you mean `eval_loss`?", 1),
        ("scao.eval_loss", "this is neither true nor false: compare it with something", None, 1),
        ("scao.eval_loss < 1 and 2", "this is neither true nor false: compare it with something", None, 24),
        ("scao.eval_loss <", "an assertion that cannot be read", None, 1),
        ("", "an assertion that cannot be read", None, 1),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(text: str, message: str, hint: str | None, column: int) -> None:
    with pytest.raises(FinetuneError) as caught:
        parse(text, OPTIMIZERS)
    error = caught.value
    assert (error.code, error.exit_code, error.message) == ("config.assertion", 2, message)
    assert hint is None or error.hint is not None
    assert hint is None or (error.hint or "").startswith(hint)
    assert error.location is not None
    assert error.location.column == column


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "scao.eval_loss.real < 1",
        "scao.__class__ == 1",
        "(scao.eval_loss < 1) < 2",
        "True == 1",
        "'a' < 'b'",
        "scao.eval_loss ** 2 < 9",
        "scao.eval_loss // 1 < 9",
        "scao.eval_loss is 2",
        "scao.eval_loss in (1, 2)",
        "[x for x in (1, 2)] == 1",
        "(lambda: 1)() == 1",
        "eval_loss < 1",
        "scao['eval_loss'] < 1",
        "a := scao.eval_loss < 1",
    ],
)
def test_only_numbers_and_comparisons_are_understood(text: str) -> None:
    with pytest.raises(FinetuneError, match=r"not|neither|cannot be read") as caught:
        parse(text, OPTIMIZERS)
    assert caught.value.code == "config.assertion"
