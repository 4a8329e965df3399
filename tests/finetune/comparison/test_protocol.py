"""The protocol cannot be bypassed: whatever differs between competitors is refused, and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from finetune.comparison import made
from finetune.comparison.made import Parts, competitor, run, under

from scao_hf.finetune.comparison.protocol import CONDITIONS, ProtocolError, compare
from scao_hf.finetune.comparison.runs import Run

Break = Callable[[Parts], Parts]


def test_a_fair_comparison_is_accepted() -> None:
    comparison = compare([competitor("adamw"), competitor("scao", rates=(5e-4, 2e-3, 8e-3))])
    assert list(comparison.entries) == ["adamw", "scao"]
    assert comparison.seeds == made.SEEDS
    assert comparison.supports_claims
    assert comparison.entries["scao"].chosen == {"lr": 2e-3, "betas": [0.9, 0.95]}


def test_losses_are_in_the_order_of_their_seeds() -> None:
    name, trials, finals = competitor("adamw")
    shuffled = [replace(final, loss=float(final.seed)) for final in (finals[2], finals[0], finals[1])]
    assert compare([(name, trials, shuffled)]).entries["adamw"].losses == [42.0, 43.0, 44.0]


def test_settings_that_nobody_tuned_may_be_compared() -> None:
    untuned = [(arm, [], competitor(arm, lr=lr)[2]) for arm, lr in [("adamw", 1e-3), ("scao", 8e-3)]]
    assert compare(untuned).seeds == made.SEEDS


def test_two_seeds_support_no_claim() -> None:
    assert not compare([competitor(arm, seeds=(42, 43)) for arm in ("adamw", "scao")]).supports_claims


def test_a_final_run_that_diverged_is_a_result() -> None:
    name, trials, finals = competitor("scao")
    finals[1] = replace(finals[1], loss=math.inf)
    assert compare([competitor("adamw"), (name, trials, finals)]).entries["scao"].losses[1] == math.inf


def changed(place: str, index: int, **values: Any) -> Break:
    """Change conditions of one run, or fields of it where the name is a field's."""

    def breaks(parts: Parts) -> Parts:
        name, trials, finals = parts
        runs = {"trials": list(trials), "finals": list(finals)}
        fields = {key: value for key, value in values.items() if key in Run.__dataclass_fields__}
        conditions = {key: value for key, value in values.items() if key not in fields}
        runs[place][index] = under(replace(runs[place][index], **fields), **conditions)
        return name, runs["trials"], runs["finals"]

    return breaks


def assert_refused(breaks: Break, message: str) -> None:
    """The competitor that was broken is refused first and last, beside one that keeps the rules."""
    broken = breaks(competitor("scao"))
    for runs in ([competitor("adamw"), broken], [broken, competitor("adamw")]):
        with pytest.raises(ProtocolError, match=message):
            compare(runs)


DIFFERENT = {
    "initialisation": "other weights",
    "data_order": "other batches",
    "evaluation_set": "other texts",
    "clipping": 5.0,
    "schedule": {"warmup_steps": 0, "end": 0.0},
    "token_budget": 2000,
    "steps": 100,
    "device": "cuda",  # told by one alone
}


@pytest.mark.parametrize("place", ["trials", "finals"])
@pytest.mark.parametrize("condition", DIFFERENT)
def test_a_condition_that_differs_in_one_run_is_refused(condition: str, place: str) -> None:
    seed, what = {"trials": (1, "tuning"), "finals": (44, "final")}[place]
    named = f"different {condition.replace('_', ' ')} in the {what} runs of seed {seed}: "
    assert_refused(changed(place, 2, **{condition: DIFFERENT[condition]}), named)


