"""What is published: files, Markdown, figures, and the README's block."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from invented_runs import ENVIRONMENT, record, study, valley
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.optimizers import ADAPTERS
from benchmarks.reporting import report
from benchmarks.reporting.figures import ORDER, colour, drawn
from benchmarks.reporting.headlines import overview_page, readme_block
from benchmarks.reporting.pages import summary_page
from benchmarks.reporting.recorded import recorded
from benchmarks.reporting.report import BEGIN, END, block_of, link_between, summaries_in, with_block
from benchmarks.reporting.summary import Summary, summarise, text_of
from benchmarks.suite import STUDIES, Study
from benchmarks.tasks import texts
from scao_hf.finetune.comparison.figures import svg_text
from scao_hf.finetune.comparison.runs import Setting

ROOT = Path(__file__).resolve().parents[3]
LARGEST_FIGURE = 150_000
LOSSES = valley({"adamw": 4e-3, "scao": 4e-3, "muon": 2e-2}, {"adamw": 2.0, "scao": 1.6, "muon": 1.7})
OURS = study("adamw", "scao", "muon")


def time_steps(folder: Path) -> None:
    arms = {
        name: {"step_seconds": [second, second * 1.1], "optimizer_seconds": [second / 4, second / 4]}
        for name, second in (("adamw", 0.1), ("scao", 0.2), ("muon", 0.15))
    }
    (folder / "timing.json").write_text(json.dumps({"environment": ENVIRONMENT, "arms": arms}))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of one study, timed, with everything written."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "invented", OURS)
        record(out / "invented" / "runs.jsonl", OURS, LOSSES)
        time_steps(out / "invented")
        (out / "README-of-the-project.md").write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nafter\n")
        finished = CliRunner().invoke(
            app, ["report", "--out", str(out), "--readme", str(out / "README-of-the-project.md")]
        )
        assert finished.exit_code == 0, finished.output
        yield out


def summary_of(folder: Path, ours: Study = OURS) -> Summary:
    return summarise(recorded("invented", ours, folder))


def page_of(folder: Path, ours: Study = OURS) -> str:
    return summary_page(summary_of(folder, ours), [])


def tables_in(markdown: str) -> int:
    return sum(line.startswith("| ---") for line in markdown.splitlines())


# Files


def test_all_files_are_written_and_small(out: Path) -> None:
    names = {path.name for path in (out / "invented").iterdir()}
    figures = (
        "loss_by_step",
        "loss_by_seconds",
        "loss_by_rate",
        "time_to_target",
        "step_cost",
        "state_and_loss",
        "ranks",
    )
    assert names == {
        *("runs.jsonl", "timing.json", "runs.csv", "curves.csv", "summary.json", "summary.md"),
        *(f"{name}.{kind}" for name in figures for kind in ("svg", "png")),
    }
    pictures = [path for path in (out / "invented").iterdir() if path.suffix in (".svg", ".png")]
    assert max(path.stat().st_size for path in pictures) < LARGEST_FIGURE


def test_the_csv_has_a_row_for_each_run(out: Path) -> None:
    with (out / "invented" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (4 + 3)
    assert {row["optimizer"] for row in rows if row["purpose"] == "final" and row["seed"] == "44"} == set(
        OURS.optimizers
    )
    assert rows[0]["betas"] == "[0.9,0.95]"


def test_the_json_has_the_numbers_of_the_tables(out: Path) -> None:
    values = json.loads((out / "invented" / "summary.json").read_text())
    assert [row["optimizer"] for row in values["losses"]] == ["scao", "muon", "adamw"]
    assert values["losses"][0]["from_baseline"]["mean"] == pytest.approx(-0.4)
    assert values["supports_claims"] is True


def test_the_same_runs_make_the_same_figures(out: Path) -> None:
    found = recorded("invented", OURS, out / "invented")
    for name, figure in drawn(found, summarise(found)):
        assert svg_text(figure) == (out / "invented" / f"{name}.svg").read_text(), name


def test_a_study_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs of lm-1m, but of: no study"):
        list(report.write_reports(["lm-1m"], tmp_path))


# Pages


def test_every_table_stands_above_what_reproduces_it(out: Path) -> None:
    page = (out / "invented" / "summary.md").read_text()
    footers = [line for line in page.splitlines() if line.startswith("<sub>")]
    assert tables_in(page) == len(footers) == 6
    for footer in footers:
        assert footer.startswith(
            "<sub>`python -m benchmarks study invented --data-dir DATA --out benchmarks/results`, then"
        )
        assert "abacus, 2 cores, 1 thread a run; Python 3.11, torch 2.0, scao-hf 0." in footer
        assert "Tuned on seed 1, final runs on seeds 42, 43, 44." in footer
        assert texts.ORIGINS["wikitext", "local"] in footer
    assert sum("benchmarks timing invented" in footer for footer in footers) == 3


def test_the_loss_table_tells_who_is_lower(out: Path) -> None:
    lines = (out / "invented" / "summary.md").read_text().splitlines()
    (scao,) = [line for line in lines if line.startswith("| SCAO |")][:1]
    # 1.6 and 0.02, 0.03, 0.04 for the seeds; the differences to AdamW are equal on every seed.
    assert scao.startswith("| SCAO | 1.630 ± 0.010 | 5.10 ± 0.05 | -0.400 ± 0.000 | lower |")


def test_a_difference_whose_interval_covers_zero_is_no_verdict(tmp_path: Path) -> None:
    def losses(optimizer: str, setting: Setting, seed: int) -> float:
        return LOSSES("adamw", {"lr": setting["lr"]}, seed) + (
            0.1 * (-1) ** seed if optimizer == "scao" and seed > 1 else 0
        )

    record(tmp_path / "runs.jsonl", study("adamw", "scao"), losses)
    page = page_of(tmp_path, study("adamw", "scao"))
    assert "not distinguishable |" in page
    assert "| lower |" not in page
    assert "| higher |" not in page
    assert " ≈ |" in readme_block([summary_of(tmp_path, study("adamw", "scao"))], "results")


def test_one_seed_claims_nothing_and_has_no_spread(tmp_path: Path) -> None:
    one = study("adamw", "scao", seeds=(42,))
    record(tmp_path / "runs.jsonl", one, LOSSES)
    page = page_of(tmp_path, one)
    assert "| -0.400 | no claim |" in page
    assert "±" not in page.replace("mean ± standard deviation", "")
    assert "No claim: 1 seed; a claim needs three." in page
    assert "lower" not in page
    assert "95%" not in page


def test_untuned_settings_are_said_to_be(tmp_path: Path) -> None:
    plain = study("adamw", "scao", trials=0, seeds=(42,))
    record(tmp_path / "runs.jsonl", plain, LOSSES)
    page = page_of(tmp_path, plain)
    assert "Not tuned, final runs on seed 42." in page
    found = recorded("invented", plain, tmp_path)
    assert "loss_by_rate" not in dict(drawn(found, summarise(found)))


def test_further_tuning_seeds_are_told(tmp_path: Path) -> None:
    confirmed = study("adamw", confirmations=2)
    record(tmp_path / "runs.jsonl", confirmed, LOSSES)
    told = "Tuned on seed 1, the best 2 trials of each also on seeds 2, 3, 4, final runs on seeds 42, 43, 44."
    assert told in page_of(tmp_path, confirmed)


def test_runs_that_diverged_are_said_to_have_and_decide_nothing(tmp_path: Path) -> None:
    def losses(optimizer: str, setting: Setting, seed: int) -> float:
        return math.inf if optimizer == "scao" and seed == 43 else LOSSES(optimizer, setting, seed)

    record(tmp_path / "runs.jsonl", study("adamw", "scao"), losses)
    page = page_of(tmp_path, study("adamw", "scao"))
    assert "| SCAO | diverged | diverged | – | no verdict: a run diverged |" in page
    assert "| SCAO | never on 1 of 3 seeds | – |" in page
    found = recorded("invented", study("adamw", "scao"), tmp_path)
    json.dumps(summarise(found).to_json(), allow_nan=False)
    for _, figure in drawn(found, summarise(found)):
        svg_text(figure)


def test_a_baseline_that_diverged_sets_no_target(tmp_path: Path) -> None:
    def losses(optimizer: str, setting: Setting, seed: int) -> float:
        return math.inf if optimizer == "adamw" and seed == 43 else LOSSES(optimizer, setting, seed)

    record(tmp_path / "runs.jsonl", study("adamw", "scao"), losses)
    assert "Time to AdamW" not in page_of(tmp_path, study("adamw", "scao"))


def test_seconds_are_left_out_without_timing_and_said_to_be(tmp_path: Path) -> None:
    record(tmp_path / "runs.jsonl", OURS, LOSSES)
    page = page_of(tmp_path)
    assert "Seconds are left out" in page
    assert "Times are left out" in page
    assert "ms a step" not in page
    assert "benchmarks timing" not in page
    found = recorded("invented", OURS, tmp_path)
    assert dict(drawn(found, summarise(found))).keys().isdisjoint({"loss_by_seconds", "step_cost"})


def test_seconds_follow_from_steps_and_timing(out: Path) -> None:
    lines = (out / "invented" / "summary.md").read_text().splitlines()
    time_table = lines[lines.index("## Time to AdamW's final loss") :]
    # AdamW: 100 steps of 0.105 s.
    assert (
        next(line for line in time_table if line.startswith("| AdamW |")) == "| AdamW | 100 ± 0 | – | 10.5 ± 0.0 | – |"
    )


def test_published_targets_are_for_the_smallest_model_alone(tmp_path: Path) -> None:
    larger = replace(OURS, options={**OURS.options, "size": "5m"})
    record(tmp_path / "small" / "runs.jsonl", OURS, LOSSES)
    record(tmp_path / "large" / "runs.jsonl", larger, LOSSES)
    assert list(summary_of(tmp_path / "small").time_to_published) == [19.5, 15.0, 14.1, 13.5, 13.0, 12.5, 12.2, 12.03]
    assert summary_of(tmp_path / "large", larger).time_to_published == {}
    assert "published perplexities" not in page_of(tmp_path / "large", larger)


def test_who_is_left_out_is_named(tmp_path: Path) -> None:
    record(tmp_path / "runs.jsonl", study("adamw"), LOSSES)
    two = study("adamw", "scao")
    assert "- SCAO: no runs." in page_of(tmp_path, two)
    assert "Left out: SCAO (no runs)." in overview_page([summary_of(tmp_path, two)])


def test_a_study_without_complete_runs_has_a_page_and_no_headline(tmp_path: Path) -> None:
    record(tmp_path / "runs.jsonl", study("adamw", trials=4), LOSSES)
    more = study("adamw", trials=6)
    page = page_of(tmp_path, more)
    assert "no optimizer has all its runs yet" in page
    assert "- AdamW: 4 of 6 trials and 0 of 3 final runs." in page
    assert tables_in(page) == 0
    assert readme_block([summary_of(tmp_path, more)], "results") == ""


def test_an_own_schedule_has_a_table_of_its_own(tmp_path: Path) -> None:
    record(tmp_path / "runs.jsonl", study("adamw"), LOSSES)
    free = study("schedulefree")
    record(tmp_path / "runs.jsonl", free, valley({"schedulefree": 4e-3}, {"schedulefree": 1.0}))
    page = page_of(tmp_path, study("adamw"))
    protocol, _, outside = page.partition("## Outside the protocol (own schedule)")
    assert "| Schedule-Free AdamW | 1.030 ± 0.010 |" in outside
    assert "| Schedule-Free AdamW |" not in protocol.partition("## Search")[0]
    assert "--optimizer schedulefree" in outside


@pytest.mark.parametrize("data", ["hub", "local"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_says_how_its_text_was_split(name: str, data: str) -> None:
    assert "validat" in text_of(STUDIES[name].task, STUDIES[name].options, data)


# Figures


def test_every_optimizer_has_a_place_in_the_palette() -> None:
    assert sorted(ORDER) == sorted(ADAPTERS)


@pytest.mark.parametrize("name", STUDIES)
def test_optimizers_of_one_study_have_different_colours(name: str) -> None:
    colours = [colour(optimizer) for optimizer in STUDIES[name].optimizers]
    assert len(set(colours)) == len(colours)


def test_the_rate_figure_has_every_trial_of_the_search(out: Path) -> None:
    found = recorded("invented", OURS, out / "invented")
    axes = dict(drawn(found, summarise(found)))["loss_by_rate"].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    assert list(lines["SCAO"].get_xdata()) == [2e-3, 4e-3, 8e-3]
    dots = [offset for part in axes.collections for offset in part.get_offsets()]
    assert len(dots) == 3  # the fourth trial of each tried another coordinate


# The README


def test_the_readme_block_is_replaced_and_nothing_else(out: Path) -> None:
    readme = out / "README-of-the-project.md"
    text = readme.read_text()
    assert text.startswith(f"# Ours\n\n{BEGIN}\n|  | AdamW, final loss |")
    assert text.endswith(f"\n{END}\n\nafter\n")
    assert "[invented](./invented/summary.md)" in text
    assert with_block(text, block_of(text)) == text


def test_the_readme_has_the_best_of_the_others_beside_ours(out: Path) -> None:
    (row,) = [line for line in (out / "README-of-the-project.md").read_text().splitlines() if "[invented]" in line]
    # Muon, at 1.7, needs 1.98 / 2.28 of AdamW's steps on seed 42, each of 1.5 times the seconds; 9 MB to AdamW's 8.
    assert row.endswith(
        "| 2.030 ± 0.010 | 1.630 ± 0.010 | -0.400 ± 0.000 | Muon 1.730 ± 0.010 | -0.100 ± 0.000 "
        "| 0.83 (Muon 0.87) | 1.66 (Muon 1.30) | 1.25 (Muon 1.12) |"
    )


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the markers"):
        with_block("# Ours\n", "block")


def test_the_overview_has_a_table_for_each_study(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert "## [invented](invented/summary.md)" in page
    assert tables_in(page) == 1
    # Seed 42: AdamW ends at 2.02, SCAO at 1.62, both fall from 4, so that SCAO needs 1.98 / 2.38 of the steps, of
    # twice the seconds; 8 and 10 MB of state.
    assert "| SCAO | 1.630 ± 0.010 | -0.400 ± 0.000 | lower | 0.83 | 1.66 | 1.25 |" in page


def test_the_overview_leads_to_summaries_that_are_no_studys(tmp_path: Path) -> None:
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "summary.md").write_text("")
    assert list(report.write_reports([], tmp_path)) == [tmp_path / "README.md"]
    assert "Not studies: [replay](replay/summary.md)." in (tmp_path / "README.md").read_text()


def test_the_committed_readme_says_what_the_committed_results_say() -> None:
    readme, results = ROOT / "README.md", ROOT / "benchmarks" / "results"
    text = readme.read_text(encoding="utf-8")
    expected = readme_block(summaries_in(results), link_between(readme, results))
    assert (block_of(text) if BEGIN in text else "") == expected


def test_committed_times_were_taken_as_their_studies_say() -> None:
    found = {path.parent.name: path for path in (ROOT / "benchmarks" / "results").glob("*/timing.json")}
    timed = [name for name in STUDIES if name in found]
    assert timed
    for name in timed:
        arms = json.loads(found[name].read_text(encoding="utf-8"))["arms"]
        assert {len(arm["step_seconds"]) for arm in arms.values()} == {STUDIES[name].blocks}


# Where the sentences on texts come from


def test_sentences_on_local_texts_are_those_of_the_texts(tmp_path: Path) -> None:
    for name in ("wikitext2/test.txt", "wikitext2/valid.txt", "tinyshakespeare/input.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert texts.wikitext(tmp_path).origin == text_of("lm", {}, "local")
    assert texts.shakespeare(tmp_path).origin in text_of("lora", {"text": "shakespeare"}, "local")
