"""What the optimizers report of their curvature, and the loggers that carry it elsewhere."""

from __future__ import annotations

import copy
import io
import json
import sys
import types
from typing import Any

import pytest
import torch
from optim.siblings import SIBLINGS, Make, differences, parameters, train
from problems import random_frame, random_matrix
from torch import Tensor, nn

from scao_hf.optim.diagnostics import LayerDiagnostics, mass_share, summarize
from scao_hf.optim.kronecker import KroneckerOptimizer
from scao_hf.optim.loggers import ConsoleLogger, TensorBoardLogger, WandbLogger
from scao_hf.optim.published import PublishedSCAO
from scao_hf.optim.scao import SCAO
from scao_hf.optim.soap import SOAP

every_optimizer = pytest.mark.parametrize("make", SIBLINGS.values(), ids=SIBLINGS.keys())
KEYS = {
    "phase", "blend", "rank_mean", "rank_max", "mass_kept", "curvature_norm", "basis_drift", "state_bytes",
    "preconditioned_fraction", "failures",
}  # fmt: skip


def after(make: Any, grads: list[Tensor], **settings: Any) -> KroneckerOptimizer:
    """An optimizer of one parameter after given gradients."""
    param = nn.Parameter(torch.zeros(grads[0].shape))
    optimizer: KroneckerOptimizer = make([param], **settings)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return optimizer


# ------------------------------------------------------------------------------------------------ the report as such


