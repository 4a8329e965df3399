"""The conclusions of a comparison, and the page, the table and the document that tell them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from finetune.comparison.outcomes import outcome

from scao_hf.finetune.comparison import figures
from scao_hf.finetune.comparison.report import COLUMNS, document, html, runs_csv, table, write

LOSSES = {"scao": [1.9, 2.0, 2.1], "adamw_torch": [2.0, 2.1, 2.2]}


# Conclusions


def test_the_target_is_where_adamw_ends_and_else_where_the_worst_does() -> None:
    soap = {"scao": LOSSES["scao"], "soap": [2.4, 2.5, 2.6]}
    assert outcome(LOSSES).target == (pytest.approx(2.1), "mean final loss of adamw_torch")
    assert outcome(soap).target == (pytest.approx(2.5), "mean final loss of soap")
    assert outcome(LOSSES, target=2.05).target == (2.05, "--target-loss")


def test_a_target_is_not_taken_from_runs_that_diverged() -> None:
    assert outcome({"scao": [1.9, 2.0], "adamw_torch": [2.0, math.inf]}).target.source == "mean final loss of scao"
    assert outcome({"scao": [math.inf], "soap": [math.inf]}).target.loss is None


def test_time_to_target_is_read_off_the_mean_curve() -> None:
    """The mean curve of SCAO falls from 3 at step 10 to 2 at step 20, and passes 2.1 after nine tenths of that."""
    scao, adamw = outcome(LOSSES).standings
    assert scao.steps_to_target == pytest.approx(19.0)
    assert scao.seconds_to_target == pytest.approx(19.0 * 0.5)
    assert (adamw.steps_to_target, adamw.seconds_to_target) == (20.0, 5.0)


def test_a_loss_that_is_never_reached_takes_no_time() -> None:
    scao, _ = outcome(LOSSES, target=1.0).standings
    assert (scao.steps_to_target, scao.seconds_to_target) == (None, None)


def test_differences_are_told_of_the_first_optimizer_and_paired_by_seed() -> None:
    made = outcome({**LOSSES, "soap": [2.0, 1.9, 2.1]})
    assert [(each.ours, each.theirs) for each in made.differences] == [("scao", "adamw_torch"), ("scao", "soap")]
    against_adamw, against_soap = made.differences
    # Every pair differs by -0.1: no spread. Against SOAP they differ by -0.1, 0.1 and 0: a mean of 0.
    assert against_adamw.estimate.mean == pytest.approx(-0.1)
    assert against_adamw.sentence.startswith("scao is lower than adamw_torch")
    assert against_soap.estimate.mean == pytest.approx(0.0)
    assert against_soap.sentence.startswith("not distinguishable")


def test_of_runs_that_diverged_no_difference_is_told() -> None:
    made = outcome({"scao": [1.9, math.inf, math.inf], "adamw_torch": [2.0, 2.1, 2.2]})
    scao, _ = made.standings
    assert made.differences[0].sentence == "no difference can be told: scao diverged with seed 44, 45"
    assert (scao.diverged, scao.steps_to_target) == (2, None)


def test_an_assertion_is_judged_by_the_means() -> None:
    texts = ["scao.eval_loss < adamw_torch.eval_loss", "scao.step_seconds <= adamw_torch.step_seconds"]
    assert [each.holds for each in outcome(LOSSES, assertions=texts).checked] == [True, False]


# Table, document and CSV


def test_the_table_tells_rate_loss_times_and_memory() -> None:
    assert table(outcome(LOSSES)) == [
        ("scao", "0.0002", "2.000 ± 0.100", "19", "9.5", "0.5", "3.0 MiB"),
        ("adamw_torch", "0.0002", "2.100 ± 0.100", "20", "5", "0.25", "1.0 MiB"),
    ]
    diverged = outcome({"scao": [1.9, math.inf], "adamw_torch": [2.0, 2.1]})
    assert table(diverged)[0][2:5] == ("diverged, 1 of 2", "never", "never")
    assert len(COLUMNS) == 7


def test_the_document_is_json_even_where_a_loss_is_infinite() -> None:
    made = document(outcome({"scao": [1.9, math.inf, 2.0], "adamw_torch": [2.0, 2.1, 2.2]}))
    read = json.loads(json.dumps(made, allow_nan=False))
    assert read["optimizers"][0]["eval_loss"]["mean"] is None
    assert read["optimizers"][1]["eval_loss"]["mean"] == pytest.approx(2.1)
    assert read["conditions"]["43"]["data_order"] == "batches43"
    assert (read["trials"], read["tuning_seed"], read["seeds"]) == (3, 42, [43, 44, 45])


def test_the_csv_has_a_line_for_every_run() -> None:
    rows = list(csv.DictReader(io.StringIO(runs_csv(outcome({"scao": [1.9, math.inf], "adamw_torch": [2.0, 2.1]})))))
    assert [(row["optimizer"], row["purpose"], row["learning_rate"], row["seed"]) for row in rows[:5]] == [
        ("scao", "tuning", "0.0001", "42"),
        ("scao", "tuning", "0.0002", "42"),
        ("scao", "tuning", "0.0004", "42"),
        ("scao", "final", "0.0002", "43"),
        ("scao", "final", "0.0002", "44"),
    ]
    assert len(rows) == 10
    assert (rows[3]["eval_loss"], rows[3]["diverged_at_step"]) == ("1.9", "")
    assert (rows[4]["eval_loss"], rows[4]["diverged_at_step"]) == ("", "7")


def test_all_three_files_are_written(tmp_path: Path) -> None:
    page = write(outcome(LOSSES, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json", "runs.csv"]
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["recipe"] == "small"


# The page


class Page(HTMLParser):
    """Notes tags and text, and fails where tags do not close in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html(outcome(LOSSES, assertions=["scao.eval_loss < 2 * adamw_torch.eval_loss"])))


