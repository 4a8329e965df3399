from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import suite
from benchmarks.__main__ import app
from benchmarks.optimizers import ADAPTERS
from benchmarks.published import source
from benchmarks.published.arms import ARMS, SCALES, Arm
from benchmarks.published.claims import CLAIMS, Claim, chosen_claims, judge, needed_arms
from benchmarks.published.measures import (
    Arithmetic,
    Evidence,
    OverSeeds,
    SpeedUp,
    Throughput,
    area_difference,
    closure,
    gap,
    gap_after,
    memory_ratio,
)
from benchmarks.published.report import ROOT, block, write_report
from benchmarks.published.rules import (
    CONTROL,
    DIRECTION,
    INCOMPARABLE,
    NOT,
    PENDING,
    REPRODUCED,
    Effect,
    Incomparable,
    NoEffect,
    Within,
)
from benchmarks.published.runs import evidence_in, initial_factor, make_all, make_run, runs_in
from benchmarks.reporting.report import block_of, link_between
from benchmarks.suite import Machine, make_task
from benchmarks.tasks import models
from scao_hf.finetune.comparison.protocol import ProtocolError
from scao_hf.finetune.comparison.runs import Run
from scao_hf.finetune.comparison.statistics import Estimate
from scao_hf.finetune.comparison.store import RunStore
from scao_hf.optim import published
from scao_hf.optim.published import PublishedSCAO

SEEDS = (42, 43, 44)
ENVIRONMENT = {"python": "3.11", "torch": "2.0", "scao-hf": "0", "processor": "abacus", "cores": 2, "threads": 1}
CONDITIONS = {"initialisation": "i", "data_order": "d", "evaluation_set": "e", "token_budget": 9, "steps": 1}


def made(loss: float, curve: tuple[tuple[int, float], ...] = (), seed: int = 42, **measures: Any) -> Run:
    measures = {"environment": ENVIRONMENT, "state_bytes": 8, "parameters": 1, "train_losses": [loss]} | measures
    conditions = {**CONDITIONS, "data": "local"}
    return Run(arm="a", setting={}, seed=seed, conditions=conditions, loss=loss, curve=curve, measures=measures)


def evidence(times: dict[str, list[float]] | None = None, **runs: Run) -> Evidence:
    """Every arm's run is the same for all seeds; arms are written with "_" for "/"."""
    by_arm = {name.replace("_", "/"): dict.fromkeys(SEEDS, run) for name, run in runs.items()}
    return Evidence({**{name: {} for name in ARMS}, **by_arm}, SEEDS, times or {}, {})


def claim(id: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.id == id)


# What was published


@pytest.mark.parametrize(("scale", "count"), [("500", 837_888), ("5m", 2_732_928), ("10m", 4_856_320)])
def test_the_models_have_the_published_numbers_of_parameters(scale: str, count: int) -> None:
    shape = models.SHAPES[SCALES[scale]["size"]]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in models.ByteGPT(shape).parameters()) == count
    assert source.parameters(shape) == count


def test_factors_and_eigenpairs_are_counted_as_by_hand() -> None:
    shape = models.Shape(width=2, layers=1, heads=1, context=3, vocabulary=5)
    # tokens (5, 2), positions (3, 2), query-key-value (6, 2), projection (2, 2), up (8, 2), down (2, 8); norms 6 × 2
    squares = (25 + 4) + (9 + 4) + (36 + 4) + (4 + 4) + (64 + 4) + (4 + 64)
    sides_and_one = (6 + 3) + (4 + 3) + (7 + 3) + (3 + 3) + (9 + 3) + (3 + 9)
    elements = 10 + 6 + 12 + 4 + 16 + 16 + 12
    assert source.factor_bytes(shape) == 4 * squares
    assert source.factor_bytes(shape, int8=True) == squares + 6 * 8
    assert source.scao_bytes(shape, rank=3) == 16 * elements + 4 * squares + 4 * 3 * sides_and_one + 4 * 12