@every_optimizer
def test_the_report_has_the_same_finite_numbers_from_before_the_first_step_on(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    for step in range(1, 15):
        report = optimizer.diagnostics()
        assert set(report) == KEYS
        assert all(type(value) is float for value in report.values())
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert 0 <= report["blend"] <= 1
        assert 0 <= report["mass_kept"] <= 1
        assert 0 <= report["basis_drift"] <= 1
        train(optimizer, params, [step])


@every_optimizer
def test_before_the_first_step_there_is_nothing_to_report(make: Make) -> None:
    optimizer = make(parameters())
    assert set(optimizer.diagnostics().values()) == {0.0}
    assert optimizer.layer_diagnostics() == []


@every_optimizer
def test_reading_the_report_changes_nothing(make: Make) -> None:
    params, others = parameters(), parameters()
    watched, unwatched = make(params), make(others)
    for step in range(1, 15):
        train(watched, params, [step])
        train(unwatched, others, [step])
        before = copy.deepcopy(watched)
        watched.diagnostics()
        watched.layer_diagnostics()
        assert differences(watched, before) == []
    assert differences(watched, unwatched) == []


@every_optimizer
def test_the_report_survives_a_checkpoint(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, range(1, 12))
    resumed = make(parameters())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.diagnostics() == optimizer.diagnostics()


@every_optimizer
def test_state_bytes_are_those_of_all_tensors_in_the_state(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, [1])
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert optimizer.diagnostics()["state_bytes"] == sum(t.numel() * t.element_size() for t in tensors)


@every_optimizer
def test_state_bytes_are_predicted_before_the_first_step_even_on_the_meta_device(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    hyperparameters = dict(optimizer.defaults)
    train(optimizer, params, range(1, 3))
    planned = [nn.Parameter(torch.empty_like(param, device="meta")) for param in params]
    assert type(optimizer).state_bytes(planned, **hyperparameters) == optimizer.diagnostics()["state_bytes"]


def test_state_bytes_of_a_module_count_its_trainable_parameters() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    module[1].requires_grad_(False)
    expected = SCAO.state_bytes([module[0].weight, module[0].bias])
    assert SCAO.state_bytes(module) == expected
    assert SCAO.state_bytes(module[0], sides="none") == 8 * (30 + 5)


@every_optimizer
def test_the_preconditioned_fraction_counts_elements_of_matrices(make: Make) -> None:
    params = parameters([(6, 5), (10,), (4, 3, 2, 2)])
    optimizer = make(params)
    train(optimizer, params, [1])
    assert optimizer.diagnostics()["preconditioned_fraction"] == pytest.approx((30 + 48) / (30 + 10 + 48))


@every_optimizer
def test_layers_are_reported_one_by_one_with_names_or_places(make: Make) -> None:
    params = parameters([(6, 5), (5,), (9, 4)])
    optimizer = make(params)
    train(optimizer, params, range(1, 8))
    layers = optimizer.layer_diagnostics()
    assert [(layer.name, layer.numel) for layer in layers] == [("parameter 0", 30), ("parameter 2", 36)]
    # SCAO whitens one side of a matrix, the others have a basis for both.
    assert {len(layer.ranks) for layer in layers} == {1 if isinstance(optimizer, SCAO) else 2}
    named = make(list(zip(["a", "b", "c"], params, strict=True)))
    named.load_state_dict(optimizer.state_dict())
    assert [layer.name for layer in named.layer_diagnostics()] == ["a", "c"]


# ------------------------------------------------------------------------------------------------ what the numbers mean


@pytest.mark.parametrize("cls", [SCAO, PublishedSCAO])
def test_the_phase_is_adam_then_the_ramp_then_preconditioned(cls: Any) -> None:
    params = parameters([(6, 5)])
    optimizer = cls(params, warmup_steps=4, blend_steps=4, min_precond_updates=1, precond_freq=2, k_min=1)
    reports = []
    for step in range(1, 11):
        train(optimizer, params, [step])
        reports.append(optimizer.diagnostics())
    assert [report["blend"] for report in reports] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [report["phase"] for report in reports] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("cls", "settings", "adam_steps"),
    [
        (SCAO, {"warmup_steps": 0, "min_precond_updates": 0}, 0),
        (SCAO, {"warmup_steps": 7, "min_precond_updates": 0}, 7),
        (SCAO, {"warmup_steps": 3, "min_precond_updates": 5}, 5),
        (PublishedSCAO, {"warmup_steps": 4, "min_precond_updates": 1, "precond_freq": 2}, 4),
        (PublishedSCAO, {"warmup_steps": 0, "min_precond_updates": 3, "stats_freq": 2, "precond_freq": 2}, 5),
        (PublishedSCAO, {"warmup_steps": 0, "min_precond_updates": 1, "precond_freq": 7}, 6),
        (SOAP, {"adam_warmup_steps": 0}, 1),
        (SOAP, {"adam_warmup_steps": 9, "precondition_warmup_steps": 4}, 3),
    ],
)
def test_the_first_step_that_differs_from_adam_is_the_one_after_the_announced_phase(
    cls: Any, settings: dict[str, Any], adam_steps: int
) -> None:
    common = {"lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.95)}
    if cls is not SOAP:
        settings = {**settings, "blend_steps": 0, "k_min": 1}
    params, plain = parameters([(6, 5)]), parameters([(6, 5)])
    # SCAO's second moment is of rank one: in its first phase it is what it would be if that never ended.
    adam = SCAO(plain, **common, warmup_steps=100) if cls is SCAO else torch.optim.AdamW(plain, **common)
    optimizer = cls(params, **common, **settings)
    assert optimizer.adam_steps(optimizer.param_groups[0]) == adam_steps
    for step in range(1, adam_steps + 2):
        (moved,), (expected,) = train(optimizer, params, [step]), train(adam, plain, [step])
        assert torch.allclose(moved, expected, atol=1e-5) == (step <= adam_steps)


def test_soap_is_preconditioned_when_its_adam_steps_are_over() -> None:
    params = parameters([(6, 5)])
    optimizer = SOAP(params, adam_warmup_steps=3)
    phases = []
    for step in range(1, 6):
        train(optimizer, params, [step])
        phases.append(optimizer.diagnostics()["phase"])
    assert phases == [0, 0, 2, 2, 2]


def test_ranks_are_averaged_over_sides_and_layers() -> None:
    params = parameters([(6, 5), (9, 4), (5,)])
    optimizer = SOAP(params)
    train(optimizer, params, [1])
    report = optimizer.diagnostics()
    assert report["rank_mean"] == (6 + 5 + 9 + 4) / 4
    assert report["rank_max"] == 9
    assert [layer.ranks for layer in optimizer.layer_diagnostics()] == [(6, 5), (9, 4)]


def test_the_rank_of_scao_is_that_of_the_short_side_averaged_over_blocks() -> None:
    params = parameters([(6, 5), (9, 4), (5,)])
    optimizer = SCAO(params)
    train(optimizer, params, [1])
    assert optimizer.diagnostics()["rank_mean"] == (5 + 4) / 2
    assert [layer.ranks for layer in optimizer.layer_diagnostics()] == [(5,), (4,)]
    spike = torch.outer(random_matrix(12, seed=1), random_matrix(16, seed=2))
    flat = torch.cat([spike, random_frame(dim=16, rank=12, seed=3).mT])
    settings = {"k_exact": 0, "k_max": 4, "k_min": 2, "epsilon_sparse": 0.5, "max_precond_dim": 12}
    # Blocks of 12 rows and 8 columns: those with the spike need 1 and take 2, k_min, those of even rows what they need.
    grads = [flat + 1e-3 * random_matrix(24, 16, seed=10 + i) for i in range(9)]
    cut = after(SCAO, grads, precond_freq=3, **settings)
    ranks = next(iter(cut.state.values()))["rank"]
    assert ranks[:2].tolist() == [2, 2]
    assert cut.diagnostics()["rank_mean"] == pytest.approx(float(ranks.double().mean()))


def test_the_rank_reported_is_the_active_one() -> None:
    spike = torch.outer(random_matrix(24, seed=1), random_matrix(16, seed=2))
    grads = [spike + 1e-3 * random_matrix(24, 16, seed=10 + i) for i in range(9)]
    optimizer = after(SCAO, grads, warmup_steps=2, precond_freq=3, k_exact=0, k_max=6, k_min=1)
    assert optimizer.diagnostics()["rank_mean"] == 1


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SCAO, {"warmup_steps": 2, "precond_freq": 2}),
        (PublishedSCAO, {"warmup_steps": 2, "precond_freq": 2, "min_precond_updates": 1, "epsilon_sparse": 0.0}),
        (SOAP, {}),
    ],
    ids=["scao", "published", "soap"],
)
def test_a_whole_basis_keeps_all_the_mass(make: Any, settings: dict[str, Any]) -> None:
    grads = [random_matrix(6, 5, seed=step) for step in range(8)]
    assert after(make, grads, **settings).diagnostics()["mass_kept"] == pytest.approx(1.0, abs=1e-4)


