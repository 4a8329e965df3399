"""`train` and `demo` over a stand-in library: what reaches the recipe, and which stream tells what."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scao_hf.cli.main import main

from scao_hf.finetune.errors import FinetuneError, Interrupted

if TYPE_CHECKING:
    from conftest import FakeLibrary


def test_options_become_overrides_and_key_values_come_last(library: FakeLibrary) -> None:
    arguments = ["train", "lora-sft", "lora.r=8", "-m", "org/model", "--max-steps", "7", "-d", "a b.jsonl"]
    assert main([*arguments, "--seed", "3", "-o", "runs/x", "training.seed=4"]) == 0
    assert library.recipe == "lora-sft"
    assert library.overrides == [
        'model.model_name_or_path="org/model"',
        'data.path="a b.jsonl"',
        'training.output_dir="runs/x"',
        "training.max_steps=7",
        "training.seed=3",
        "lora.r=8",
        "training.seed=4",
    ]


def test_a_model_named_like_a_number_stays_text(library: FakeLibrary) -> None:
    main(["train", "lora-sft", "-m", "123"])
    assert library.overrides == ['model.model_name_or_path="123"']


@pytest.mark.parametrize(("arguments", "overwrite"), [([], False), (["--overwrite"], True)])
def test_train_replaces_a_run_only_when_told(library: FakeLibrary, arguments: list[str], overwrite: bool) -> None:
    main(["train", "lora-sft", *arguments])
    assert library.overwrite is overwrite


@pytest.mark.parametrize(
    ("arguments", "overwrite"),
    [
        ([], True),
        (["optim=adamw_torch"], True),
        (["--out", "mine"], False),
        (["training.output_dir=mine"], False),
        (["output_dir=mine"], False),
        (["--out", "mine", "--overwrite"], True),
    ],
)
def test_demo_replaces_its_own_folder_but_no_other(library: FakeLibrary, arguments: list[str], overwrite: bool) -> None:
    main(["demo", *arguments])
    assert library.overwrite is overwrite


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["train", "x"], "0"), (["train", "x", "--offline"], "1"), (["demo"], "1")]
)
def test_offline_reaches_the_libraries_before_they_are_imported(
    library: FakeLibrary, arguments: list[str], expected: str
) -> None:
    main(arguments)
    assert {os.environ[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")} == {
        expected
    }


def test_the_result_is_on_standard_output_and_progress_on_standard_error(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert (
        out
        == """\
demo: 60 steps of scao in 36 s (114 k tokens, 61.4 k parameters trained)
                  before     after
held-out loss      4.580     2.440
perplexity         97.51     11.47

Sample
  prompt  ROMEO: What light is this?
  before  There are 12 apples. 12 * 2 = 24
  after   I pray you, sir, speak no more of it,
          for love is sick.

Files
  saved    runs/demo/adapter (LoRA adapter)
  details  runs/demo: metrics.jsonl, run.json, recipe.resolved.yaml
  report   runs/demo/report/report.html
  memory   2.5 MiB of optimizer state

Next
  try it         scao-finetune generate runs/demo -p TEXT --base
  in Python      peft.AutoPeftModelForCausalLM.from_pretrained("runs/demo/adapter")
  other recipes  scao-finetune recipes list
  your own data  scao-finetune train lora-sft -m Qwen/Qwen3-0.6B -d data.jsonl