@pytest.mark.parametrize("place", ["trials", "finals"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_that_nobody_tells_is_refused(condition: str, place: str) -> None:
    untold = changed(place, 1, **{condition: None})
    named = f"a run of adamw does not tell its {condition.replace('_', ' ')}"
    with pytest.raises(ProtocolError, match=named):
        compare([untold(competitor("adamw")), untold(competitor("scao"))])


def test_runs_without_any_conditions_are_refused() -> None:
    name, trials, finals = competitor("adamw")
    with pytest.raises(ProtocolError, match="does not tell its initialisation, data order, clipping"):
        compare([(name, trials, [replace(final, conditions={}) for final in finals])])


def all_seeds(*seeds: int) -> Break:
    return lambda parts: competitor(parts[0], seeds=seeds)


BREACHES: dict[str, tuple[Break, str]] = {
    "fewer trials": (
        lambda parts: (parts[0], parts[1][:2], parts[2]),
        "unequal numbers of tuning trials: .*scao 2",
    ),
    "more trials": (
        lambda parts: competitor(parts[0], rates=(5e-4, 1e-3, 2e-3, 4e-3)),
        "unequal numbers of tuning trials: .*scao 4",
    ),
    "no trials": (lambda parts: (parts[0], [], parts[2]), "unequal numbers of tuning trials: .*scao 0"),
    "a trial made again": (
        lambda parts: (parts[0], [*parts[1], replace(parts[1][0], loss=0.5)], parts[2]),
        "scao has a tuning trial twice",
    ),
    "trials on several seeds": (changed("trials", 0, seed=2), r"different tuning seeds .*scao \{1: 2, 2: 1\}"),
    "trials on another seed": (
        lambda parts: (parts[0], [replace(trial, seed=2) for trial in parts[1]], parts[2]),
        r"different tuning seeds .*scao \{2: 3\}",
    ),
    "tuned on a final seed": (
        lambda parts: (parts[0], [replace(trial, seed=43) for trial in parts[1]], parts[2]),
        "scao was tuned on seed 43, which its final runs use",
    ),
    "trials that all diverged": (
        lambda parts: (parts[0], [replace(trial, loss=math.nan) for trial in parts[1]], parts[2]),
        "none of the 3 trials of scao ended with a finite loss",
    ),
    "best at the smallest rate": (
        lambda parts: competitor(parts[0], rates=(2e-3, 4e-3, 8e-3)),
        "the best learning rate of scao, 0.002, is the smallest or the largest tried",
    ),
    "best at the largest rate": (
        lambda parts: competitor(parts[0], rates=(5e-4, 1e-3, 2e-3)),
        "the best learning rate of scao, 0.002, is the smallest or the largest tried",
    ),
    "finals at another rate": (
        lambda parts: competitor(parts[0], lr=4e-3),
        "scao has final runs at another setting than its best trial's",
    ),
    "one final at another setting": (
        changed("finals", 1, setting={"lr": 2e-3, "betas": [0.9, 0.99]}),
        "scao has final runs at another setting than its best trial's",
    ),
    "no finals": (lambda parts: (parts[0], parts[1], []), "scao has no final runs"),
    "a seed is missing": (all_seeds(42, 43), r"different seeds: .*scao \[42, 43\]"),
    "another seed": (all_seeds(42, 43, 45), r"different seeds: .*scao \[42, 43, 45\]"),
    "a seed more": (all_seeds(42, 43, 44, 45), r"different seeds: .*scao \[42, 43, 44, 45\]"),
    "a seed twice": (all_seeds(42, 43, 44, 44), r"(different seeds: .*scao|scao has a seed twice: )"),
    "a trial of another": (changed("trials", 0, arm="adamw"), "scao is given a run of adamw"),
    "a final of another": (changed("finals", 0, arm="adamw"), "scao is given a run of adamw"),
    "the name of another": (
        lambda parts: competitor("adamw"),
        "two competitors have the same name",
    ),
}


@pytest.mark.parametrize(("breaks", "message"), BREACHES.values(), ids=BREACHES)
def test_a_breach_is_refused_by_name(breaks: Break, message: str) -> None:
    assert_refused(breaks, message)


def test_all_competitors_may_not_share_a_seed_twice() -> None:
    with pytest.raises(ProtocolError, match=r"adamw has a seed twice: \[42, 42\]"):
        compare([competitor(arm, seeds=(42, 42)) for arm in ("adamw", "scao")])


def test_untuned_final_runs_have_one_setting() -> None:
    finals = [run("adamw", 1e-3, 42), run("adamw", 2e-3, 43)]
    with pytest.raises(ProtocolError, match="the final runs of adamw have different settings"):
        compare([("adamw", [], finals)])


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ProtocolError, match="there is nothing to compare"):
        compare([])


def test_settings_are_compared_as_they_are_written_down() -> None:
    name, trials, finals = competitor("scao")
    tuples = [replace(final, setting={"betas": (0.9, 0.95), "lr": 2e-3}) for final in finals]
    assert compare([(name, trials, tuples)]).seeds == made.SEEDS


def confirmed(arm: str, losses: Mapping[float, Sequence[float]], finals_at: float) -> Parts:
    """Searched on seed 1, its two best settings confirmed on seeds 2 and 3: the losses of each rate, seed by seed."""
    trials = [run(arm, rate, loss=values[0]) for rate, values in losses.items()]
    for place, seed in enumerate((2, 3), 1):
        trials += [run(arm, rate, seed, loss=values[place]) for rate, values in losses.items() if len(values) > 1]
    return arm, trials, [run(arm, finals_at, seed) for seed in made.SEEDS]


LUCKY_ON_THE_FIRST_SEED = {5e-4: [4.0], 1e-3: [1.0, 3.0, 3.0], 2e-3: [1.5, 1.5, 1.5], 4e-3: [4.0]}


def test_the_lowest_mean_over_the_tuning_seeds_is_chosen() -> None:
    comparison = compare([confirmed(arm, LUCKY_ON_THE_FIRST_SEED, finals_at=2e-3) for arm in ("adamw", "scao")])
    assert comparison.entries["scao"].chosen["lr"] == 2e-3
    assert [run.seed for run in comparison.entries["scao"].searched] == [1, 1, 1, 1]


def test_a_setting_that_was_not_confirmed_cannot_win() -> None:
    losses = {**LUCKY_ON_THE_FIRST_SEED, 2e-3: [1.5, 4.0, 4.0], 4e-3: [1.6], 8e-3: [4.0]}
    assert compare([confirmed("scao", losses, finals_at=1e-3)]).entries["scao"].chosen["lr"] == 1e-3
    with pytest.raises(ProtocolError, match="final runs at another setting than its best trial's"):
        compare([confirmed("scao", losses, finals_at=4e-3)])


def test_confirming_more_settings_than_the_others_is_refused() -> None:
    greedy = {**LUCKY_ON_THE_FIRST_SEED, 5e-4: [4.0, 1.0, 1.0]}
    with pytest.raises(ProtocolError, match="unequal numbers of tuning trials: adamw 8, scao 10"):
        compare([confirmed("adamw", LUCKY_ON_THE_FIRST_SEED, 2e-3), confirmed("scao", greedy, 2e-3)])


def test_confirming_other_settings_on_each_seed_is_refused() -> None:
    arm, trials, finals = confirmed("scao", LUCKY_ON_THE_FIRST_SEED, 2e-3)
    swapped = [
        replace(trial, setting=trials[0].setting) if trial.seed == 3 and trial.loss == 3.0 else trial
        for trial in trials
    ]
    with pytest.raises(ProtocolError, match="on tuning seed 3, scao has trials of others than its best settings"):
        compare([(arm, swapped, finals)])


def test_confirming_others_than_the_best_settings_is_refused() -> None:
    picked = {**LUCKY_ON_THE_FIRST_SEED, 4e-3: [1.2]}
    with pytest.raises(ProtocolError, match="on tuning seed 2, scao has trials of others than its best settings"):
        compare([confirmed("scao", picked, finals_at=2e-3)])


def test_confirming_on_other_seeds_than_the_others_is_refused() -> None:
    arm, trials, finals = confirmed("scao", LUCKY_ON_THE_FIRST_SEED, 2e-3)
    elsewhere = [replace(trial, seed=9) if trial.seed == 3 else trial for trial in trials]
    with pytest.raises(ProtocolError, match=r"different tuning seeds .*scao \{1: 4, 2: 2, 9: 2\}"):
        compare([confirmed("adamw", LUCKY_ON_THE_FIRST_SEED, 2e-3), (arm, elsewhere, finals)])


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_setting_that_diverges_on_one_tuning_seed_is_not_chosen(loss: float) -> None:
    losses = {5e-4: [loss], 1e-3: [1.0, loss, 1.0], 2e-3: [1.5, 1.5, 1.5], 4e-3: [4.0]}
    assert compare([confirmed("scao", losses, finals_at=2e-3)]).entries["scao"].chosen["lr"] == 2e-3