def test_a_notebook_shows_the_table_and_the_verdicts() -> None:
    shown = outcome(LOSSES)
    page = shown._repr_html_()
    assert all(f">{cell}<" in page for row in table(shown) for cell in row)
    assert all(difference.sentence in page for difference in shown.differences)


def test_the_page_loads_nothing_from_anywhere(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    loading = {
        name: value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "xlink:href")
    }
    assert all((value or "").startswith("#") for value in loading.values())
    assert "@import" not in page.text
    assert re.findall(r"url\((?!#)", html(outcome(LOSSES))) == []


def test_the_page_tells_what_was_compared_how_and_what_came_of_it(page: Page) -> None:
    for sentence in (
        "scao, adamw_torch on small",
        "scao is lower than adamw_torch: scao − adamw_torch = -0.100",
        "2.000 ± 0.100",
        "Target: loss 2.100 (mean final loss of adamw_torch)",
        "scao.eval_loss < 2 * adamw_torch.eval_loss : holds",
        "1,000 of 50,000 parameters train",
        "Every optimizer had 3 runs to find its learning rate, all with seed 42",
        "each of the seeds 43, 44, 45",
        "after every 10 steps",
        "The adapters or models were not kept",
        "batches44",
        "Options of scao k_max 16",
        "scao-finetune compare small.yaml --optim scao --optim adamw_torch",
        "torch 2.6",
        "CPU; 4 cores, torch threads: 2",
    ):
        assert sentence in page.text
    assert "a claim needs 3 seeds" not in page.text
    assert page.tags.count("svg") == 3


def test_the_page_lists_every_run_and_marks_those_that_diverged() -> None:
    page = Page(html(outcome({"scao": [1.9, math.inf], "adamw_torch": [2.0, 2.1]})))
    assert len(re.findall("(?:scao|adamw_torch) tuning", page.text)) == 6
    assert len(re.findall("(?:scao|adamw_torch) final", page.text)) == 4
    assert "diverged in step 7" in page.text
    assert "2 final runs each: a claim needs 3 seeds or more" in page.text


def test_what_a_user_wrote_is_text_on_the_page() -> None:
    made = outcome(LOSSES, assertions=["scao.eval_loss<3"])
    source = html(made)
    assert "<code>scao.eval_loss&lt;3</code>" in source
    Page(source)