@pytest.mark.parametrize("row", source.MEMORY.values(), ids=source.MEMORY)
def test_dense_factors_account_for_the_published_gigabytes_to_three_decimals(row: source.Memory) -> None:
    shape = models.SHAPES[row.shape]
    assert round(source.adamw_bytes(shape) / source.GIBI, 3) == row.adamw
    assert round(source.scao_bytes(shape, row.rank) / source.GIBI, 3) == row.scao
    if row.scao_int8 is not None:
        assert round(source.scao_bytes(shape, row.rank, int8=True) / source.GIBI, 3) == row.scao_int8


def test_the_curves_end_at_the_perplexities_of_the_tables() -> None:
    ends = {name: (round(curve[-1].adamw, 2), round(curve[-1].scao, 2)) for name, curve in source.CURVES.items()}
    assert ends == {"500": (11.85, 12.03), "200": (14.60, 15.19), "5m": (26.49, 23.94), "10m": (19.01, 18.09)}


def test_the_seconds_of_the_curve_are_those_of_the_target_table() -> None:
    steps = [point.step for point in source.CURVES["500"]]
    adamw, scao = ({round(seconds[i]) for seconds in source.SECONDS_500} for i in (0, 1))
    assert steps == list(range(25, 501, 25))
    # 894.74 and 1433.65 are quoted cut off.
    assert all({target.adamw_seconds, target.adamw_seconds + 1} & adamw for target in source.TARGETS)
    assert all(target.scao_seconds in scao | {956} | {957} for target in source.TARGETS)


# Arms


def test_preconditioning_begins_where_the_diagnostics_say() -> None:
    torch.manual_seed(0)
    for arm in (replace(ARMS[name], options={"steps": 60}) for name in ("5m/scao", "ablation/A5", "200/scao")):
        own = {name: value for name, value in arm.setting.items() if name not in ("auxiliary", "lr", "betas")}
        weight = torch.nn.Parameter(torch.randn(6, 4))
        optimizer = PublishedSCAO([weight], **own)
        begun = []
        for step in range(1, 61):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            begun += [step] if optimizer.layer_diagnostics()[0].blend > 0 else []
        assert arm.preconditioned_from() == begun[0]


@pytest.mark.parametrize(
    ("arm", "step"),
    [("500/scao", 101), ("200/scao", 41), ("ablation/A5", 10), ("5m/scao", 20), ("125m/scao", None)],
)
def test_preconditioning_begins_as_the_published_options_have_it(arm: str, step: int | None) -> None:
    assert ARMS[arm].preconditioned_from() == step


@pytest.mark.parametrize(
    ("ablation", "changed"),
    [
        ("A1", {"initial_factor"}),
        ("A2", {"clip"}),
        ("A3", {"setting.lr", "task.schedule"}),
        ("A4", {"setting.rho", "setting.precond_freq", "setting.stats_freq"}),
        ("A5", {"setting.warmup_steps", "setting.min_precond_updates"}),
        ("A6", {"setting.blend_steps"}),
        ("A7", {"setting.k_max"}),
    ],
)
def test_an_ablation_changes_nothing_but_what_it_names(ablation: str, changed: set[str]) -> None:
    full, ablated = (flat(ARMS[name].config(Machine(None), 42)) for name in ("200/scao", f"ablation/{ablation}"))
    assert {key for key in full.keys() | ablated.keys() if full.get(key) != ablated.get(key)} == changed


def flat(config: dict[str, Any]) -> dict[str, Any]:
    nested = {
        f"{key}.{name}": value[name] for key, value in config.items() if isinstance(value, dict) for name in value
    }
    return nested | {key: value for key, value in config.items() if not isinstance(value, dict)}


