"""The sweep over learning rates: which rates are tried, where it ends, and what is read off its losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from scao_hf import SCAO
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.lr_find import Sweep, check_folder, concluded, find_rate, left, write
from scao_hf.finetune.observer import RunInfo
from scao_hf.finetune.recipes import load_recipe

SWEEP = Sweep(low=1e-6, high=1.0, steps=61)


def info() -> RunInfo:
    return RunInfo(
        recipe="small", output_dir=Path("x"), model="m", dataset="d", dataset_format="text", loss_on="all",
        device="cpu", dtype="float32", optimizer="scao", learning_rate=1.0, train_rows=1, eval_rows=0, rows_per_step=1,
        total_steps=61, epochs=1.0, trainable_parameters=1, total_parameters=1, lr_warmup_steps=0, adam_steps=None,
        funnel={},
    )  # fmt: skip


def bowl(rate: float) -> float:
    """A loss that is flat at 3, falls by one between 1e-4 and 1e-2, fastest at 1e-3, and rises beyond."""
    place = math.log10(rate)
    return 3.0 - 1 / (1 + math.exp(-4 * (place + 3))) + max(0.0, place + 1.5) ** 2


def swept() -> list[tuple[float, float]]:
    return [(SWEEP.rate(step), bowl(SWEEP.rate(step))) for step in range(1, SWEEP.steps + 1)]


def test_rates_grow_in_equal_ratios_from_the_lowest_to_the_highest() -> None:
    assert SWEEP.rate(1) == 1e-6
    assert SWEEP.rate(61) == pytest.approx(1.0)
    assert SWEEP.rate(31) == pytest.approx(1e-3)


def test_the_suggestion_is_where_the_loss_falls_fastest_and_below_the_lowest() -> None:
    found = concluded(info(), SWEEP, swept())
    assert found.suggestion is not None
    # Averaging lags behind by about three of the sixty steps, of which ten are a factor of ten.
    assert 1e-3 <= found.suggestion <= 3e-3
    assert 1e-2 <= found.lowest <= 1e-1
    assert found.suggestion < found.lowest


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    found = concluded(info(), SWEEP, [(SWEEP.rate(step), 2.0 + step) for step in range(1, 30)])
    assert (found.suggestion, found.ended_at) == (None, 29)


def test_a_sweep_that_leaves_at_once_says_where_to_begin() -> None:
    with pytest.raises(FinetuneError) as caught:
        concluded(info(), SWEEP, swept()[:2])
    assert (caught.value.code, caught.value.hint) == ("diverged.loss", "begin lower: --low 1e-08")


def test_a_sweep_ends_where_the_smoothed_loss_is_far_above_its_lowest() -> None:
    fine = [(SWEEP.rate(step), 2.0) for step in range(1, 20)]
    assert not left(fine, SWEEP.steps)
    assert not left([*fine, (1.0, 3.0)], SWEEP.steps)
    assert left([*fine, (1.0, 50.0)], SWEEP.steps)


def test_a_real_sweep_keeps_its_record_alone(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    found = find_rate(recipe, Sweep(low=1e-4, high=10.0, steps=20))
    assert [rate for rate, _ in found.losses][:2] == pytest.approx([1e-4, 1e-4 * 1e5 ** (1 / 19)])
    assert all(math.isfinite(loss) for _, loss in found.losses)
    assert not (recipe_file.parent / "run").exists()
    files = write(found, tmp_path / "sweep")
    assert [file.name for file in files] == ["lr_find.json", "lr_find.svg", "lr_find.png"]
    record = json.loads(files[0].read_text(encoding="utf-8"))
    assert (record["optimizer"], record["ended_at"], len(record["rates"])) == ("scao", found.ended_at, found.ended_at)
    check_folder(tmp_path / "sweep")


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [(["training.max_steps=7"], 7), (["training.max_steps=-1", "training.num_train_epochs=2"], None)],
    ids=["steps", "epochs"],
)
def test_steps_of_a_sweep_are_bounded_as_the_run_s_will_be(
    overrides: list[str], steps: int | None, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(SCAO, "set_total_steps", lambda self, steps: told.append(steps))
    recipe = load_recipe(str(recipe_file), overrides)
    info = find_rate(recipe, Sweep(low=1e-4, high=1e-2, steps=5)).info
    batch, rows = recipe.training["per_device_train_batch_size"], info.train_rows
    assert rows is not None
    assert set(told) == {steps or 2 * math.ceil(rows / batch)}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FinetuneError) as caught:
        check_folder(tmp_path)
    assert caught.value.code == "config.output-exists"