def test_the_mass_kept_is_the_share_of_the_active_columns() -> None:
    # Singular values 3, 2, 1: eigenvalues 9, 4, 1 of 14, on either side; two columns are tracked.
    left, right = random_frame(dim=9, rank=3, seed=1), random_frame(dim=7, rank=3, seed=2)
    grad = (left * torch.tensor([3.0, 2.0, 1.0])) @ right.mT
    optimizer = after(SCAO, [grad] * 60, warmup_steps=2, precond_freq=2, k_exact=0, k_max=2, k_min=2)
    assert optimizer.diagnostics()["mass_kept"] == pytest.approx(13 / 14, abs=1e-4)
    published = after(
        PublishedSCAO, [grad] * 60, warmup_steps=2, precond_freq=2, min_precond_updates=1, k_max=2, k_min=2, rho=0.5
    )
    # Damping adds 1e-4 of the mean eigenvalue to each.
    assert published.diagnostics()["mass_kept"] == pytest.approx(13 / 14, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "settings", "expected"),
    [
        (SCAO, {"warmup_steps": 2, "precond_freq": 2}, 14 / 5),
        (SCAO, {"warmup_steps": 2, "precond_freq": 2, "sides": "left"}, 14 / 6),
        (SCAO, {"warmup_steps": 2, "precond_freq": 2, "sides": "right"}, 14 / 5),
        (
            PublishedSCAO,
            {"warmup_steps": 2, "precond_freq": 2, "min_precond_updates": 1, "rho": 0.5},
            (14 / 5 + 14 / 6) / 2,
        ),
        (SOAP, {}, (14 / 5 + 14 / 6) / 2),
    ],
    ids=["scao", "scao-left", "scao-right", "published", "soap"],
)
def test_the_curvature_norm_is_a_mean_eigenvalue(make: Any, settings: dict[str, Any], expected: float) -> None:
    left, right = random_frame(dim=6, rank=3, seed=1), random_frame(dim=5, rank=3, seed=2)
    grad = (left * torch.tensor([3.0, 2.0, 1.0])) @ right.mT
    report = after(make, [grad] * 100, **settings).diagnostics()
    assert report["curvature_norm"] == pytest.approx(expected, rel=1e-3)
    tenfold = after(make, [10 * grad] * 100, **settings).diagnostics()
    assert tenfold["curvature_norm"] == pytest.approx(100 * expected, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SCAO, {"warmup_steps": 1, "precond_freq": 2}),
        (SOAP, {"precondition_frequency": 2}),
        (PublishedSCAO, {"warmup_steps": 1, "precond_freq": 2, "min_precond_updates": 1, "rho": 0.9}),
    ],
    ids=["scao", "soap", "published"],
)
def test_the_drift_goes_to_zero_for_a_constant_gradient_and_not_for_noise(make: Any, settings: dict[str, Any]) -> None:
    frames = random_frame(dim=5, rank=5, seed=1), random_frame(dim=5, rank=5, seed=2)
    steady = (frames[0] * torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0])) @ frames[1].mT
    assert after(make, [steady] * 60, **settings).diagnostics()["basis_drift"] < 1e-4
    noise = [random_matrix(5, 5, seed=step) for step in range(60)]
    assert after(make, noise, **settings).diagnostics()["basis_drift"] > 1e-4


