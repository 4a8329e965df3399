"""The installed program, as a shell sees it: text, streams, exit codes, and what it costs to start."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scao_hf import __version__

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "huggingface_hub")


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("scao-finetune")
    found = str(script) if script.exists() else shutil.which("scao-finetune")
    assert found is not None, "the console script is not installed"
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_without_arguments_the_program_says_how_to_start_and_exits_with_0() -> None:
    result = program()
    assert result.returncode == 0
    assert result.stderr == ""
    assert "scao-finetune demo" in result.stdout
    assert "scao-finetune recipes list" in result.stdout
    assert len(result.stdout.splitlines()) <= 12
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_one_line_on_standard_output(option: str) -> None:
    result = program(option)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"scao-finetune {__version__}\n", "")


def test_python_dash_m_is_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "scao_hf", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"scao-finetune {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "-h"], ["preview", "-h"], ["recipes", "list"], ["trian"]])
def test_help_lists_and_usage_errors_load_no_deep_learning_library(arguments: list[str]) -> None:
    code = (
        "import sys; from scao_hf.cli.main import main; "
        f"main({arguments!r}); print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = python(code)
    assert "LOADED []" in result.stdout.splitlines()[-1], result.stdout + result.stderr


def test_help_takes_less_than_three_tenths_of_a_second_of_the_processor() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert program("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of several, as whoever else uses the processor's caches makes a program slower and never faster.
    assert min(seconds() for _ in range(5)) < 0.3


def test_help_lists_every_command_and_every_exit_code() -> None:
    result = program("--help")
    assert result.returncode == 0
    for word in (
        "demo",
        "train",
        "plan",
        "preview",
        "check",
        "schema",
        "compare",
        "recipes",
        "doctor",
        "--version",
        "--install-completion",
    ):
        assert word in result.stdout
    told = " ".join(result.stdout.split())
    for word in ("0 done", "2 usage or recipe", "3 data", "4 model", "5 out of memory", "6 the loss", "7 disk", "130"):
        assert word in told
    assert "8 an --assert of compare is false" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "error[usage]: No such command 'trian'. Did you mean 'train'?"),
        (["train"], "error[usage]: Missing argument 'RECIPE'."),
        (["train", "demo", "--max-steps", "0"], "error[usage]: Invalid value for '--max-steps'"),
        (["train", "demo", "--overwrit"], "error[usage]: No such option: --overwrit"),
    ],
)
def test_a_usage_error_is_a_sentence_with_the_usage_on_standard_error_and_exit_code_2(
    arguments: list[str], sentence: str
) -> None:
    result = program(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(sentence)
    assert "usage: scao-finetune" in result.stderr
    assert "--help lists what is accepted" in result.stderr


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_extra_is_one_sentence_that_says_what_to_install(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from scao_hf.cli.main import main; sys.exit(main(['demo']))"
    result = python(code)
    assert result.returncode == 1
    assert result.stderr == (
        f"error[extra.missing]: the command line needs {module}, which is not installed\n"
        '   = help: pip install "scao-hf[cli]"\n'
    )


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "scao_hf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert told == ""
