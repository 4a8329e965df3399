"""`compare` over a comparison that nobody trained: what is asked of the library, and what its answer looks like."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune.comparison.outcomes import outcome, run
from scao_hf.cli.main import main

from scao_hf.finetune.comparison import contest
from scao_hf.finetune.comparison.contest import Paused, Request, Spectator
from scao_hf.finetune.comparison.outcome import Outcome
from scao_hf.finetune.errors import FinetuneError

LOSSES = {"scao": [1.9, 2.0, 2.1], "adamw_torch": [2.0, 2.1, 2.2]}
CALL = ["compare", "small.yaml", "--optim", "scao", "--optim", "adamw_torch"]


class FakeContest:
    """Answers with losses that were given, after two runs of progress; `fails` is raised instead."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = LOSSES
        self.fails: BaseException | None = None
        self.request: Request | None = None

    def hold(self, request: Request, spectator: Spectator) -> Outcome:
        self.request = request
        folder = Path("runs/small-compare")
        folder.mkdir(parents=True)
        made = outcome(self.losses, folder, request.target_loss, request.assertions)
        spectator.notice("rows are short")
        spectator.planned(made.plan, folder)
        for number, name in enumerate(("scao", "adamw_torch"), 4):
            spectator.run_begins(name, {"lr": 2e-4}, 43, number, 12)
            spectator.stage("loading the model")
            spectator.notice("rows are short")
            spectator.run_ended(run(name, 43, math.inf if name == "scao" else 2.0), number + 1, 12)
        if self.fails is not None:
            raise self.fails
        return replace(made, command=request.command)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeContest:
    fake = FakeContest()
    monkeypatch.setattr(contest, "hold", fake.hold)
    return fake


def test_options_reach_the_request(library: FakeContest) -> None:
    more = "lora.r=8 -m org/model -d rows.jsonl -o out --max-steps 9 --lrs 1e-4,2e-4 --trials 4 --seeds 5"
    assert main([*CALL, *more.split(), "--target-loss", "1.9", "--assert", "scao.eval_loss < 3"]) == 0
    asked = library.request
    assert asked is not None
    assert asked.recipe == "small.yaml"
    assert asked.optimizers == ["scao", "adamw_torch"]
    assert asked.overrides == [
        'model.model_name_or_path="org/model"',
        'data.path="rows.jsonl"',
        "training.max_steps=9",
        "lora.r=8",
    ]
    assert asked.rates == [1e-4, 2e-4]
    assert (asked.trials, asked.seeds, asked.target_loss, asked.output_dir) == (4, 5, 1.9, Path("out"))
    assert asked.assertions == ["scao.eval_loss < 3"]


def test_scao_and_adamw_are_compared_unless_others_are_named(library: FakeContest) -> None:
    assert main(["compare", "small.yaml"]) == 0
    assert library.request is not None
    assert list(library.request.optimizers) == ["scao", "adamw_torch"]