@pytest.mark.parametrize(
    ("make", "settings", "poisoned", "kept"),
    [
        (SOAP, {"precondition_frequency": 4}, "factor_0", "basis_0"),
        (SOAP, {"precondition_frequency": 4, "use_eigh": True}, "factor_0", "basis_0"),
        (
            PublishedSCAO,
            {"warmup_steps": 1, "precond_freq": 4, "min_precond_updates": 1, "k_min": 1},
            "left_factor",
            "left_vectors",
        ),
    ],
    ids=["soap-qr", "soap-eigh", "published"],
)
def test_a_failed_factorisation_is_counted_and_keeps_the_last_good_basis(
    make: Any, settings: dict[str, Any], poisoned: str, kept: str
) -> None:
    params = parameters([(6, 5), (6, 5)])
    optimizer = make(params, **settings)
    train(optimizer, params, range(1, 8))
    assert optimizer.diagnostics()["failures"] == 0
    state = optimizer.state[params[0]]
    before = state[kept].clone()
    state[poisoned].fill_(float("nan"))
    train(optimizer, params, [8])
    assert torch.equal(state[kept], before)
    assert optimizer.diagnostics()["failures"] == 1
    assert [layer.failures for layer in optimizer.layer_diagnostics()] == [1, 0]
    assert all(torch.isfinite(p).all() for p in params)


def test_blocks_of_a_weight_are_averaged() -> None:
    grad = torch.zeros(8, 4)
    grad[:4] = 1e-3 * random_matrix(4, 4, seed=3)
    grad[4:] = torch.outer(random_matrix(4, seed=1), random_matrix(4, seed=2))
    optimizer = after(SCAO, [grad] * 9, betas=(0.9, 0.95), precond_freq=3, max_precond_dim=4)
    layer = optimizer.layer_diagnostics()[0]
    assert layer.ranks == (4,)
    # After nine gradients the momentum that looks ahead holds 1 − 0.9^10 of them.
    norms = [(1 - 0.9**10) ** 2 * float(block.square().sum()) for block in (grad[:4], grad[4:])]
    assert layer.curvature_norm == pytest.approx(sum(norms) / 2 / 4, rel=1e-4)


