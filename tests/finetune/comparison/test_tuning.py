"""The search: every trial is spent, the optimum is bracketed, nothing is tried twice."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from scao_hf.finetune.comparison.runs import Setting, canonical
from scao_hf.finetune.comparison.tuning import Space, Trial, best, is_bracketed, proposals

Landscape = Callable[[Setting], float]
ALTERNATIVES = {"auxiliary": [0.5], "betas": [[0.95, 0.95], [0.9, 0.99]], "weight_decay": [0.01]}
RATE = Space({"lr": 1e-3})
"""First grid 5e-4, 1e-3, 2e-3."""


def space(**changes: Any) -> Space:
    start = {"lr": 1e-3, "auxiliary": 1.0, "betas": [0.9, 0.95], "weight_decay": 0.1}
    return Space(**{"start": start, "alternatives": ALTERNATIVES, **changes})


def search(searched: Space, trials: int, landscape: Landscape) -> list[Trial]:
    done: list[Trial] = []
    while batch := proposals(searched, trials, done):
        done += [Trial(setting, landscape(setting)) for setting in batch]
    return done


def bowl(optimum: float) -> Landscape:
    """Octaves to the optimum, squared."""
    return lambda setting: math.log2(setting["lr"] / optimum) ** 2


def rates(trials: list[Trial]) -> list[float]:
    return [trial.setting["lr"] for trial in trials]


def rough(setting: Setting) -> float:
    """A random loss for every setting, the same at every call; about one in three diverges."""
    source = random.Random(canonical(setting))
    return source.choice([source.random(), source.random(), math.nan])


LANDSCAPES: dict[str, Landscape] = {
    "bowl": bowl(1e-3),
    "between the grid": bowl(1.3e-3),
    "far above": bowl(1.0),
    "far below": bowl(1e-6),
    "flat": lambda setting: 2.0,
    "uphill": lambda setting: setting["lr"],
    "downhill": lambda setting: -setting["lr"],
    "diverges everywhere": lambda setting: math.inf,
    "nan above 1e-3": lambda setting: math.nan if setting["lr"] > 1e-3 else 1e-3 - setting["lr"],
    "rough": rough,
}


@pytest.mark.parametrize("trials", [3, 4, 8, 60])
@pytest.mark.parametrize("searched", [RATE, space(), space(factor=1.0001), space(rates=[1e-2, 1e-3, 1e-2])])
@pytest.mark.parametrize("landscape", LANDSCAPES.values(), ids=LANDSCAPES)
def test_a_search_spends_exactly_its_trials_on_different_settings(
    landscape: Landscape, searched: Space, trials: int
) -> None:
    done = search(searched, trials, landscape)
    assert len(done) == trials
    assert len({canonical(trial.setting) for trial in done}) == trials
    assert all(rate > 0 for rate in rates(done))


@pytest.mark.parametrize("landscape", LANDSCAPES.values(), ids=LANDSCAPES)
def test_a_search_is_the_same_every_time(landscape: Landscape) -> None:
    assert repr(search(space(), 20, landscape)) == repr(search(space(), 20, landscape))


def test_a_search_on_a_budget_is_the_beginning_of_a_longer_one() -> None:
    assert search(space(), 12, rough)[:7] == search(space(), 7, rough)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("edge", [5e-4, 2e-3])
def test_an_optimum_off_the_grid_is_found_and_bracketed(edge: float, steps: int) -> None:
    optimum = edge * 2.0 ** (steps if edge > 1e-3 else -steps)
    # The grid, one trial for every step to the optimum, and one beyond it.
    done = search(RATE, 3 + steps + 1, bowl(optimum))
    assert best(done).setting["lr"] == pytest.approx(optimum)
    assert is_bracketed(done)
    assert not is_bracketed(done[:-1])


def test_what_is_left_narrows_the_learning_rate() -> None:
    done = search(RATE, 7, bowl(1e-3 * 2**0.2))
    # Octaves from 1e-3: the grid, then a half on both sides, then a quarter on both sides of the best.
    octaves = [-1, 0, 1, -0.5, 0.5, -0.25, 0.25]
    assert rates(done) == pytest.approx([1e-3 * 2**octave for octave in octaves], rel=1e-3)


def test_a_start_at_which_all_diverges_moves_to_smaller_rates() -> None:
    done = search(RATE, 8, lambda setting: math.inf if setting["lr"] > 1e-4 else bowl(1e-4)(setting))
    assert rates(done)[:6] == [5e-4, 1e-3, 2e-3, 2.5e-4, 1.25e-4, 6.25e-5]
    assert all(later < earlier for earlier, later in pairwise(rates(done)[2:6]))
    assert is_bracketed(done)


def tried_with(name: str, value: Any, done: list[Trial]) -> list[Trial]:
    return [trial for trial in done if trial.setting[name] == value]


def test_alternatives_are_judged_at_the_best_setting_so_far() -> None:
    def landscape(setting: Setting) -> float:
        return bowl(4e-3)(setting) + (setting["auxiliary"] == 1.0) + (setting["betas"] != [0.9, 0.99])

    done = search(space(), 9, landscape)
    # Three rates, two beyond the edge (4e-3 is best, 8e-3 brackets it), then one coordinate after the other.
    assert rates(done) == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 4e-3, 4e-3, 4e-3, 4e-3]
    assert [trial.setting["auxiliary"] for trial in done[5:]] == [0.5, 0.5, 0.5, 0.5]
    assert [trial.setting["betas"] for trial in done[5:]] == [[0.9, 0.95], [0.95, 0.95], [0.9, 0.99], [0.9, 0.99]]
    assert [trial.setting["weight_decay"] for trial in done[5:]] == [0.1, 0.1, 0.1, 0.01]


def test_an_alternative_that_is_no_better_is_left() -> None:
    done = search(space(), 7, bowl(1e-3))
    assert best(done).setting == space().start
    assert [trial.setting["auxiliary"] for trial in done[4:]] == [1.0, 1.0, 1.0]


def test_alternatives_of_a_coordinate_do_not_start_from_one_another() -> None:
    done = search(space(), 4, bowl(1e-3))
    first, second = proposals(space(), 8, done)
    assert [first["betas"], second["betas"]] == [[0.95, 0.95], [0.9, 0.99]]
    assert proposals(space(), 8, [*done, Trial(first, -1.0)]) == [second]


def test_a_better_rate_found_late_is_where_alternatives_are_judged_again() -> None:
    done = search(space(), 9, bowl(1e-3 * 2**-0.5))
    assert rates(done)[7:] == pytest.approx([1e-3 * 2**-0.5, 1e-3 * 2**0.5], rel=1e-3)
    (proposal,) = proposals(space(), 10, done)
    assert proposal == {**space().start, "lr": rates(done)[7], "auxiliary": 0.5}


def test_tuples_and_lists_are_the_same_values() -> None:
    start = {**space().start, "betas": (0.9, 0.95)}
    tuples = space(start=start, alternatives={**ALTERNATIVES, "betas": [(0.9, 0.95), (0.95, 0.95), (0.9, 0.99)]})
    assert search(tuples, 12, rough) == search(space(), 12, rough)


def test_an_alternative_named_twice_is_tried_once() -> None:
    twice = space(alternatives={"betas": [[0.95, 0.95], [0.95, 0.95]]})
    assert len(tried_with("betas", [0.95, 0.95], search(twice, 5, bowl(1e-3)))) == 1


def test_fewer_trials_than_the_first_grid_are_refused_before_any_is_spent() -> None:
    with pytest.raises(ValueError, match=r"trials must be at least 3, .* got 2"):
        search(RATE, 2, lambda setting: pytest.fail("a trial was spent"))


def test_a_first_grid_may_be_named() -> None:
    assert rates(search(space(rates=[3e-2, 1e-3, 1e-3]), 2, bowl(1e-3))) == [1e-3, 3e-2]


def test_learning_rates_have_four_digits() -> None:
    assert Space({"lr": 0.1 / 3}).grid == [0.01667, 0.03333, 0.06667]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": {"weight_decay": 0.1}, "alternatives": {}}, "start must hold a positive 'lr', got None"),
        ({"start": {"lr": 0.0}, "alternatives": {}}, "start must hold a positive 'lr', got 0.0"),
        ({"start": {"lr": math.inf}, "alternatives": {}}, "start must hold a positive 'lr', got inf"),
        ({"factor": 1.0}, "factor must exceed 1, got 1.0"),
        ({"rates": [1e-3, -1e-3]}, "rates must be positive"),
        ({"rates": []}, "rates must be positive, and at least one"),
        ({"alternatives": {"lr": [1e-3]}}, "name learning rates in rates"),
        ({"alternatives": {"momentum": [0.9]}}, "alternatives names momentum, which start does not set"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(**changes)


def trials(*losses: float) -> list[Trial]:
    """At 1e-3, 2e-3, 4e-3, …"""
    return [Trial({"lr": 1e-3 * 2**place}, loss) for place, loss in enumerate(losses)]


def test_the_best_trial_is_the_first_of_the_lowest_finite_ones() -> None:
    done = trials(math.nan, -math.inf, 2.0, 1.0, 1.0, math.inf)
    assert best(done) is done[3]


def test_there_is_no_best_of_trials_that_all_diverged() -> None:
    with pytest.raises(ValueError, match="none of 2 trials ended with a finite loss"):
        best(trials(math.inf, math.nan))


@pytest.mark.parametrize(
    ("losses", "bracketed"),
    [
        ([2.0, 1.0, 2.0], True),
        ([1.0, 2.0, 3.0], False),
        ([3.0, 2.0, 1.0], False),
        ([math.inf, 1.0, math.nan], True),  # a rate that diverges is a worse one
        ([1.0], False),
    ],
)
def test_a_bracketed_optimum_has_rates_on_both_sides(losses: list[float], bracketed: bool) -> None:
    assert is_bracketed(trials(*losses)) is bracketed
