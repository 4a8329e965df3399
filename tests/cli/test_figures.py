"""Numbers, durations and curves, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from scao_hf.cli import figures
from scao_hf.cli.console import ASCII, UNICODE


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1m00s"),
        (190, "3m10s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9216, "9216"), (61_440, "61.4 k"), (999_700, "1 M"), (1_071_360, "1.07 M"), (7_615_616_512, "7.62 B")],
)
def test_a_count_has_three_figures(number: int, text: str) -> None:
    assert figures.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (2_621_440, "2.5 MiB"), (2**31, "2.0 GiB")]
)
def test_bytes_are_counted_in_powers_of_1024(number: int, text: str) -> None:
    assert figures.byte_size(number) == text


def test_a_sparkline_draws_the_lowest_and_the_highest_mean_with_the_ends_of_its_ramp() -> None:
    assert figures.sparkline([4.0, 3.0, 2.0, 1.0], 4, UNICODE.ramp) == "█▆▃▁"
    assert figures.sparkline([4.0, 4.0, 1.0, 1.0], 2, ASCII.ramp) == "#_"


def test_a_sparkline_averages_equal_shares_when_there_are_more_values_than_cells() -> None:
    assert figures.sparkline([0.0, 2.0, 5.0, 5.0, 9.0, 11.0], 3, "abc") == "abc"


def test_a_sparkline_leaves_out_what_is_not_finite() -> None:
    assert figures.sparkline([2.0, math.nan, 1.0, math.inf], 8, "ab") == "ba"
    assert figures.sparkline([math.nan], 8, "ab") == ""
    assert figures.sparkline([], 8, "ab") == ""


def test_a_flat_curve_is_drawn_flat() -> None:
    assert figures.sparkline([3.0, 3.0, 3.0], 3, "abc") == "aaa"


@pytest.mark.parametrize(
    ("fraction", "drawn"), [(0.0, "----"), (0.5, "##--"), (1.0, "####"), (1.7, "####"), (-1.0, "----")]
)
def test_a_bar_never_leaves_its_width(fraction: float, drawn: str) -> None:
    assert figures.bar(fraction, 4, "#", "-") == drawn