@pytest.mark.parametrize("name", ["500/adamw", "500/scao", "5m/scao"])
def test_learning_rates_start_at_a_tenth_and_decay_towards_a_tenth_of_adamws(name: str) -> None:
    arm = ARMS[name]
    task = make_task(Machine(None), {"name": "lm", **arm.options})
    rates = [arm.setting["lr"] * task.schedule.factor(step, arm.steps) for step in range(arm.steps)]
    warmup = arm.steps // 5
    assert rates[0] == pytest.approx(0.1 * arm.setting["lr"])
    assert rates[warmup - 1] == pytest.approx(arm.setting["lr"])
    progress = (arm.steps - 1 - warmup) / (arm.steps - warmup)
    last = 3e-5 + (arm.setting["lr"] - 3e-5) * 0.5 * (1 + math.cos(math.pi * progress))
    assert rates[-1] == pytest.approx(last)


def test_a_setting_overrides_what_the_adapter_fixes() -> None:
    model = models.byte_gpt(models.Shape(8, 1, 2, 8, 16), seed=0)
    adapter = ADAPTERS["scao_published"]
    group = adapter.build(model, adapter.start).param_groups[0]
    assert (group["warmup_steps"], group["precond_freq"], group["k_max"]) == (100, 10, 64)
    group = adapter.build(model, {**adapter.start, "warmup_steps": 7, "k_max": 9}).param_groups[0]
    assert (group["warmup_steps"], group["precond_freq"], group["k_max"]) == (7, 10, 9)


# Measures


def test_a_gap_is_the_ratio_of_perplexities() -> None:
    assert gap(made(math.log(11)), made(math.log(10))) == pytest.approx(10.0)
    run, base = made(0, ((25, math.log(8)), (50, 0.0))), made(0, ((25, math.log(10)), (50, 0.0)))
    assert gap_after(25)(run, base) == pytest.approx(-20.0)


def test_closure_is_the_shorter_runs_gap_less_the_longer_runs() -> None:
    shorter, longer = (made(math.log(11)), made(math.log(10))), (made(math.log(6)), made(math.log(5.8)))
    assert closure(*shorter, *longer) == pytest.approx(10.0 - 100 * (6 / 5.8 - 1))


def test_areas_are_mean_training_losses() -> None:
    assert area_difference(made(0, train_losses=[3.0, 2.0, 1.0]), made(0, train_losses=[4.0, 1.0])) == -0.5


def test_memory_counts_parameters_gradients_and_state() -> None:
    run, base = made(0, parameters=10, state_bytes=240), made(0, parameters=10, state_bytes=80)
    assert memory_ratio(run, base) == 2.0


def test_a_speed_up_compares_where_scao_is_with_where_adamw_was() -> None:
    adamw, scao = made(0, ((50, 3.0), (100, 2.0), (150, 1.5))), made(0, ((25, 3.0), (75, 1.0)))
    times = {"500/adamw": [0.1, 0.1], "500/scao": [0.2, 0.4]}
    runs = evidence(times, **{"500_adamw": adamw, "500_scao": scao})
    # SCAO comes down to 2.0 half-way between its points, at step 50, and its steps take three times as long.
    assert SpeedUp(100, in_seconds=False).measured(runs) == Estimate(2.0, 0.0, 0.0, 3)
    assert SpeedUp(100, in_seconds=True).measured(runs) == pytest.approx(Estimate(2 / 3, 0.0, 0.0, 3))
    assert SpeedUp(100, in_seconds=True).measured(runs._replace(step_seconds={})) is None


def test_a_target_that_scao_never_reaches_is_no_speed_up_at_all() -> None:
    runs = evidence(**{"500_adamw": made(0, ((100, 2.0),)), "500_scao": made(0, ((500, 2.1),))})
    assert SpeedUp(100, in_seconds=False).measured(runs) == Estimate(0.0, 0.0, 0.0, 3)


def test_throughput_is_read_block_by_block() -> None:
    times = {"5m/adamw": [0.3, 0.2, 0.1], "5m/scao": [0.2, 0.2, 0.2]}
    measured = Throughput("5m").measured(evidence(times))
    assert measured is not None
    assert measured.mean == pytest.approx((50 + 0 - 50) / 3)
    assert measured.count == 3
    assert Throughput("10m").measured(evidence(times)) is None


