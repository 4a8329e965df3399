"""Gradient replay: trackers on streams of known covariance, directions of real optimizers, recordings kept."""

from __future__ import annotations

import csv
import inspect
import math
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor

from benchmarks.replay import directions, record, study, trackers
from benchmarks.replay.directions import (
    ADAMW,
    SHAMPOO,
    SOAP_EXACT,
    Candidate,
    DenseShampoo,
    DirectionRow,
    Replayed,
    direction_rows,
    measure,
)
from benchmarks.replay.record import Layer, Recording, recording_configuration
from benchmarks.replay.study import FULL, QUICK, Plan, command, replay
from benchmarks.replay.trackers import (
    EXACT,
    SKETCH,
    Grid,
    TrackerRow,
    averaged,
    best_masses,
    exact_averages,
    score,
    sketch_bases,
    tracker_rows,
)
from benchmarks.suite import Machine, make_task
from benchmarks.tasks.models import SHAPES, Shape
from scao_hf import SCAO, SOAP

MATRIX = {"kind": "matrix"}


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q.float()


def stationary(steps: int, sigma: Tensor, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients (steps, d, columns) with G Gᵀ = V diag(σ²) Vᵀ at every step, and V (d, d)."""
    generator = torch.Generator().manual_seed(seed)
    left = orthogonal(len(sigma), generator)
    rights = [orthogonal(columns, generator)[: len(sigma)] for _ in range(steps)]
    return torch.stack([left @ (sigma[:, None] * right) for right in rights]), left


def noisy(steps: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Independent gradients with the spectra 1, 1/2, 1/4 … over both of two fixed bases."""
    generator = torch.Generator().manual_seed(seed)
    left, right = orthogonal(rows, generator), orthogonal(columns, generator)
    noise = torch.randn(steps, rows, columns, generator=generator)
    return left @ (0.5 ** torch.arange(rows)[:, None] * noise * 0.5 ** torch.arange(columns)) @ right.mT


# Trackers


def test_the_exact_average_recovers_a_known_covariance() -> None:
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.5])
    gradients, vectors = stationary(12, sigma, columns=6)
    known = exact_averages(gradients, rho=0.9, moments={12})[12]
    torch.testing.assert_close(known.basis.values / (1 - 0.9**12), sigma.square())
    for k in (1, 2, 3):
        leading = reference.projector(known.basis.vectors[:, :k])
        torch.testing.assert_close(leading, reference.projector(vectors[:, :k]), rtol=0, atol=1e-5)


def test_exact_averages_are_those_of_the_reference() -> None:
    gradients = noisy(9, 5, 7)
    expected, _ = reference.kronecker_factors(list(gradients), beta=0.8)
    torch.testing.assert_close(exact_averages(gradients, 0.8, {9})[9].average.double(), expected, rtol=1e-5, atol=1e-7)


def test_the_sketch_finds_the_exact_span_of_a_stationary_stream() -> None:
    gradients, vectors = stationary(60, torch.tensor([3.0, 2.5, 2.0, 0.5, 0.3, 0.1]), columns=8)
    basis = sketch_bases(gradients, rank=3, rho=0.9, period=10, moments={60})[60]
    torch.testing.assert_close(reference.projector(basis), reference.projector(vectors[:, :3]), rtol=0, atol=1e-3)


def rows_of(gradients: Tensor, grid: Grid, side: str = "left") -> list[TrackerRow]:
    layer = Layer("layer", {"kind": "matrix", "sides": side}, gradients)
    return list(tracker_rows(layer, grid))


def test_a_basis_of_full_rank_holds_all_that_k_columns_can_hold() -> None:
    rows = rows_of(noisy(30, 6, 9), Grid(ranks=(6,), periods=(1, 5), rhos=(0.9,), burn_in=5))
    assert {row.tracker for row in rows} == {EXACT, SKETCH}
    for row in rows:
        assert row.scores == pytest.approx((1, 1, 1, 1, 1, 0), abs=1e-4)


def test_scores_of_a_hand_made_basis_follow_from_the_spectrum() -> None:
    # Of energies 9, 4, 1, the third column holds 1 of 14 while the best single one holds 9.
    gradients, vectors = stationary(8, torch.tensor([3.0, 2.0, 1.0]), columns=4)
    exact = exact_averages(gradients, 0.9, {4, 6})
    bases = {4: vectors[:, 2:], 6: vectors[:, 1:2]}
    found = score(bases, 2, [4], exact, gradients, best_masses(gradients)[:, 0])
    assert found._asdict() == pytest.approx(
        {"mass": 1 / 9, "stale_mass": 1 / 9, "predictive": 1 / 9, "share": 1 / 14, "overlap": 0, "drift": 1}, abs=1e-5
    )