def test_a_mass_share_counts_the_first_values_of_each_matrix() -> None:
    values = torch.tensor([[4.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    share = mass_share(values, torch.tensor([2, 0]), torch.tensor([8.0, 10.0]))
    assert share == pytest.approx((6 / 8 + 0) / 2)
    assert mass_share(values, torch.tensor([1, 1]), torch.zeros(2)) <= 1


def test_a_summary_weighs_layers_equally_and_adds_failures() -> None:
    layers = [
        LayerDiagnostics(1.0, (4.0, 2.0), 0.9, 2.0, 0.1, 1, "a", 30),
        LayerDiagnostics(0.0, (3.0,), 0.7, 4.0, 0.3, 2, "b", 10),
    ]
    report = summarize(layers, 80, 1234)
    assert report["phase"] == 1
    assert report["blend"] == 0.5
    assert report["rank_mean"] == pytest.approx(3.0)
    assert report["rank_max"] == 4
    assert report["mass_kept"] == pytest.approx(0.8)
    assert report["curvature_norm"] == pytest.approx(3.0)
    assert report["basis_drift"] == pytest.approx(0.2)
    assert report["failures"] == 3
    assert report["preconditioned_fraction"] == pytest.approx(0.5)
    assert report["state_bytes"] == 1234


# ------------------------------------------------------------------------------------------------ callbacks and loggers


@every_optimizer
def test_callbacks_are_called_in_order_after_every_step(make: Make) -> None:
    params = parameters([(6, 5)])
    optimizer = make(params)
    calls: list[tuple[str, int, float]] = []

    def note(name: str) -> Any:
        def callback(seen: KroneckerOptimizer, step: int) -> None:
            assert seen is optimizer
            calls.append((name, step, float(params[0].detach()[0, 0])))

        return callback

    optimizer.add_callback(note("first"))
    optimizer.add_callback(note("second"))
    expected = []
    for step in range(1, 4):
        train(optimizer, params, [step])
        value = float(params[0].detach()[0, 0])
        expected += [("first", step, value), ("second", step, value)]
    assert calls == expected


def _logged(logger: Any, steps: int = 7) -> SCAO:
    params = parameters([(6, 5), (5,)])
    optimizer = SCAO(params, warmup_steps=2, precond_freq=2)
    optimizer.add_callback(logger)
    train(optimizer, params, range(1, steps + 1))
    return optimizer


def test_the_console_shows_a_line_every_few_steps() -> None:
    stream = io.StringIO()
    optimizer = _logged(ConsoleLogger(log_every=3, stream=stream))
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 3", "step 6"]
    assert "preconditioned, blend 100%, rank 5.0 (max 5)" in lines[1]
    mebibytes = optimizer.diagnostics()["state_bytes"] / 2**20
    assert lines[1].endswith(f"state {mebibytes:.1f} MiB")


def test_the_console_is_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    _logged(ConsoleLogger(log_every=2), steps=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("step 2: ")


def test_the_console_tells_of_failed_factorisations() -> None:
    stream = io.StringIO()
    report = dict.fromkeys(KEYS, 0.0) | {"failures": 2.0}
    ConsoleLogger(stream=stream).write(1, report)
    ConsoleLogger(stream=stream).write(2, report | {"failures": 0.0})
    first, second = stream.getvalue().splitlines()
    assert first.endswith("2 failed factorisations")
    assert "failed" not in second


def test_tensorboard_gets_every_number_at_its_step() -> None:
    class Writer:
        def __init__(self) -> None:
            self.points: dict[tuple[str, int], float] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.points[name, step] = value

    writer = Writer()
    optimizer = _logged(TensorBoardLogger(writer, log_every=7))
    assert writer.points == {(f"scao/{name}", 7): value for name, value in optimizer.diagnostics().items()}


class _Run:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))


def test_wandb_gets_every_number_at_its_step() -> None:
    run = _Run()
    optimizer = _logged(WandbLogger(run, log_every=7))
    assert run.logged == [({f"scao/{name}": value for name, value in optimizer.diagnostics().items()}, 7)]


def test_wandb_logs_to_the_current_run_and_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = types.ModuleType("wandb")
    wandb.run = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(RuntimeError, match=r"wandb\.init\(\)"):
        _logged(WandbLogger(log_every=1), steps=1)
    wandb.run = _Run()  # type: ignore[attr-defined]
    _logged(WandbLogger(log_every=1), steps=2)
    assert [step for _, step in wandb.run.logged] == [1, 2]


@pytest.mark.parametrize(
    "logger", [ConsoleLogger, lambda **kw: TensorBoardLogger(None, **kw), lambda **kw: WandbLogger(None, **kw)]
)
@pytest.mark.parametrize("log_every", [0, -1, 2.5, "10"])
def test_an_interval_that_is_no_count_is_refused_by_name(logger: Any, log_every: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="log_every"):
        logger(log_every=log_every)


@pytest.mark.parametrize("logger", [ConsoleLogger(100), TensorBoardLogger(None, 100), WandbLogger(None, 100)])
def test_between_its_lines_a_logger_reads_nothing(logger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: KroneckerOptimizer) -> dict[str, float]:
        raise AssertionError("diagnostics were read")

    monkeypatch.setattr(KroneckerOptimizer, "diagnostics", refuse)
    _logged(logger)