def test_nothing_is_read_off_two_seeds_or_where_one_is_missing() -> None:
    whole = evidence(**{"500_adamw": made(1.0)})
    measure = OverSeeds(lambda run: run.loss, ("500/adamw",))
    assert measure.measured(whole) == Estimate(1.0, 0.0, 0.0, 3)
    assert measure.measured(whole._replace(seeds=(42, 43))) is None
    assert measure.measured(whole._replace(seeds=(42, 43, 45))) is None


# Rules


@pytest.mark.parametrize(
    ("published", "mean", "half_width", "word"),
    [
        (10.0, 12.0, 1.0, REPRODUCED),  # within a quarter of it
        (10.0, 13.0, 4.0, REPRODUCED),  # inside the interval
        (10.0, 13.0, 2.0, DIRECTION),
        (10.0, 4.0, 1.0, DIRECTION),
        (10.0, 10.0, 11.0, NOT),  # the interval covers zero
        (10.0, -10.0, 1.0, NOT),
        (-10.0, -9.0, 1.0, REPRODUCED),
        (-10.0, 9.0, 1.0, NOT),
        (10.0, math.inf, math.inf, DIRECTION),
        (-10.0, math.inf, math.inf, NOT),
    ],
)
def test_an_effect_needs_its_direction_and_then_its_size(
    published: float, mean: float, half_width: float, word: str
) -> None:
    assert Effect().judge(published, Estimate(mean, 1.0, half_width, 3)).word == word


@pytest.mark.parametrize(
    ("published", "mean", "word"),
    [(1.8, 1.7, REPRODUCED), (1.8, 1.2, DIRECTION), (1.8, 0.9, NOT), (0.0, 0.0, REPRODUCED)],
)
def test_a_speed_up_is_an_effect_about_one(published: float, mean: float, word: str) -> None:
    assert Effect(neutral=1.0).judge(published, Estimate(mean, 0.0, 0.0, 3)).word == word


def test_a_size_is_judged_by_its_share() -> None:
    assert Within(0.1).judge(2.0, Estimate(2.15, 0.0, 0.0, 3)).word == REPRODUCED
    assert Within(0.1).judge(2.0, Estimate(1.7, 0.0, 0.0, 3)) == (NOT, "-15%")


def test_lossless_means_that_no_seed_shows_a_difference() -> None:
    assert NoEffect(0.005).judge(0.0, Estimate(0.001, 0.001, 0.002, 3)).word == REPRODUCED
    assert NoEffect(0.005).judge(0.0, Estimate(0.0, 0.5, 1.2, 3)).word == NOT


def test_another_text_is_no_evidence() -> None:
    assert Incomparable("other text").judge(10.0, Estimate(10.0, 0.0, 0.0, 3)) == (INCOMPARABLE, "other text")


# Claims


def test_every_arm_serves_a_claim() -> None:
    assert {arm.name for arm in needed_arms(CLAIMS)} == set(ARMS)
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)


def test_arms_are_run_in_their_order_and_once() -> None:
    claims = chosen_claims(["A1", "500/gap*", "A3"])
    names = [arm.name for arm in needed_arms(claims)]
    assert names == ["500/adamw", "500/scao", "500/adamw-1.17", "200/scao", "ablation/A1", "ablation/A3"]


def test_an_unknown_claim_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"no claim fits 'B1'; the claims are 500/adamw, "):
        chosen_claims(["A1", "B1"])


def test_a_claim_without_runs_is_pending_and_a_control_is_not_judged() -> None:
    runs = evidence(**{"500_scao": made(1.0), "500_adamw-1.17": made(1.0)})
    assert judge(claim("500/gap"), runs).verdict.word == PENDING
    assert judge(claim("500/gap-equal-rates"), runs).verdict.word == CONTROL