def test_a_basis_is_judged_by_gradients_it_has_not_seen() -> None:
    gradients = torch.zeros(8, 2, 2)
    gradients[:4, 0, 0] = 1.0  # all energy in the first row up to step 4,
    gradients[4:, 1, 1] = 1.0  # then all in the second
    rows = rows_of(gradients, Grid(ranks=(1,), periods=(4,), rhos=(0.9,), burn_in=4))
    exact = next(row.scores for row in rows if row.tracker == EXACT)
    assert (exact.mass, exact.predictive) == pytest.approx((1, 0))
    # The average keeps 0.9⁴ of what the first four steps put there and takes 1 − 0.9⁴ of the second direction.
    kept = (1 - 0.9**4) * 0.9**4
    assert exact.stale_mass == pytest.approx(kept / (1 - 0.9**4))


def test_statistics_at_refreshes_are_those_of_every_step_when_each_refreshes() -> None:
    gradients = noisy(12, 6, 8)
    every = sketch_bases(gradients, 3, 0.9, 1, {12})
    sparse = sketch_bases(gradients, 3, 0.9, 1, {12}, sparse=True)
    torch.testing.assert_close(every, sparse, rtol=0, atol=0)


def test_statistics_at_refreshes_do_not_see_the_gradients_between() -> None:
    gradients = noisy(10, 6, 8)
    changed = gradients.clone()
    changed[7] = noisy(1, 6, 8, seed=5)[0]  # step 8, which refreshes nothing at a period of 5
    for sparse, equal in ((True, True), (False, False)):
        before, after = (sketch_bases(each, 3, 0.9, 5, {10}, sparse=sparse)[10] for each in (gradients, changed))
        assert torch.equal(before, after) is equal


def test_intervals_begin_where_every_period_refreshes_and_end_in_the_window() -> None:
    assert list(Grid(periods=(1, 5, 10, 20), burn_in=50).starts(120)) == [60, 80, 100]
    with pytest.raises(ValueError, match=r"window must be at least 80 for this grid, got 79"):
        Grid(periods=(1, 5, 10, 20), burn_in=50).starts(79)


def test_the_vocabulary_of_an_embedding_is_not_tracked() -> None:
    layer = Layer("tokens", {"kind": "embedding", "sides": "right"}, noisy(20, 9, 4))
    rows = list(tracker_rows(layer, Grid((2, 8), (5,), (0.9,), 5)))
    assert {(row.side, row.rank) for row in rows} == {("right", 2)}  # eight columns do not fit into a side of four


def test_the_mean_of_trackers_is_over_layers_and_sides() -> None:
    grid = Grid((2,), (5,), (0.9,), 5)
    rows = [*rows_of(noisy(20, 6, 8), grid, "left"), *rows_of(noisy(20, 6, 8, seed=1), grid, "right")]
    first, second = (row.scores.share for row in rows if row.tracker == EXACT)
    mean = next(row for row in averaged(rows) if row.tracker == EXACT)
    assert mean.scores.share == pytest.approx((first + second) / 2)


# Directions


def compared(gradients: Tensor, *more: Candidate) -> dict[str, DirectionRow]:
    references = [each for each in directions.candidates(()) if each.name in (ADAMW, SOAP_EXACT, SHAMPOO)]
    layer = Layer("layer", MATRIX, gradients)
    return {row.optimizer: row for row in direction_rows(layer, [*references, *more], burn_in=40)}


def test_scao_with_every_column_goes_where_soap_goes() -> None:
    common = {"lr": 1.0, "betas": directions.BETAS, "weight_decay": 0.0}
    full = Candidate(
        "full", lambda groups: SCAO(groups, **common, precond_freq=1, k_max=4, second_moment="elementwise")
    )
    rows = compared(noisy(60, 4, 4), full)
    assert rows["full"].measures.cosine_soap > 0.98
    assert rows[ADAMW].measures.cosine_soap < 0.9


def test_every_reference_agrees_with_itself() -> None:
    rows = compared(noisy(50, 6, 8))
    own = (
        rows[SOAP_EXACT].measures.cosine_soap,
        rows[SHAMPOO].measures.cosine_shampoo,
        rows[ADAMW].measures.cosine_adamw,
    )
    assert own == pytest.approx((1, 1, 1), abs=1e-6)