def test_no_two_elements_of_the_page_have_one_id(page: Page) -> None:
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


# Figures

CURVES = {
    "scao": [[(0, 4.0), (10, 2.0), (20, 1.0)], [(0, 4.0), (10, 2.4), (20, 1.4)]],
    "adamw_torch": [[(0, 4.0), (10, 3.0), (20, 2.0)], [(0, 4.0), (10, 3.0), (20, 2.0)]],
}


def lines_of(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """Points of every line that has a name."""
    (axes,) = figure.axes
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    return {name: points for name, points in drawn.items() if not name.startswith("_")}


def test_a_curve_is_the_mean_over_seeds() -> None:
    drawn = lines_of(figures.loss_by_step(CURVES))
    assert drawn["scao"] == [(0, 4.0), (10, pytest.approx(2.2)), (20, pytest.approx(1.2))]
    assert drawn["adamw_torch"] == [(0, 4.0), (10, 3.0), (20, 2.0)]


def test_a_curve_over_seconds_is_stretched_by_the_seconds_of_a_step() -> None:
    drawn = lines_of(figures.loss_by_seconds(CURVES, {"scao": 0.5, "adamw_torch": 0.25}))
    assert [second for second, _ in drawn["scao"]] == [0, 5, 10]
    assert [second for second, _ in drawn["adamw_torch"]] == [0, 2.5, 5]


def test_the_band_reaches_from_the_lowest_to_the_highest_seed() -> None:
    (axes,) = figures.loss_by_step({"scao": CURVES["scao"]}).axes
    (band,) = axes.collections
    heights = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(10.0, 2.0), (10.0, 2.4), (20.0, 1.0), (20.0, 1.4)} <= heights


def test_a_name_without_curves_is_not_drawn_and_keeps_its_colour() -> None:
    alone = figures.loss_by_step({"scao": [], "adamw_torch": CURVES["adamw_torch"]})
    both = figures.loss_by_step(CURVES)
    colours = [{line.get_label(): line.get_color() for line in figure.axes[0].get_lines()} for figure in (alone, both)]
    assert "scao" not in colours[0]
    assert colours[0]["adamw_torch"] == colours[1]["adamw_torch"] != colours[1]["scao"]


def test_a_trial_that_diverged_is_drawn_at_the_upper_edge() -> None:
    figure = figures.loss_by_rate({"scao": [(4e-3, math.inf), (1e-3, 2.0), (2e-3, 1.5), (8e-3, 500.0)]})
    assert lines_of(figure)["scao"] == [(1e-3, 2.0), (2e-3, 1.5)]
    (axes,) = figure.axes
    triangles = next(line for line in axes.get_lines() if line.get_marker() == "^")
    assert list(triangles.get_xdata()) == [4e-3, 8e-3]
    assert all(2.0 < height < 500 for height in triangles.get_ydata())


def test_a_figure_of_trials_that_all_diverged_can_be_drawn() -> None:
    assert "<svg" in figures.svg_text(figures.loss_by_rate({"scao": [(1e-3, math.inf)], "soap": []}))


def test_a_figure_is_the_same_text_every_time_and_is_xml() -> None:
    first, second = (figures.svg_text(figures.loss_by_step(CURVES, target=1.5)) for _ in range(2))
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"scao", "adamw_torch", "step", "target 1.500"} <= set(texts)


def test_a_saved_figure_is_two_files_that_do_not_change(tmp_path: Path) -> None:
    saved = [figures.save(figures.loss_by_step(CURVES), tmp_path / name / "loss.v1") for name in ("a", "b")]
    assert [path.name for path in saved[0]] == ["loss.v1.svg", "loss.v1.png"]
    assert [path.read_bytes() for path in saved[0]] == [path.read_bytes() for path in saved[1]]


@pytest.mark.parametrize(
    ("rate", "text"), [(2e-4, "2e-4"), (1.4142e-3, "1.414e-3"), (0.02, "0.02"), (0.014142, "0.01414"), (1.0, "1")]
)
def test_a_learning_rate_is_written_as_one_types_it(rate: float, text: str) -> None:
    assert figures.rate_text(rate) == text