def test_the_published_gap_is_reproduced_by_runs_that_have_it() -> None:
    scao, adamw = (made(math.log(perplexity)) for perplexity in (12.03, 11.85))
    assert judge(claim("500/gap"), evidence(**{"500_scao": scao, "500_adamw": adamw})).verdict.word == REPRODUCED
    assert judge(claim("500/gap"), evidence(**{"500_scao": adamw, "500_adamw": scao})).verdict.word == NOT


def test_the_int8_saving_is_arithmetic_and_the_reduction_is_none() -> None:
    nothing = evidence()
    saving, reduction = (judge(claim(id), nothing) for id in ("int8/memory", "memory/reduction"))
    assert saving.ours is not None
    assert saving.ours.mean == pytest.approx(100 * (1.577 / 2.490 - 1), abs=0.05)
    assert saving.verdict.word == REPRODUCED
    assert reduction.verdict.word == NOT


# Runs


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Arm]:
    """An arm with its optimizer and schedule, on a model and a run small enough for tests."""
    monkeypatch.setitem(models.SHAPES, "tiny", models.Shape(16, 1, 2, 8))

    def shrunk(name: str) -> Arm:
        arm = ARMS[name]
        size = {"size": "tiny", "steps": 24, "rows": 2, "length": 8, "evaluation_batches": 1, "curve_batches": 1}
        own = {"warmup_steps": 4, "blend_steps": 0} if arm.optimizer == "scao_published" else {}
        return replace(arm, options={**arm.options, **size}, setting={**arm.setting, "lr": 1e-2, **own})

    return shrunk


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    folder = tmp_path / "data" / "wikitext2"
    folder.mkdir(parents=True)
    for part in ("test", "valid"):
        (folder / f"{part}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    return Machine(folder.parent)


def test_factors_start_where_they_are_told_to_and_only_within() -> None:
    def first_factor() -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(2, 3))
        weight.grad = torch.zeros_like(weight)
        optimizer = PublishedSCAO([weight], rho=0.5)
        optimizer.step()
        return optimizer.state[weight]["left_factor"]

    usual = published.INITIAL_FACTOR
    # One update with a gradient of zero leaves rho times the start.
    with initial_factor(0.25):
        torch.testing.assert_close(first_factor(), 0.125 * torch.eye(2))
    torch.testing.assert_close(first_factor(), 0.5 * usual * torch.eye(2))
    with pytest.raises(ZeroDivisionError), initial_factor(0.25):
        1 / 0  # noqa: B018
    assert usual == published.INITIAL_FACTOR


def test_zero_factors_change_the_run_once_preconditioning_begins(tiny: Callable[[str], Arm], machine: Machine) -> None:
    full, ablated = (make_run(machine, tiny(name).config(machine, 42)) for name in ("200/scao", "ablation/A1"))
    differ = [a != b for a, b in zip(full.measures["train_losses"], ablated.measures["train_losses"], strict=True)]
    # Preconditioned from step 20, which shows in the loss of step 21.
    assert tiny("200/scao").preconditioned_from() == 20
    assert not any(differ[:20])
    assert differ[20:] == [True] * 4


def test_scao_is_adamw_until_preconditioning_begins(tiny: Callable[[str], Arm], machine: Machine) -> None:
    scao, adamw = (make_run(machine, tiny(name).config(machine, 42)) for name in ("200/scao", "200/adamw-1.17"))
    pairs = list(zip(scao.measures["train_losses"], adamw.measures["train_losses"], strict=True))
    assert all(ours == pytest.approx(theirs, abs=2e-4) for ours, theirs in pairs[:20])
    assert pairs[-1][0] != pytest.approx(pairs[-1][1], abs=2e-4)