def test_a_direction_is_what_the_optimizer_subtracts_at_a_learning_rate_of_one() -> None:
    replayed = Replayed(Candidate("sgd", lambda groups: torch.optim.SGD(groups, lr=1.0)), torch.Size((2, 3)), MATRIX)
    for grad in noisy(3, 2, 3):
        torch.testing.assert_close(replayed.direction(grad), grad)


def test_dense_shampoo_is_the_formula() -> None:
    gradients, beta, rho = noisy(7, 4, 5), 0.9, 0.8
    momentum = torch.zeros(4, 5, dtype=torch.float64)
    for grad in gradients:
        momentum = beta * momentum + (1 - beta) * grad.double()
    left, right = (
        reference.damp(reference.debias(factor, rho, 7), 0.0, 1e-6)
        for factor in reference.kronecker_factors(list(gradients), rho)
    )
    roots = reference.matrix_power(left, -0.25), reference.matrix_power(right, -0.25)
    both = roots[0] @ (momentum / (1 - beta**7)) @ roots[1]
    one = (momentum / (1 - beta**7)) @ reference.matrix_power(right, -0.5)
    for sides, expected in (("auto", both), ("right", one)):
        candidate = Candidate("shampoo", lambda groups: DenseShampoo(groups, 1.0, beta, rho))
        replayed = Replayed(candidate, gradients.shape[1:], {**MATRIX, "sides": sides})
        found = [replayed.direction(grad) for grad in gradients][-1]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_orthogonal_direction_is_flat_and_a_rank_one_direction_is_not() -> None:
    flat = orthogonal(4, torch.Generator().manual_seed(0))
    spike = torch.zeros(4, 4)
    spike[0, 0] = 2.0
    leading = {"left": torch.eye(4)[:, :1], "right": torch.eye(4)[:, :1]}
    of_flat, of_spike = (measure(each, (each, each, -each), leading) for each in (flat, spike))
    assert (of_flat.effective_rank, of_flat.sigma_10, of_flat.rms) == pytest.approx((1, 1, 0.5), abs=1e-5)
    assert (of_spike.effective_rank, of_spike.sigma_90, of_spike.rms) == pytest.approx((0.25, 0.7, 0.5), abs=1e-5)
    assert of_spike.top_share == pytest.approx(1)
    assert (of_spike.cosine_soap, of_spike.cosine_adamw) == pytest.approx((1, -1))


def test_refreshes_are_timed_apart_from_other_steps() -> None:
    replayed = Replayed(Candidate("soap", lambda groups: SOAP(groups, lr=1.0), period=2), torch.Size((2, 2)), MATRIX)
    replayed.seconds = [9.0, 9.0, 1e-3, 5e-3, 1e-3, 7e-3, 1e-3]
    cost = replayed.cost(burn_in=2)
    assert (cost.step_ms, cost.refresh_ms) == pytest.approx((1.0, 6.0))


def test_the_replayed_defaults_are_those_of_scao() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(SCAO).parameters.items()}
    replayed = {"precond_freq": directions.PERIOD, "rho": directions.RHO, "betas": directions.BETAS}
    assert replayed == {name: defaults[name] for name in replayed}
    for plan in (FULL, QUICK):
        assert defaults["precond_freq"] in plan.grid.periods
        assert defaults["rho"] in plan.grid.rhos


# Recordings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """With a small text and a model of width 32, called "tiny"."""
    monkeypatch.setitem(SHAPES, "tiny", Shape(32, 2, 2))
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    for part in ("test", "valid"):
        (folder / f"{part}.txt").write_text("the quick brown fox jumps over the lazy dog; " * 40, encoding="utf-8")
    return Machine(tmp_path, cache=tmp_path / "cache")


def made(machine: Machine, clip: float = 1.0, seed: int = 1) -> Recording:
    config = recording_configuration(machine, "tiny", "adamw", seed, 4, 3, ["blocks.0.up", "tokens"])
    config["task"]["clip"] = clip
    return record.record(machine, config, machine.cache)


def test_a_recording_holds_the_clipped_gradients_of_the_last_steps(machine: Machine) -> None:
    config = recording_configuration(machine, "tiny", "adamw", 1, 1, 1, ["tokens"])
    config["task"]["clip"] = 0.01
    found = record.record(machine, config, machine.cache).layers[0].gradients
    task = make_task(machine, config["task"])
    model = task.model(1)
    model(*next(task.batches(1))).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert norm > 0.01
    torch.testing.assert_close(found, model.tokens.weight.grad[None] * 0.01 / norm, rtol=1e-4, atol=1e-9)


