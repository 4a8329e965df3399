"""What a few seeds tell, against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from scao_hf.finetune.comparison.statistics import (
    Estimate,
    estimate,
    paired_difference,
    steps_to,
    t_quantile,
    verdict,
)


def test_the_interval_of_three_values_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))  # t of two degrees of freedom
    assert str(found) == "2.000 ± 1.000"


def test_the_interval_of_two_values_is_wide() -> None:
    found = estimate([2.0, 2.2])
    assert found.deviation == pytest.approx(math.sqrt(0.02))
    assert found.half_width == pytest.approx(12.706 * 0.1)


def test_one_value_has_no_spread() -> None:
    assert estimate([1.5]) == Estimate(1.5, None, None, 1)
    assert str(estimate([1.5])) == "1.500"


def test_no_value_has_no_estimate() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


@pytest.mark.parametrize("freedom", range(1, 31))
def test_quantiles_hold_975_thousandths_of_students_distribution(freedom: int) -> None:
    # Simpson's rule on the density between 0 and t: half of the distribution lies below 0.
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    parts, upper = 2000, t_quantile(freedom)
    width = upper / parts
    heights = [scale * (1 + (i * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(parts + 1)]
    weighted = heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1]
    assert 0.5 + weighted * width / 3 == pytest.approx(0.975, abs=5e-5)


def test_quantiles_beyond_the_table_are_not_too_small() -> None:
    assert t_quantile(1000) == t_quantile(30) >= 1.96


def test_differences_are_paired_by_seed() -> None:
    # −0.5, −0.4, −0.6: the spread over seeds, which both share, is gone.
    found = paired_difference([1.0, 3.2, 2.1], [1.5, 3.6, 2.7])
    assert found.mean == pytest.approx(-0.5)
    assert found.deviation == pytest.approx(0.1)
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert not found.covers_zero


def test_differences_need_as_many_of_either() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("mean", "half_width", "covers"),
    [(0.5, 0.4, False), (-0.5, 0.4, False), (0.5, 0.6, True), (-0.5, 0.5, True), (9.0, None, True)],
)
def test_an_interval_covers_zero_or_not(mean: float, half_width: float | None, covers: bool) -> None:
    assert Estimate(mean, half_width, half_width, 3).covers_zero is covers


@pytest.mark.parametrize(
    ("ours", "theirs", "mean"),
    [
        ([1.0, math.inf], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [1.0, math.inf], -math.inf),
        ([1.0, math.inf], [math.inf, 1.0], math.nan),
        ([math.inf, 1.0], [math.inf, 1.0], math.nan),
    ],
)
def test_runs_that_diverged_leave_the_difference_open(ours: list[float], theirs: list[float], mean: float) -> None:
    found = paired_difference(ours, theirs)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert found.half_width == math.inf
    assert found.covers_zero


def test_a_single_run_that_diverged_has_no_spread() -> None:
    assert estimate([math.inf]) == Estimate(math.inf, None, None, 1)


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (Estimate(-0.5, 0.1, 0.25, 3), "scao is lower than adamw: scao − adamw = -0.500 ± 0.250 (95%, 3 seeds)"),
        (Estimate(0.5, 0.1, 0.25, 3), "adamw is lower than scao: scao − adamw = +0.500 ± 0.250 (95%, 3 seeds)"),
        (Estimate(-0.2, 0.1, 0.25, 3), "not distinguishable: scao − adamw = -0.200 ± 0.250 (95%, 3 seeds)"),
        (Estimate(-0.5, None, None, 1), "one seed decides nothing: scao − adamw = -0.500"),
    ],
)
def test_a_verdict_names_the_lower_only_where_zero_is_excluded(difference: Estimate, sentence: str) -> None:
    assert verdict(difference, "scao", "adamw") == sentence


FALLING = [(0, 4.0), (10, 3.0), (20, 1.0)]
WAVING = [(0, 4.0), (10, 1.0), (20, 3.0), (30, 0.5)]


@pytest.mark.parametrize(
    ("curve", "target", "step"),
    [
        (FALLING, 2.0, 15.0),
        (FALLING, 3.5, 5.0),
        (FALLING, 3.0, 10.0),
        (FALLING, 1.0, 20.0),
        (FALLING, 0.99, None),
        (FALLING, 4.0, 0.0),
        (FALLING, 5.0, 0.0),
        (WAVING, 2.0, 10 * 2 / 3),  # the first time
        ([(0, math.inf), (10, 1.0)], 2.0, 10.0),
        ([(0, 4.0), (10, math.nan), (20, 1.0)], 2.0, 20.0),
        ([], 1.0, None),
    ],
)
def test_steps_to_a_target_lie_on_the_line_between_two_points(
    curve: list[tuple[int, float]], target: float, step: float | None
) -> None:
    assert steps_to(curve, target) == (None if step is None else pytest.approx(step))