def test_runs_are_made_group_by_group_and_seed_by_seed_and_only_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []

    def train(machine: Machine, config: dict[str, Any]) -> Run:
        trained.append((config["setting"]["lr"], config["seed"]))
        return made(1.0, seed=config["seed"])

    monkeypatch.setattr(suite, "make_run", train)
    arms = [ARMS[name] for name in ("200/adamw", "200/adamw-1.17", "ablation/A3")]
    store = RunStore(tmp_path / "runs.jsonl")
    make_all(machine, store, arms[:1], (42, 43), 1, print)
    make_all(machine, store, arms, (42, 43), 1, print)
    make_all(machine, RunStore(tmp_path / "runs.jsonl"), arms, (42, 43), 1, print)
    assert trained == [(3e-4, 42), (3e-4, 43), (3.51e-4, 42), (3.51e-4, 43), (3e-4, 42), (3e-4, 43)]


def test_an_arm_without_its_package_is_left_out_and_told(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ADAPTERS, "scao_pypi", replace(ADAPTERS["scao_pypi"], package="no_such_package"))
    told: list[str] = []
    make_all(machine, RunStore(tmp_path / "runs.jsonl"), [ARMS["package/200"]], (42,), 1, told.append)
    assert told == ["package/200 is left out: no_such_package is not installed", "0 of 0 runs to be made"]


def stored(path: Path, machine: Machine, run: Run, name: str, **changes: Any) -> RunStore:
    store = RunStore(path)
    store.add({**ARMS[name].config(machine, run.seed), **changes}, run)
    return store


def test_runs_are_found_whatever_made_them_and_the_last_version_counts(tmp_path: Path) -> None:
    path, machine = tmp_path / "runs.jsonl", Machine(Path("elsewhere"), device="cuda")
    stored(path, machine, made(1.0), "500/scao", version="old")
    stored(path, machine, made(3.0, seed=43), "500/scao", version="old")
    store = stored(path, machine, made(2.0), "500/scao", version="new")
    found = runs_in(store, [ARMS["500/scao"], ARMS["500/adamw"]], SEEDS)
    assert {seed: run.loss for seed, run in found["500/scao"].items()} == {42: 2.0}
    assert found["500/adamw"] == {}


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    path, machine = tmp_path / "runs.jsonl", Machine(Path("elsewhere"))
    other = replace(made(1.0), conditions={**CONDITIONS, "data_order": "another"})
    stored(path, machine, made(1.0), "500/scao")
    store = stored(path, machine, other, "500/adamw")
    assert runs_in(store, [ARMS["500/adamw"]], SEEDS)["500/adamw"]
    with pytest.raises(ProtocolError, match="different data order at seed 42: 500/scao and 500/adamw"):
        runs_in(store, [ARMS["500/scao"], ARMS["500/adamw"]], SEEDS)


# The report


PAGE_OF_OLD = "before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE_OF_OLD, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all arms at all seeds: SCAO is 2% behind AdamW, every other arm 10%."""
    folder = tmp_path_factory.mktemp("out") / "published"
    store, behind = RunStore(folder / "runs.jsonl"), {"adamw": 1.0, "scao": 1.02}
    place = {"data": "local", "device": "cpu", "version": "some code"}
    for arm in ARMS.values():
        for seed in SEEDS:
            loss = 2.0 + 0.01 * seed + math.log(behind.get(arm.name.partition("/")[2], 1.1))
            curve = tuple((step, loss + 1 - step / arm.steps) for step in range(0, arm.steps + 1, 5))
            store.add(arm.config_like({**place, "optimizer": arm.optimizer}, seed), made(loss, curve, seed))
    return folder


@pytest.fixture(scope="module")
def reported(invented: Path) -> dict[str, bytes]:
    """The files of a report on them, and the page beside the folder."""
    page = invented.parent / "page.md"
    page.write_text(PAGE_OF_OLD, encoding="utf-8")
    return {path.name: path.read_bytes() for path in write_report(invented, SEEDS, page)}