def test_layers_are_recorded_with_their_treatment(machine: Machine) -> None:
    up, tokens = made(machine).layers
    assert (up.name, up.treatment, up.gradients.shape) == ("blocks.0.up", MATRIX, (3, 128, 32))
    assert (tokens.treatment, tokens.sides) == ({"kind": "embedding", "sides": "right"}, ("right",))


def test_a_recording_is_made_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(machine)
    monkeypatch.delattr(record, "train")
    again = made(machine)
    assert again.losses == first.losses
    assert all(torch.equal(a.gradients, b.gradients) for a, b in zip(first.layers, again.layers, strict=True))


@pytest.mark.parametrize("changed", [{"clip": 0.5}, {"seed": 2}])
def test_another_configuration_is_another_recording(machine: Machine, changed: dict[str, float]) -> None:
    first, other = made(machine), made(machine, **changed)
    assert len(list(machine.cache.iterdir())) == 2
    assert other.config != first.config
    assert not torch.equal(other.layers[0].gradients, first.layers[0].gradients)


def test_what_cannot_be_recorded_is_named(machine: Machine) -> None:
    with pytest.raises(ValueError, match=r"no matrix in blocks\.7\.up, norm; the model has tokens, positions, blocks"):
        recording_configuration(machine, "tiny", "adamw", 1, 4, 3, ["blocks.7.up", "tokens", "norm"])
    with pytest.raises(ValueError, match=r"window must be in \[1, 4\], the steps of the run, got 5"):
        recording_configuration(machine, "tiny", "adamw", 1, 4, 5, ["tokens"])
    with pytest.raises(ValueError, match="unknown size 'huge'; there are 1m, "):
        recording_configuration(machine, "huge", "adamw", 1, 4, 3, ["tokens"])
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; there are adamw, "):
        recording_configuration(machine, "tiny", "adam", 1, 4, 3, ["tokens"])
    with pytest.raises(ValueError, match="must follow the common schedule, got 'schedulefree'"):
        recording_configuration(machine, "tiny", "schedulefree", 1, 4, 3, ["tokens"])


# The whole


def test_a_replay_writes_tables_a_page_and_figures(machine: Machine, tmp_path: Path) -> None:
    grid = Grid((32,), (5, 10), (0.95,), burn_in=10)
    plan = Plan(20, 20, ("blocks.0.projection", "tokens"), "tiny", grid=grid)
    out = tmp_path / "replay"
    told: list[str] = []
    replay(machine, plan, out, command(plan, FULL, local=True), told.append)
    names = {path.name for path in out.iterdir()}
    assert {"trackers.csv", "directions.csv", "summary.md", "captured-mass.png", "rho-by-period.svg"} <= names
    with (out / "trackers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Three sides and the mean; for two periods an exact basis and two sketches.
    assert len(rows) == 4 * 2 * 3
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "python -m benchmarks replay --data-dir DATA --steps 20 --window 20 --size tiny" in text
    assert str(tmp_path) not in text
    assert "trained on test.txt and the first half of valid.txt" in text
    assert "| `blocks.0.projection`, left |" in text


def test_a_window_too_short_for_the_grid_is_refused_before_anything_is_trained(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(study, "record")
    with pytest.raises(ValueError, match="window must be at least"):
        replay(machine, Plan(steps=30, window=20, size="tiny"), tmp_path / "replay", "", print)


def test_the_command_of_a_plan_says_what_was_changed() -> None:
    assert command(QUICK, QUICK, local=False) == "python -m benchmarks replay --quick --out benchmarks/results"
    changed = Plan(seed=3, layers=("tokens",))
    assert (
        command(changed, FULL, local=True)
        == "python -m benchmarks replay --data-dir DATA --seed 3 --layer tokens --out benchmarks/results"
    )


def test_overlap_of_bases_does_not_depend_on_the_order_of_columns() -> None:
    basis = orthogonal(5, torch.Generator().manual_seed(0))
    assert trackers.overlap(basis[:, :2], basis[:, [1, 0]]) == pytest.approx(1)
    assert trackers.overlap(basis[:, :2], basis[:, 2:4]) == pytest.approx(0, abs=1e-6)
    assert trackers.overlap(basis[:, :2], basis[:, 1:3]) == pytest.approx(0.5, abs=1e-6)