def test_the_recipe_for_it_is_compared_offline_with_a_verdict_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The middle rate is the best: the first hardly moves the model, and the last one, without a bound, throws it far
    # off.
    few = ["--max-steps", "2", "--lrs", "1e-6,1e-2,1e6", "--trials", "3", "--seeds", "2"]
    short = ["data.max_samples=12", "data.test_split_size=4", "data.max_length=48", "use_cpu=true", "scao.tau=null"]
    assert main(["compare", "compare-adamw-scao", *few, *short, "-q"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("compare-adamw-scao: 2 steps, judged by 4 held-out rows\n")
    folder = tmp_path / "runs" / "compare-adamw-scao-compare"
    (difference,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["differences"]
    assert (difference["ours"], difference["theirs"]) == ("scao", "adamw_torch")
    assert difference["verdict"] in " ".join(out.split())
    assert len((folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()) == 10
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3


def test_the_command_of_the_report_asks_for_the_same_again(library: FakeContest) -> None:
    main([*CALL, "lora.r=8", "--lrs", "1e-4,2e-4", "--assert", "scao.eval_loss < 3", "-d", "my rows.jsonl", "-q"])
    first = library.request
    assert first is not None
    words = shlex.split(first.command)
    assert words[:2] == ["scao-finetune", "compare"]
    assert "--quiet" not in words
    Path("runs/small-compare").rename("elsewhere")
    main(words[1:])
    assert library.request == first


def test_the_result_is_a_table_and_verdicts_on_standard_output(
    library: FakeContest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CALL, "--assert", "scao.eval_loss < adamw_torch.eval_loss"]) == 0
    out, err = capsys.readouterr()
    assert (
        out
        == """\
small: 20 steps, judged by 16 held-out rows
                           held-out  steps to    seconds          optimizer
optimizer    best lr           loss    target  to target  s/step      state
───────────────────────────────────────────────────────────────────────────
scao          0.0002  2.000 ± 0.100        19        9.5     0.5    3.0 MiB
adamw_torch   0.0002  2.100 ± 0.100        20          5    0.25    1.0 MiB
target: loss 2.100 (mean final loss of adamw_torch)

scao is lower than adamw_torch: scao − adamw_torch = -0.100 ± 0.000 (95%, 3 seeds)
holds: scao.eval_loss < adamw_torch.eval_loss (scao.eval_loss = 2, adamw_torch.eval_loss = 2.1)

runs/small-compare/report.html (with runs.csv and results.json; adapters and models were not kept)
"""
    )
    assert (
        err
        == """\
note: rows are short
scao, adamw_torch: 3 learning rates each with seed 42, then the best with 43, 44, 45
runs are kept in runs/small-compare; Ctrl-C and the same command go on from there
4 of 12 runs are there already
 5/12  scao         lr 0.0002    seed 43  diverged in step 7
 6/12  adamw_torch  lr 0.0002    seed 43  loss 2.0000
"""
    )
    names = sorted(path.name for path in Path("runs/small-compare").iterdir())
    assert names == ["report.html", "results.json", "runs.csv"]


def test_two_seeds_come_with_a_warning(library: FakeContest, capsys: pytest.CaptureFixture[str]) -> None:
    library.losses = {"scao": [1.9, 2.0], "adamw_torch": [2.0, 1.9]}
    main([*CALL, "-q"])
    assert "2 final runs each: a claim needs 3 seeds or more" in capsys.readouterr().out


def test_quiet_leaves_only_the_result(library: FakeContest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CALL, "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "scao is lower than adamw_torch" in out


@pytest.mark.parametrize("columns", ["40", "79", "200"])
def test_no_figure_is_cropped_however_narrow_the_terminal(
    library: FakeContest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    main([*CALL, "-q"])
    assert "adamw_torch   0.0002  2.100 ± 0.100        20          5    0.25    1.0 MiB\n" in capsys.readouterr().out


def test_json_is_one_document(library: FakeContest, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"]) == ("ok", 0)
    assert document["optimizers"][0]["seconds_to_target"] == pytest.approx(9.5)
    assert document["report"] == "runs/small-compare/report.html"


def test_a_false_assertion_exits_with_8_after_the_whole_result(
    library: FakeContest, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["adamw_torch.eval_loss < scao.eval_loss", "scao.eval_loss < 3"]
    assert main([*CALL, "-q", "--assert", texts[0], "--assert", texts[1]]) == 8
    out, err = capsys.readouterr()
    told = "adamw_torch.eval_loss < scao.eval_loss"
    assert f"false: {told} (adamw_torch.eval_loss = 2.1, scao.eval_loss = 2)\nholds: scao.eval_loss < 3" in out
    assert "report.html" in out
    figures = "adamw_torch.eval_loss = 2.1, scao.eval_loss = 2"
    assert err == f"error[assert.false]: {told} is false ({figures})\n"


def test_a_false_assertion_is_part_of_the_one_document(
    library: FakeContest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CALL, "--json", "-q", "--assert", "scao.eval_loss > 3"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"]) == ("assertion-failed", 8)
    assert [each["holds"] for each in document["assertions"]] == [False]


def test_a_comparison_that_was_stopped_says_how_to_go_on(
    library: FakeContest, capsys: pytest.CaptureFixture[str]
) -> None:
    library.fails = Paused("SIGINT", 6, 12, Path("runs/small-compare/runs.jsonl"))
    assert main(CALL) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(
        "interrupted: stopped by SIGINT; 6 of 12 runs are done and kept in runs/small-compare/runs.jsonl\n"
        "   = help: the same command again goes on from there\n"
    )


def test_a_refusal_of_the_protocol_is_an_error_with_a_code(
    library: FakeContest, capsys: pytest.CaptureFixture[str]
) -> None:
    library.fails = FinetuneError("config.comparison", "different data order")
    assert main([*CALL, "-q", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == "error[config.comparison]: different data order\n"
    assert json.loads(out)["code"] == "config.comparison"


@pytest.mark.parametrize("rates", ["1e-4,fast", "", "1e-4;2e-4"])
def test_learning_rates_that_are_no_numbers_are_a_usage_error(
    library: FakeContest, capsys: pytest.CaptureFixture[str], rates: str
) -> None:
    assert main([*CALL, "--lrs", rates]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error[usage]: Invalid value for '--lrs': {rates!r} is not numbers between commas")
    assert library.request is None


def test_a_narrow_encoding_gets_ascii_only(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from cli import test_compare as t; fake = t.FakeContest();"
        f"t.contest.hold = fake.hold; t.main({CALL!r})"
    )
    tests = Path(__file__).resolve().parent.parent
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tests)],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert finished.stdout.isascii()
    assert "2.000 +/- 0.100" in finished.stdout
    assert "scao - adamw_torch = -0.100 +/- 0.000" in finished.stdout
    assert "\\u" not in finished.stdout


class OnTerminal:
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_run_in_hand_is_one_line(monkeypatch: pytest.MonkeyPatch, stand_in: Any) -> None:
    from scao_hf.cli.compare_progress import CompareProgress
    from scao_hf.cli.invocation import Invocation

    monkeypatch.setattr(sys, "stderr", OnTerminal())
    monkeypatch.setenv("COLUMNS", "80")
    progress = CompareProgress(Invocation(json=False, debug=False), quiet=False)
    progress.run_begins("scao", {"lr": 2e-4}, 43, 4, 12)
    progress.stage("loading the model")
    assert progress.picture().plain == "5/12  scao  lr 0.0002  seed 43  loading the model…"
    progress.step(stand_in.step_metrics(30))
    line = progress.picture().plain
    assert line.startswith("5/12  scao  lr 0.0002  seed 43  30/60  loss 2.391  eta 18 s  ━")
    assert len(line) <= 80


def test_help_tells_of_every_option_and_loads_no_deep_learning_library() -> None:
    code = (
        "import sys; from scao_hf.cli.main import main; main(['compare', '--help']); "
        "print('LOADED', [name for name in ('torch', 'transformers', 'matplotlib', 'jinja2') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    told = re.sub(r"[^\x20-\x7e]+", " ", finished.stdout)
    for option in ("--optim", "--lrs", "--trials", "--seeds", "--target-loss", "--assert", "--output-dir", "--json"):
        assert option in told
    assert finished.stdout.splitlines()[-1] == "LOADED []"