"""
    )
    lines = err.splitlines()
    assert lines[:2] == ["loading torch and transformers", "loading the model"]
    assert "steps: 60 of 8 rows (0.591 epochs) · learning rate 0.002 after 6 warm-up steps" in err
    assert "scao: preconditions from step 11 on" in err
    assert "held-out loss 4.580, perplexity 97.51 before training (9216 tokens, 2 s)" in lines
    assert "step=20/60 loss=2.7253 lr=1.3e-03 gn=0.71 tok/s=3120 eta=24s phase=ramp blend=0.50 rank=11.2" in lines
    assert lines[-2:] == ["saved runs/demo/adapter", "drawing the report"]
    assert "\x1b" not in out + err


def test_quiet_leaves_only_the_result(library: FakeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora-sft", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "held-out loss" in out


def test_json_is_one_document_and_progress_goes_on(library: FakeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora-sft", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["status"] == "ok"
    assert document["final_eval_loss"] == 2.44
    assert document["saved_dir"] == str(Path("runs/demo/adapter"))
    assert document["report"] == str(Path("runs/demo/report/report.html"))
    assert "step=60/60" in err


def test_a_report_that_cannot_be_drawn_is_told_and_the_run_is_not_lost(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    library.drawing_fails = ZeroDivisionError("no colours left")
    assert main(["train", "lora-sft", "-q"]) == 0
    out, err = capsys.readouterr()
    assert "saved    runs/demo/adapter" in out
    assert "report.html" not in out
    assert "the report was not drawn: ZeroDivisionError: no colours left" in err
    assert "try again: scao-finetune report runs/demo" in err
    assert main(["train", "lora-sft", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] is None


def test_a_figure_that_is_not_finite_is_null_in_json(library: FakeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    library.report = dataclasses.replace(library.report, initial_perplexity=float("inf"))
    main(["demo", "--json", "-q"])
    assert json.loads(capsys.readouterr().out)["initial_perplexity"] is None


def test_a_run_without_held_out_rows_reports_the_training_loss(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = dict.fromkeys(("initial_eval_loss", "final_eval_loss", "initial_perplexity", "final_perplexity"))
    library.report = dataclasses.replace(library.report, sample_prompt=None, **nothing)
    assert main(["train", "x", "-q"]) == 0
    out = capsys.readouterr().out
    assert "training loss 2.800; no rows were held out" in out
    assert "Sample" not in out


def test_model_output_cannot_command_the_terminal(library: FakeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    library.report = dataclasses.replace(library.report, sample_after="red \x1b[31m bell \x07 [bold]kept[/bold]")
    main(["demo", "-q"])
    out = capsys.readouterr().out
    assert "after   red \\x1b[31m bell \\x07 [bold]kept[/bold]" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("prefix", ["config", "data", "model", "memory", "diverged", "disk", "other"])
def test_an_error_of_the_library_is_told_with_its_exit_code_and_nothing_on_standard_output(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    expected = {"config": 2, "data": 3, "model": 4, "memory": 5, "diverged": 6, "disk": 7}.get(prefix, 1)
    library.fails = FinetuneError(f"{prefix}.reason", "what was found", hint="what would do")
    assert main(["train", "lora-sft", "-q"]) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error[{prefix}.reason]: what was found\n   = help: what would do\n"


def test_under_json_an_error_is_the_one_document(library: FakeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    library.fails = FinetuneError("data.empty", "no rows", hint="look at data.path")
    assert main(["train", "lora-sft", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "status": "error",
        "code": "data.empty",
        "exit_code": 3,
        "message": "no rows",
        "hint": "look at data.path",
        "location": None,
    }
    assert "error[data.empty]: no rows" in err


def test_under_json_a_usage_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--json", "--no-such-option"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["code"], document["exit_code"]) == ("error", "usage", 2)


@pytest.mark.parametrize(("signal", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_says_where_its_checkpoint_is(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str], signal: str, expected: int
) -> None:
    library.fails = Interrupted(signal, 15, Path("runs/demo/checkpoint-15"))
    assert main(["demo", "-q"]) == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"interrupted: stopped by {signal} after step 15; saved {Path('runs/demo/checkpoint-15')}\n"
        "   = help: to go on: scao-finetune train demo --resume\n"
    )


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [([], False), (["--resume"], True), (["--resume-from", "runs/x/checkpoint-3"], Path("runs/x/checkpoint-3"))],
)
def test_what_is_to_be_resumed_reaches_the_library(
    library: FakeLibrary, arguments: list[str], resume: bool | Path
) -> None:
    assert main(["train", "lora-sft", *arguments, "lora.r=8"]) == 0
    assert library.resume == resume
    assert library.overrides == ["lora.r=8"]


def test_the_command_that_goes_on_can_be_pasted_as_it_is(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    library.fails = Interrupted("SIGINT", 15, Path("runs/demo/checkpoint-15"))
    main(["train", "my recipe.yaml", "-d", "a b.jsonl", "--resume", "-q", "lora.r=8"])
    last = capsys.readouterr().err.splitlines()[-1]
    expected = "scao-finetune train 'my recipe.yaml' 'data.path=\"a b.jsonl\"' lora.r=8 --resume"
    assert last == f"   = help: to go on: {expected}"


def test_the_best_step_is_told_where_the_run_looked_for_it(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    best = {"best_step": 40, "best_metric": 1.25, "best_checkpoint": Path("runs/demo/checkpoint-40")}
    library.report = dataclasses.replace(library.report, stopped_early=True, **best)
    main(["train", "lora-sft", "-q"])
    told = f"  best     {Path('runs/demo/checkpoint-40')} (step 40, 1.25); stopped early after 60 steps"
    assert told in capsys.readouterr().out.splitlines()


def test_ctrl_c_outside_training_exits_with_130_and_no_traceback(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    library.fails = KeyboardInterrupt()
    assert main(["demo", "-q", "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 130
    assert "Traceback" not in err


def test_an_unexpected_error_is_one_line_and_its_traceback_lies_in_the_runs_folder(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    library.fails = RuntimeError("what nobody foresaw")
    library.report = dataclasses.replace(library.report, output_dir=tmp_path)
    assert main(["train", "lora-sft", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first == "error[internal]: RuntimeError: what nobody foresaw"
    assert rest == [
        f"   = help: the traceback is in {tmp_path / 'error.log'}",
        "           run the command again with --debug to see it here",
    ]
    written = (tmp_path / "error.log").read_text(encoding="utf-8")
    assert written.startswith("Traceback")
    assert "what nobody foresaw" in written


def test_debug_prints_the_traceback(library: FakeLibrary, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    library.fails = RuntimeError("what nobody foresaw")
    library.report = dataclasses.replace(library.report, output_dir=tmp_path)
    assert main(["train", "lora-sft", "-q", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.rstrip().splitlines()[-2] == "error[internal]: RuntimeError: what nobody foresaw"


def test_a_library_that_is_not_installed_names_the_extra(
    library: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    library.fails = ModuleNotFoundError("No module named 'trl'", name="trl")
    assert main(["train", "lora-sft", "-q"]) == 1
    assert capsys.readouterr().err == (
        'error[extra.missing]: this command needs trl, which is not installed\n   = help: pip install "scao-hf[cli]"\n'
    )