def test_without_runs_every_claim_is_listed_as_still_to_be_measured(tmp_path: Path, page: Path) -> None:
    list(write_report(tmp_path / "published", SEEDS, page))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    block = block_of(text)
    pending = next(line for line in block.splitlines() if line.startswith(f"| {PENDING} |"))
    judged = [each for each in CLAIMS if each.rule is not None and not isinstance(each.measure, Arithmetic)]
    assert f"| {len(judged)} |" in pending
    assert all(f"`{each.id}`" in pending for each in judged)
    assert all(f"| `{each.id}` |" in block for each in CLAIMS)


def test_the_tables_hold_what_the_runs_say(reported: dict[str, bytes]) -> None:
    rows = {row["id"]: row for row in csv.DictReader(reported["claims.csv"].decode().splitlines())}
    assert float(rows["500/gap"]["ours"]) == pytest.approx(2.0)
    assert rows["500/gap"]["verdict"] == DIRECTION
    assert rows["A1"]["ours"] == f"{100 * (1.1 / 1.02 - 1):.6g}"
    assert rows["A1"]["verdict"] == DIRECTION
    assert rows["500/adamw"]["verdict"] == INCOMPARABLE
    assert rows["500/throughput"]["verdict"] == PENDING
    assert rows["5m/scao"]["preconditioned_from"] == "20"
    assert rows["125m/scao"]["preconditioned_from"] == "never"
    assert [row["id"] for row in json.loads(reported["claims.json"])] == [each.id for each in CLAIMS]
    block = block_of(reported["page.md"].decode())
    assert "| +2.0% ± 0.0 |" in block
    assert "| `package/500` | `scao_pypi` | some code | 500 | as `500/scao` |" in block
    assert "Nothing was timed side by side" in block
    assert reported.keys() >= {"convergence.svg", "ablations.svg"}


def test_a_page_does_not_point_out_of_its_repository(reported: dict[str, bytes]) -> None:
    assert "![" not in reported["page.md"].decode()
    assert "](convergence.svg)" in reported["summary.md"].decode()


def test_the_same_runs_give_the_same_files(invented: Path, reported: dict[str, bytes]) -> None:
    again = {path.name: path.read_bytes() for path in write_report(invented, SEEDS, None)}
    assert again == {name: content for name, content in reported.items() if name != "page.md"}


def test_timing_beside_the_runs_gives_throughput_and_seconds(invented: Path) -> None:
    arms = {"500/adamw": [0.1] * 3, "500/scao": [0.125] * 3}
    blocks = {name: {"step_seconds": times, "optimizer_seconds": times} for name, times in arms.items()}
    (invented / "timing.json").write_text(json.dumps({"environment": ENVIRONMENT, "arms": blocks}))
    try:
        list(write_report(invented, SEEDS, None))
    finally:
        (invented / "timing.json").unlink()
    rows = {row["id"]: row for row in json.loads((invented / "claims.json").read_text())}
    assert rows["500/throughput"]["ours"] == pytest.approx(-20.0)
    assert rows["500/throughput"]["verdict"] == NOT
    in_steps, in_seconds = (rows[f"target/14.10{suffix}"]["ours"] for suffix in ("-in-steps", ""))
    assert in_seconds == pytest.approx(0.8 * in_steps)


def test_the_committed_page_says_what_the_committed_runs_say() -> None:
    page, folder = ROOT / "docs" / "published-claims.md", ROOT / "benchmarks" / "results" / "published"
    evidence = evidence_in(folder, SEEDS)
    expected = block([judge(claim, evidence) for claim in CLAIMS], evidence, f"{link_between(page, folder)}/")
    assert block_of(page.read_text(encoding="utf-8")) == expected


def test_the_command_reports_without_training(tmp_path: Path, page: Path) -> None:
    arguments = ["published", "--report-only", "--out", str(tmp_path), "--page", str(page)]
    finished = CliRunner().invoke(app, arguments)
    assert finished.exit_code == 0, finished.output
    assert str(tmp_path / "published" / "summary.md") in finished.stdout
    assert not (tmp_path / "published" / "runs.jsonl").exists()
