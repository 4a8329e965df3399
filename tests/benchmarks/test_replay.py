"""Gradient replay: trackers on streams of known covariance, directions of real optimizers, recordings kept."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor

from benchmarks.replay import directions, record, study, trackers
from benchmarks.replay.defaults import BETAS, DEFAULTS, PERIOD, tracked_rank
from benchmarks.replay.directions import (
    ADAMW,
    POLAR,
    REFERENCES,
    SHAMPOO,
    SOAP_EXACT,
    Candidate,
    DenseShampoo,
    DirectionRow,
    PolarFactor,
    Replayed,
    direction_rows,
    measure,
)
from benchmarks.replay.record import Layer, Recording, recording_configuration
from benchmarks.replay.study import FULL, QUICK, Plan, command, replay
from benchmarks.replay.trackers import (
    EXACT,
    TURNED,
    Grid,
    TrackerRow,
    averaged,
    exact_spectra,
    lookahead,
    score,
    tracker_rows,
    turned_bases,
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


def constant(steps: int, sigma: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """One gradient with these singular values, over and over, and its left singular vectors."""
    gradients, left = stationary(1, sigma, columns)
    return gradients.expand(steps, -1, -1).clone(), left


# Trackers


def test_the_momentum_looks_ahead_as_in_the_formula() -> None:
    gradients, beta = noisy(7, 4, 5), 0.8
    momentum = torch.zeros(4, 5, dtype=torch.float64)
    for found, grad in zip(lookahead(gradients, beta), gradients.double(), strict=True):
        momentum = beta * momentum + (1 - beta) * grad
        torch.testing.assert_close(found.double(), beta * momentum + (1 - beta) * grad, rtol=1e-5, atol=1e-7)


def test_the_exact_spectra_recover_a_known_covariance() -> None:
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.5])
    gradients, vectors = stationary(5, sigma, columns=6)
    exact = exact_spectra(gradients)
    for values, found in zip(exact.basis.values, exact.basis.vectors, strict=True):
        torch.testing.assert_close(values.float(), sigma.square())
        for k in (1, 2, 3):
            torch.testing.assert_close(
                reference.projector(found[:, :k]), reference.projector(vectors[:, :k]), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("shape", [(6, 8), (9, 5)])
@pytest.mark.parametrize("period", [1, 4, 10])
def test_the_tracked_subspace_is_the_one_that_scao_keeps(shape: tuple[int, int], period: int) -> None:
    gradients = noisy(13, *shape)
    layer = Layer("layer", MATRIX, gradients)
    candidate = Candidate(
        "scao",
        lambda groups: SCAO(groups, lr=directions.RATE, betas=(0.8, 0.9), k_exact=0, k_max=3, precond_freq=period),
    )
    replayed = Replayed(candidate, gradients.shape[1:], MATRIX)
    bases = turned_bases(lookahead(layer.short_first, 0.8), 3, period)
    for grad, basis in zip(gradients, bases, strict=True):
        replayed.direction(grad)
        kept = replayed.optimizer.state[replayed.parameter]["vectors"]
        torch.testing.assert_close(reference.projector(basis), reference.projector(kept), rtol=0, atol=1e-4)


def test_the_tracked_subspace_finds_the_exact_one_of_a_steady_gradient() -> None:
    gradients, vectors = constant(60, torch.tensor([3.0, 2.5, 2.0, 0.5, 0.3, 0.1]), columns=8)
    basis = turned_bases(lookahead(gradients, 0.9), rank=3, period=10)[-1]
    torch.testing.assert_close(reference.projector(basis), reference.projector(vectors[:, :3]), rtol=0, atol=1e-4)


def test_a_subspace_stays_as_it_is_between_refreshes() -> None:
    bases = turned_bases(noisy(20, 6, 8), rank=2, period=7)
    turned = [step for step in range(2, 21) if not torch.equal(bases[step - 1], bases[step - 2])]
    assert turned == [2, 3, 6, 7, 14]


def rows_of(gradients: Tensor, grid: Grid, name: str = "layer") -> list[TrackerRow]:
    return list(tracker_rows(Layer(name, MATRIX, gradients), grid))


def test_a_subspace_of_full_rank_holds_all_that_k_columns_can_hold() -> None:
    rows = rows_of(noisy(30, 6, 9), Grid(ranks=(6,), periods=(1, 5), betas=(0.9,), burn_in=5))
    assert [row.tracker for row in rows] == [EXACT, TURNED] * 2
    for row in rows:
        assert row.scores == pytest.approx((1, 1, 1, 1, 1, 0), abs=1e-5)


def test_exact_eigenvectors_hold_all_just_after_a_refresh_and_less_later() -> None:
    rows = rows_of(noisy(40, 6, 9), Grid(ranks=(2,), periods=(5,), betas=(0.5,), burn_in=5))
    scores = {row.tracker: row.scores for row in rows}
    assert (scores[EXACT].mass, scores[EXACT].overlap) == pytest.approx((1, 1))
    assert scores[EXACT].used_mass < 1
    assert scores[EXACT].drift > 0
    assert scores[TURNED].mass < 1


def test_scores_of_a_hand_made_basis_follow_from_the_spectrum() -> None:
    # Of energies 9, 4, 1, the third column holds 1 of 14 while the best single one holds 9.
    aheads, vectors = stationary(8, torch.tensor([3.0, 2.0, 1.0]), columns=4)
    bases = [vectors[:, 2:]] * 5 + [vectors[:, 1:2]] * 3
    found = score(bases, 2, [4], exact_spectra(aheads))
    assert found._asdict() == pytest.approx(
        {"mass": 1 / 9, "stale_mass": 1 / 9, "used_mass": 1 / 9, "share": 1 / 14, "overlap": 0, "drift": 1}, abs=1e-5
    )


def test_a_subspace_is_judged_at_its_refresh_at_its_last_step_and_over_those_between() -> None:
    # Energies of the two rows by step; a basis of the first row from a refresh at step 2, used in steps 3 to 5.
    first, second = [1.0, 4.0, 4.0, 2.0, 1.0, 9.0], [1.0, 1.0, 1.0, 2.0, 4.0, 1.0]
    aheads = torch.zeros(6, 2, 2)
    aheads[:, 0, 0], aheads[:, 1, 1] = torch.tensor(first).sqrt(), torch.tensor(second).sqrt()
    found = score([torch.eye(2)[:, :1]] * 6, 3, [2], exact_spectra(aheads))
    masses, shares = (1.0, 1.0, 1 / 4), (4 / 5, 1 / 2, 1 / 5)
    assert found[:4] == pytest.approx((1, 1 / 4, sum(masses) / 3, sum(shares) / 3))


def test_intervals_begin_where_every_period_refreshes_and_end_in_the_window() -> None:
    assert list(Grid(periods=(1, 5, 10, 20), burn_in=50).starts(120)) == [60, 80, 100]
    with pytest.raises(ValueError, match=r"window must be at least 80 for this grid, got 79"):
        Grid(periods=(1, 5, 10, 20), burn_in=50).starts(79)


def test_only_the_short_side_of_what_scao_whitens_is_tracked() -> None:
    grid = Grid((2, 6), (5,), (0.9,), 5)
    for shape, side in (((4, 9), "left"), ((9, 4), "right")):
        rows = rows_of(noisy(20, *shape), grid)
        assert {(row.side, row.rank) for row in rows} == {(side, 2)}  # six columns do not fit into a side of four
    assert not list(tracker_rows(Layer("tokens", {"kind": "embedding"}, noisy(20, 9, 4)), grid))


def test_the_mean_of_trackers_is_over_layers() -> None:
    grid = Grid((2,), (5,), (0.9,), 5)
    rows = [*rows_of(noisy(20, 6, 8), grid, "one"), *rows_of(noisy(20, 8, 6, seed=1), grid, "other")]
    first, second = (row.scores.share for row in rows if row.tracker == EXACT)
    mean = next(row for row in averaged(rows) if row.tracker == EXACT)
    assert mean.scores.share == pytest.approx((first + second) / 2)


# Directions


def compared(gradients: Tensor, *more: Candidate) -> dict[str, DirectionRow]:
    references = [each for each in directions.candidates(()) if each.name in REFERENCES]
    layer = Layer("layer", MATRIX, gradients)
    return {row.optimizer: row for row in direction_rows(layer, [*references, *more], burn_in=40)}


def test_scao_with_every_column_is_the_polar_factor_of_a_steady_square_gradient() -> None:
    gradients, _ = constant(60, torch.tensor([3.0, 2.0, 1.0, 0.5]), columns=4)
    common = {"lr": directions.RATE, "betas": BETAS, "weight_decay": 0.0}
    rows = compared(gradients, Candidate("full", lambda groups: SCAO(groups, **common)))
    assert rows["full"].measures.cosine_polar > 0.999
    assert rows["full"].measures.effective_rank > 0.999
    assert rows[ADAMW].measures.cosine_polar < 0.99


def test_every_reference_agrees_with_itself() -> None:
    rows = compared(noisy(50, 6, 8))
    own = [rows[name].measures[place] for place, name in enumerate((POLAR, SOAP_EXACT, SHAMPOO, ADAMW))]
    assert own == pytest.approx([1, 1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_the_polar_factor_is_that_of_the_momentum_looking_ahead(shape: tuple[int, int]) -> None:
    gradients, beta = noisy(7, *shape), 0.9
    replayed = Replayed(
        Candidate("polar", lambda groups: PolarFactor(groups, directions.RATE, beta)), gradients.shape[1:], MATRIX
    )
    found = [replayed.direction(grad) for grad in gradients][-1].double()
    momentum = torch.zeros(shape, dtype=torch.float64)
    for grad in gradients.double():
        momentum = beta * momentum + (1 - beta) * grad
    ahead = beta * momentum + (1 - beta) * gradients[-1].double()
    if shape[0] <= shape[1]:
        expected = reference.matrix_power(ahead @ ahead.T, -0.5) @ ahead
    else:
        expected = ahead @ reference.matrix_power(ahead.T @ ahead, -0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_scao_is_replayed_as_it_comes_but_for_what_a_candidate_says() -> None:
    among = [each for each in directions.candidates((4, 8), (5, PERIOD)) if each.name == "SCAO"]
    told = {"default": DEFAULTS["k_max"], "full": directions.EVERY_COLUMN}
    for each in among:
        options = each.build([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}]).defaults
        assert options["precond_freq"] == each.period
        assert options["k_max"] == (told[each.rank] if each.rank in told else int(each.rank))
        assert options["block_rows"] == (
            DEFAULTS["block_rows"] if each.block_rows == directions.DEFAULT else int(each.block_rows)
        )
        spoken = ("lr", "weight_decay", "tau", "precond_freq", "k_max", "k_exact", "block_rows")
        assert {name: value for name, value in options.items() if DEFAULTS[name] != value}.keys() <= set(spoken)
    described = [(each.rank, each.block_rows, each.period) for each in among]
    assert ("default", "default", PERIOD) in described
    assert len(set(described)) == len(described)


def test_a_direction_is_what_the_optimizer_subtracts_at_a_learning_rate_of_one() -> None:
    replayed = Replayed(
        Candidate("sgd", lambda groups: torch.optim.SGD(groups, lr=directions.RATE)), torch.Size((2, 3)), MATRIX
    )
    for grad in noisy(3, 2, 3):
        torch.testing.assert_close(replayed.direction(grad), grad)


def test_no_bound_on_a_step_shortens_a_replayed_direction() -> None:
    grad = noisy(1, 8, 8)[0]
    candidate = next(each for each in directions.candidates(()) if each.name == "SCAO")
    replayed, shorter = (Replayed(candidate, grad.shape, MATRIX) for _ in range(2))
    shorter.optimizer.param_groups[0]["lr"] = directions.RATE / 128
    torch.testing.assert_close(replayed.direction(grad), 128 * shorter.direction(grad))


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
        candidate = Candidate("shampoo", lambda groups: DenseShampoo(groups, directions.RATE, beta, rho))
        replayed = Replayed(candidate, gradients.shape[1:], {**MATRIX, "sides": sides})
        found = [replayed.direction(grad) for grad in gradients][-1]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_orthogonal_direction_is_flat_and_a_rank_one_direction_is_not() -> None:
    flat = orthogonal(4, torch.Generator().manual_seed(0))
    spike = torch.zeros(4, 4)
    spike[0, 0] = 2.0
    of_flat, of_spike = (measure(each, (each, each, each, -each)) for each in (flat, spike))
    assert (of_flat.effective_rank, of_flat.sigma_10, of_flat.rms) == pytest.approx((1, 1, 0.5), abs=1e-5)
    assert (of_spike.effective_rank, of_spike.sigma_90, of_spike.rms) == pytest.approx((0.25, 0.7, 0.5), abs=1e-5)
    assert (of_spike.cosine_polar, of_spike.cosine_adamw) == pytest.approx((1, -1))


def test_refreshes_are_timed_apart_from_other_steps() -> None:
    replayed = Replayed(Candidate("soap", lambda groups: SOAP(groups, lr=1.0), period=2), torch.Size((2, 2)), MATRIX)
    replayed.seconds = [9.0, 9.0, 1e-3, 5e-3, 1e-3, 7e-3, 1e-3]
    cost = replayed.cost(burn_in=2)
    assert (cost.step_ms, cost.refresh_ms) == pytest.approx((1.0, 6.0))


def test_the_rank_that_scao_tracks_is_read_off_a_step_of_it() -> None:
    side = DEFAULTS["k_exact"]
    assert tracked_rank((side, 2 * side), MATRIX) == tracked_rank((2 * side, side), MATRIX) == side
    assert 0 < tracked_rank((2 * side, 4 * side), MATRIX) < 2 * side
    assert tracked_rank((8, 6), {"kind": "embedding"}) == 0


def test_the_grids_hold_the_defaults_of_scao() -> None:
    for plan in (FULL, QUICK):
        assert DEFAULTS["precond_freq"] in plan.grid.periods
        assert DEFAULTS["betas"][0] in plan.grid.betas
    assert DEFAULTS["block_rows"] in directions.BLOCK_ROWS


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
    assert (up.side, up.short_first.shape) == ("right", (3, 32, 128))
    assert (tokens.treatment, tokens.side) == ({"kind": "embedding"}, "right")


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
    grid = Grid((8,), (5, 10), (0.8, 0.9), burn_in=10)
    plan = Plan(20, 20, ("blocks.0.projection", "tokens"), "tiny", grid=grid)
    out = tmp_path / "replay"
    told: list[str] = []
    findings = replay(machine, plan, out, command(plan, FULL, local=True), told.append)
    names = {path.name for path in out.iterdir()}
    assert {"trackers.csv", "directions.csv", "summary.md", "captured-mass.png", "beta-by-period.svg"} <= names
    with (out / "trackers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # One layer and the mean; two periods, two betas, two trackers, the rank of the grid and SCAO's own.
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    assert {row["rank"] for row in rows} == {"8", "32"}
    assert (findings.rank, findings.ranks) == (32, {"blocks.0.projection": 32})
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert "python -m benchmarks replay --data-dir DATA --steps 20 --window 20 --size tiny" in text
    assert str(tmp_path) not in text
    assert "trained on test.txt and the first half of valid.txt" in text
    assert "| `blocks.0.projection`, left |" in text
    assert "SCAO and Muon take AdamW's step for tokens." in text
    assert "Means are over blocks.0.projection." in text


def test_the_page_says_what_was_measured(machine: Machine, tmp_path: Path) -> None:
    plan = Plan(20, 20, ("blocks.0.projection",), "tiny", grid=Grid((8,), (5, 10), (0.9,), burn_in=10))
    findings = replay(machine, plan, tmp_path / "replay", "", lambda _: None)
    text = (tmp_path / "replay" / "summary.md").read_text(encoding="utf-8")
    with (tmp_path / "replay" / "directions.csv").open(encoding="utf-8") as file:
        means = [row for row in csv.DictReader(file) if row["layer"] == "mean" and row["optimizer"] == "SCAO"]
    by_rank = {row["rank"]: row["cosine_polar"] for row in means if row["block_rows"] == "default"}
    for rank in ("8", "full"):
        assert f"{float(by_rank[rank]):.2f} at {rank}" in text
    ours = findings.scores()
    assert f"SCAO's subspace against the exact one** (k 32, refreshed every {PERIOD} steps" in text
    assert f"just before the next, {ours.stale_mass:.3f}; the exact leading" in text


def test_a_window_too_short_for_the_grid_is_refused_before_anything_is_trained(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(study, "record")
    with pytest.raises(ValueError, match="window must be at least"):
        replay(machine, Plan(steps=30, window=20, size="tiny"), tmp_path / "replay", "", print)


def test_layers_of_which_scao_whitens_none_are_refused_before_anything_is_trained(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(study, "record")
    with pytest.raises(ValueError, match="layers must name one that SCAO whitens, got tokens, positions, where it is"):
        replay(machine, Plan(layers=("tokens", "positions"), size="tiny"), tmp_path / "replay", "", print)


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
