"""The page and the figures of a run."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from finetune.results import made

from scao_hf.finetune.results import figures
from scao_hf.finetune.results.folder import open_run
from scao_hf.finetune.results.history import read_history
from scao_hf.finetune.results.memory_use import memory_bars, memory_caption, memory_table
from scao_hf.finetune.results.report import write_report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """The page of a finished run, and all files of its report."""
    files = write_report(made.write_run(tmp_path_factory.mktemp("runs") / "run"))
    return files[0].read_text(encoding="utf-8"), files


def test_the_page_comes_with_every_figure_as_png_and_svg(written: tuple[str, list[Path]]) -> None:
    _, (page, *drawn) = written
    assert page.name == "report.html"
    assert sorted(path.name for path in drawn) == sorted(
        f"{name}.{suffix}" for name in ("losses", "stability", "ranks", "memory") for suffix in ("png", "svg")
    )
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_the_page_loads_nothing_from_anywhere(written: tuple[str, list[Path]]) -> None:
    source, _ = written
    assert not re.findall(r"<(script|link|iframe|object|base|img)\b", source)
    targets = re.findall(r'\b(?:src|href|xlink:href)="([^"]*)"', source)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert re.findall(r"url\((?!#)", source) == []
    assert "@import" not in source


def test_the_page_tells_settings_results_samples_versions_and_how_to_load(written: tuple[str, list[Path]]) -> None:
    source, files = written
    text = " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", source, flags=re.S)).split())
    for told in (
        "held-out loss 1.500 from 3.000",
        "perplexity 4.48 from 20.09",
        "steps 40 of 40, 0.5 s each",
        "What &lt;light&gt; is this?",
        "before training 12 * 2 = 24",
        "I pray you, speak no more.",
        "Base model org/base-model",
        "61,440 of 1,071,360 parameters",
        "Its options k_max 16",
        "0.002, cosine after 4 steps of warm-up",
        "Adam phase 10 steps",
        "torch 2.6.0",
        f"AutoPeftModelForCausalLM.from_pretrained(&#34;{files[0].parent.parent / 'adapter'}&#34;)",
        "8 preconditioned tensors",
        "planned measured weights 3.8 MiB 3.8 MiB gradients 240.0 KiB 240.0 KiB optimizer 2.5 MiB 2.5 MiB "
        "activations 95.4 MiB - rest - 374.9 MiB all 101.9 MiB 381.5 MiB",
        "lr_scheduler_type: cosine",
    ):
        assert told in text


def test_no_two_elements_of_the_page_have_one_id(written: tuple[str, list[Path]]) -> None:
    ids = re.findall(r'\bid="([^"]*)"', written[0])
    assert ids
    assert len(ids) == len(set(ids))


def test_a_run_that_failed_is_drawn_with_its_error_and_without_a_result(tmp_path: Path) -> None:
    error = {"code": "diverged.loss", "message": "the loss became nan in step 12 of 40", "hint": "lower the rate"}
    metrics = [event for event in made.events() if event["step"] < 12]
    run = made.write_run(tmp_path / "run", {"status": "failed", "report": None, "error": error}, metrics, weights=None)
    page, *_ = write_report(run)
    source = page.read_text(encoding="utf-8")
    assert "the loss became nan in step 12 of 40 (lower the rate)" in source
    assert "How to use it" not in source
    assert "Sample" not in source


def test_a_run_that_measured_nothing_has_a_page_without_figures(tmp_path: Path) -> None:
    run = made.write_run(
        tmp_path / "run", {"status": "running", "report": None, "memory": None, "memory_plan": None}, [], weights=None
    )
    assert [path.name for path in write_report(run)] == ["report.html"]


def test_a_report_is_drawn_again_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run", metrics=[])
    write_report(run)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in made.events()))
    page, *_ = write_report(open_run(run.path))
    assert "1.500" in page.read_text(encoding="utf-8")


# Figures


def lines_of(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def test_losses_are_drawn_against_steps_and_against_seconds(tmp_path: Path) -> None:
    history = read_history(made.write_run(tmp_path / "run").path)
    left, right = (lines_of(axes) for axes in figures.losses(history).axes)
    assert left["held out"] == [(0, 3.0), (20, 2.0), (40, 1.5)]
    assert right["held out"] == [(0.0, 3.0), (10.0, 2.0), (20.0, 1.5)]
    assert left["training, as logged"] == history.losses()
    # The logged loss jumps by 0.4 at every step; what is left of that after smoothing is less.
    smooth = [loss for _, loss in left["training, smoothed"]][5:]
    assert max(abs(after - before) for before, after in itertools.pairwise(smooth)) < 0.25


def test_the_phases_are_shaded_below_learning_rate_and_gradient_norm(tmp_path: Path) -> None:
    history = read_history(made.write_run(tmp_path / "run").path)
    figure = figures.stability(history)
    upper, lower = figure.axes
    for axes in (upper, lower):
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert spans == [(0.0, 10.0), (10.0, 19.0), (19.0, 40.0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Adam", "ramp", "preconditioned"]


def test_a_map_of_ranks_has_a_row_for_each_layer_and_is_empty_where_nothing_was_noted() -> None:
    image = figures.rank_map({"a": {5: 1.0, 10: 2.0}, "b": {10: 3.0}}).axes[0].get_images()[0]
    cells = image.get_array().filled(math.nan).tolist()
    assert cells[0] == [1.0, 2.0]
    assert math.isnan(cells[1][0])
    assert cells[1][1] == 3.0


def test_layers_are_in_the_order_of_their_depth() -> None:
    axes = figures.rank_map({name: {1: 2.0} for name in ("layers.10.b", "lm_head", "layers.2.b", "layers.2.a")}).axes[0]
    drawn = [label.get_text() for label in axes.get_yticklabels()]
    assert drawn == ["layers.2.a", "layers.2.b", "layers.10.b", "lm_head"]


def test_of_many_layers_one_label_stands_for_each_block() -> None:
    layers = [f"layers.{block}.mlp.{name}.lora_{f}" for block in range(12) for name in ("up", "down") for f in "AB"]
    axes = figures.rank_map({layer: {1: 2.0} for layer in layers}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"layers.{block}" for block in range(12)]
    assert list(axes.get_yticks()) == list(range(0, 48, 4))


NOTED = {"weights": 10, "gradients": 2, "optimizer": 4, "peak": 20, "peak_of": "torch's allocator"}
PLAN = {"weights": 10, "gradients": 2, "optimizer": 4, "adamw": 5, "activations": 3, "total": 19}


def test_the_planned_memory_stands_beside_the_measured() -> None:
    bars = memory_bars({"memory": NOTED, "memory_plan": PLAN})
    assert bars == {
        "planned": {"weights": 10.0, "gradients": 2.0, "optimizer": 4.0, "activations": 3.0},
        "measured": {"weights": 10.0, "gradients": 2.0, "optimizer": 4.0, "rest": 4.0},
    }
    assert memory_table(bars) == [
        ("", "planned", "measured"),
        ("weights", "10 B", "10 B"),
        ("gradients", "2 B", "2 B"),
        ("optimizer", "4 B", "4 B"),
        ("activations", "3 B", "-"),
        ("rest", "-", "4 B"),
        ("all", "19 B", "20 B"),
    ]
    drawn = figures.memory(bars).axes[0]
    assert [text.get_text() for text in drawn.texts] == ["0.0 MiB", "0.0 MiB"]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["planned", "measured"]


def test_what_is_not_known_of_the_memory_is_not_drawn() -> None:
    # A run that ended early, a model whose activations cannot be counted, a state that only training tells.
    assert memory_bars({"memory_plan": {**PLAN, "activations": None, "optimizer": None}}) == {
        "planned": {"weights": 10.0, "gradients": 2.0, "optimizer": 5.0}
    }
    assert memory_bars({"memory": {**NOTED, "peak": None}})["measured"].keys() == {"weights", "gradients", "optimizer"}
    assert memory_bars({"memory_plan": None}) == memory_bars({}) == {}
    told = memory_caption({"memory": {**NOTED, "peak": None}, "memory_plan": {**PLAN, "optimizer": None}})
    assert "counts as AdamW's" in told
    assert "The peak was not measured" in told


def test_memory_of_gibibytes_is_drawn_in_gibibytes() -> None:
    axes = figures.memory({"planned": {"weights": 6.0 * 2**30}}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["6.0 GiB"]
    assert axes.get_xlabel() == "GiB"


def test_a_sweep_marks_the_suggested_and_the_lowest_rate() -> None:
    losses = [(1e-4, 3.0), (1e-3, 2.0), (1e-2, 1.5), (1e-1, 4.0)]
    (axes,) = figures.rate_sweep(losses, losses, 1e-3, 1e-2).axes
    drawn = lines_of(axes)
    assert drawn["suggested: 1e-3"] == [(1e-3, 2.0)]
    assert drawn["lowest: 0.01"] == [(1e-2, 1.5)]
