"""Learning rates over LoRAs: which runs are made, and what their losses say about one rate for all of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from invented_runs import ENVIRONMENT, run

from benchmarks import transfer
from benchmarks.suite import STUDIES, Machine
from benchmarks.transfer import OPTIMIZERS, VARIATIONS, Variation, chosen_variations, config_of, curves_in, rates, write
from scao_hf.finetune.comparison.store import RunStore

MACHINE = Machine(None)
STARTS = {optimizer: rates(optimizer)[4] for optimizer in OPTIMIZERS}
RANKS = chosen_variations(["rank"])
Loss = Callable[[Variation, str, float], float]
"""From variation, optimizer and the learning rate in steps of the grid from the start."""


def filled(path: Path, loss: Loss, variations: Sequence[Variation] = RANKS, seeds: Sequence[int] = (1,)) -> RunStore:
    store = RunStore(path / "runs.jsonl")
    for variation in variations:
        for optimizer in OPTIMIZERS:
            for rate in rates(optimizer):
                octaves = math.log2(rate / STARTS[optimizer])
                for seed in seeds:
                    made = run(optimizer, seed, loss(variation, optimizer, octaves), environment=ENVIRONMENT)
                    store.add(config_of(MACHINE, variation, optimizer, rate, seed), made)
    return store


def slopes(centre: Callable[[Variation, str], float] = lambda variation, optimizer: 0.0, slope: float = 0.1) -> Loss:
    """Losses that rise by `slope` with every factor of two from the best rate."""
    return lambda variation, optimizer, octaves: 2.0 + slope * abs(octaves - centre(variation, optimizer))


def verdict(store: RunStore, optimizer: str = "scao", part: str = "rank") -> transfer.Verdict:
    curves = curves_in(MACHINE, store, chosen_variations([part]), [1])
    return transfer.verdict_on([curve for curve in curves if curve.optimizer == optimizer])


def test_the_rates_are_a_factor_of_two_apart_from_a_sixteenth_to_eight_times_the_start() -> None:
    for optimizer in OPTIMIZERS:
        base = transfer.start(optimizer)["lr"]
        assert rates(optimizer) == pytest.approx([base * 2.0**power for power in range(-4, 4)])


def test_a_variation_at_the_defaults_is_the_run_of_a_study() -> None:
    study = STUDIES["lora-shakespeare-r16"]
    usual = [variation.value for variation in VARIATIONS if variation.options == study.options]
    assert usual == ["r = 16", "α = 2r", "default"]


def test_every_other_variation_is_another_run() -> None:
    distinct = {str(variation.options) for variation in VARIATIONS}
    # The usual one is in three parts, PiSSA in two.
    assert len(distinct) == len(VARIATIONS) - 3 == 10


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown part 'ranks'; there are rank, alpha, init, imbalance"):
        chosen_variations(["rank", "ranks"])


def test_all_is_made_once_and_only_the_parts_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task:
        def prepare(self) -> None: ...

        def evaluation(self) -> None: ...

    made: list[str] = []
    monkeypatch.setattr(transfer, "make_task", lambda machine, description: Task())
    monkeypatch.setattr(transfer, "make_runs", lambda configs, *rest: made.extend(map(str, configs)))
    store = RunStore(tmp_path / "runs.jsonl")
    transfer.make_all(MACHINE, store, chosen_variations(["alpha"]), [1, 2], 1, print)
    assert len(made) == len(set(made)) == 3 * 3 * 8 * 2
    made.clear()
    transfer.make_all(MACHINE, store, VARIATIONS, [1], 1, print)
    assert len(made) == len(set(made)) == 10 * 3 * 8


def test_the_range_is_interpolated_to_the_tolerance(tmp_path: Path) -> None:
    basin = verdict(filled(tmp_path, slopes())).narrowest
    assert not basin.is_open
    assert basin.factor == pytest.approx(2 ** (2 * 0.02 / 0.1))


def test_a_range_beyond_the_rates_that_were_run_is_open(tmp_path: Path) -> None:
    basin = verdict(filled(tmp_path, slopes(slope=0.001))).narrowest
    assert (basin.is_open, basin.factor) == (True, pytest.approx(2**7))
    assert str(basin) == "≥ 128.0 ×"


def test_a_rate_that_diverges_ends_the_range_at_the_last_that_does_not(tmp_path: Path) -> None:
    def loss(variation: Variation, optimizer: str, octaves: float) -> float:
        return math.inf if octaves > 0.5 else 2.0 - 0.001 * octaves

    basin = verdict(filled(tmp_path, loss)).narrowest
    assert basin.high == pytest.approx(STARTS["scao"])


def test_a_rate_beyond_one_that_costs_too_much_does_not_count(tmp_path: Path) -> None:
    def loss(variation: Variation, optimizer: str, octaves: float) -> float:
        return 3.0 if round(octaves) == 1 else 2.0 + 0.001 * abs(octaves)

    assert verdict(filled(tmp_path, loss)).narrowest.high < 2 * STARTS["scao"]


def test_the_best_rate_moves_and_one_for_all_is_between(tmp_path: Path) -> None:
    def centre(variation: Variation, optimizer: str) -> float:
        moved = {"r = 4": 1.0, "r = 128": -1.0}.get(variation.value, 0.0)
        return moved if optimizer == "adamw" else 0.0

    store = filled(tmp_path, slopes(centre))
    told = verdict(store, "adamw")
    assert told.moves == pytest.approx(4.0)
    assert told.rate == STARTS["adamw"]
    assert told.cost == pytest.approx(0.1)
    assert (verdict(store, "scao").moves, verdict(store, "scao").cost) == (1.0, 0.0)


def test_a_variation_that_lacks_a_run_is_left_out(tmp_path: Path) -> None:
    store = filled(tmp_path, slopes(), RANKS[:2])
    assert [curve.variation for curve in curves_in(MACHINE, store, RANKS, [1])] == [RANKS[0]] * 3 + [RANKS[1]] * 3
    assert curves_in(MACHINE, store, RANKS, [1, 2]) == []
    with pytest.raises(ValueError, match="python -m benchmarks transfer makes them"):
        write(MACHINE, store, VARIATIONS, [2], tmp_path)


def test_the_page_the_table_and_the_figure_tell_every_run(tmp_path: Path) -> None:
    seeds = (1, 2)
    store = filled(tmp_path, slopes(), VARIATIONS, seeds)
    paths = write(MACHINE, store, VARIATIONS, seeds, tmp_path)
    assert {path.name for path in paths} == {"summary.md", "losses.csv", "loss_by_rate.svg", "loss_by_rate.png"}
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert page.count("| SCAO | 1.3 × | 1 × | 0.01 | 0.000 |") == 1 + len(transfer.PARTS)
    assert page.count("| **2.000 ± 0.000** |") == len(VARIATIONS) * len(OPTIMIZERS)
    with (tmp_path / "losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(VARIATIONS) * len(OPTIMIZERS) * 8 * len(seeds)
    assert rows[0] == {
        "part": "rank", "value": "r = 4", "optimizer": "adamw", "lr": "0.000625", "seed": "1", "loss": "2.4",
    }  # fmt: skip


def test_where_all_rates_diverge_the_page_says_so(tmp_path: Path) -> None:
    store = filled(tmp_path, lambda variation, optimizer, octaves: math.inf if optimizer == "scao" else 2.0)
    write(MACHINE, store, VARIATIONS, [1], tmp_path)
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| SCAO | 1.0 × | 1 × | 0.000625 | diverges |" in page
    assert "| LoRA+ | ≥ 128.0 × | 1 × | 0.0003125 | 0.000 |" in page
