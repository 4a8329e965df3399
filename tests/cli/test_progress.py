"""Progress on a real terminal (a pseudo-terminal), in pipes, in narrow windows, and where colour is not wanted."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scao_hf.cli.console import ASCII, UNICODE, Glyphs
from scao_hf.cli.progress import plain_step, step_lines
from scao_hf.cli.render import columns, optimizer_plan

fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

HERE = Path(__file__).parent
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7])(?:;[0-9]+)*m")
MOVEMENT = re.compile(r"\x1b\[[0-9?]*[AKl]")
PLAY = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import conftest
fake = conftest.FakeLibrary(seconds_per_step=0.01)
conftest.install(fake, sys.modules.__setitem__)
from scao_hf.cli.main import main
sys.exit(main(["demo"]))
"""


def on_terminal(width: int, **environment: str) -> str:
    """What a terminal of `width` columns receives on standard error from a played run; standard output is piped."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    surroundings = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", PLAY], stdout=subprocess.DEVNULL, stderr=follower, stdin=follower, env=surroundings
    )
    os.close(follower)
    received = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux ends a pseudo-terminal with EIO
            break
        if not piece:
            break
        received += piece
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return received.decode("utf-8")


def lines_of(received: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", received)) if line]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_no_line_on_a_terminal_is_wider_than_the_terminal(width: int) -> None:
    lines = lines_of(on_terminal(width))
    assert max(map(len, lines)) <= width
    assert any(" 30/60 ━" in line for line in lines)
    assert any("scao: preconditioned  rank 11.2" in line for line in lines)
    assert any(line.startswith("✓ 60/60 steps in 36 s, training loss 3.835") for line in lines)
    assert lines[-2].rstrip() == "✓ saved runs/demo/adapter"
    assert lines[-1].rstrip() == "✓ drawing the report"


def test_no_color_keeps_the_live_line_but_not_its_colours() -> None:
    received = on_terminal(80, NO_COLOR="1")
    assert COLOUR.search(received) is None
    assert MOVEMENT.search(received) is not None
    assert COLOUR.search(on_terminal(80)) is not None


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true", "NO_COLOR": "1"}])
def test_a_terminal_that_must_not_move_gets_one_plain_line_a_step(environment: dict[str, str]) -> None:
    received = on_terminal(80, **environment)
    assert "\x1b" not in received
    assert "step=20/60 loss=2.7253" in received


def test_a_narrow_encoding_gets_ascii_only() -> None:
    received = on_terminal(80, PYTHONIOENCODING="ascii")
    assert CONTROL.sub("", received).isascii()
    assert any(" 30/60 #" in line for line in lines_of(received))
    assert "* saved runs/demo/adapter" in received


def test_a_stream_of_a_windows_code_page_is_written_without_an_encoding_error() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PLAY.replace("seconds_per_step=0.01", "report=conftest.Report(sample_after='ἀγάπη')")],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode("cp1252")
    assert "\\u1f00" in result.stdout.decode("cp1252")
    assert result.stdout.isascii()
    assert result.stderr.isascii()


def test_force_color_colours_a_pipe_without_moving_anything() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PLAY],
        env={**os.environ, "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "\x1b[1m" in result.stdout
    assert MOVEMENT.search(result.stdout + result.stderr) is None
    assert "step=20/60" in result.stderr


@pytest.fixture
def step(stand_in: Any) -> Any:
    """Makes the metrics of one step."""
    return stand_in.step_metrics


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_live_lines_fit_and_keep_the_loss_however_narrow(step: Any, width: int, glyphs: Glyphs) -> None:
    metrics = step(12345, total=100_000, tokens_per_second=98_765.0)
    first, second = (str(line) for line in step_lines(metrics, 0.0, [3.0, 2.0, 1.0] * 9, width, glyphs))
    assert len(first) <= width
    assert len(second) <= width
    assert "12345/100000" in first
    assert "loss 2.000" in first
    assert "scao: preconditioned" in second


def test_without_scao_there_is_no_second_line(step: Any) -> None:
    assert len(step_lines(step(5, scao={}), 0.0, [1.0], 80, UNICODE)) == 1


def test_before_the_first_basis_neither_rank_nor_mass_is_told(step: Any) -> None:
    scao = {"phase": 0.0, "blend": 0.0, "rank_mean": 0.0, "mass_kept": 0.0, "state_bytes": 2048.0}
    assert str(step_lines(step(5, scao=scao), 0.0, [1.0], 80, UNICODE)[1]).strip() == "scao: Adam  state 2.0 KiB"


def test_the_time_left_goes_on_counting_between_two_steps(step: Any) -> None:
    assert "eta 30 s" in str(step_lines(step(10), 0.0, [1.0], 80, UNICODE)[0])
    assert "eta 26 s" in str(step_lines(step(10), 4.0, [1.0], 80, UNICODE)[0])
    assert "eta 0 s" in str(step_lines(step(10), 400.0, [1.0], 80, UNICODE)[0])


def test_a_plain_step_leaves_out_what_is_not_known(step: Any) -> None:
    metrics = step(40, total=120, scao={}, grad_norm=None, loss=1.91234, learning_rate=1.8e-4, eta_seconds=190.0)
    assert plain_step(metrics) == "step=40/120 loss=1.9123 lr=1.8e-04 tok/s=3120 eta=3m10s"


def test_memory_is_told_where_it_is_known(step: Any) -> None:
    metrics = step(40, memory_bytes=3 * 2**30 // 2)
    assert " mem=1.5GiB " in plain_step(metrics)
    assert " 1.5 GiB" in str(step_lines(metrics, 0.0, [1.0], 120, UNICODE)[0])
    assert "GiB" not in str(step_lines(step(40), 0.0, [1.0], 120, UNICODE)[0])


def test_the_plan_says_when_preconditioning_begins_or_that_it_never_does(stand_in: Any, tmp_path: Path) -> None:
    info = stand_in.run_info
    assert optimizer_plan(info(tmp_path)) == "scao: preconditions from step 11 on"
    assert optimizer_plan(info(tmp_path, adam_steps=60)) == (
        "scao: Adam throughout, as the run is no longer than its Adam phase (60 steps)"
    )
    assert optimizer_plan(info(tmp_path, total_steps=1, adam_steps=1)) == (
        "scao: Adam throughout, as the run is no longer than its Adam phase (1 step)"
    )
    assert optimizer_plan(info(tmp_path, optimizer="adamw_torch", adam_steps=None)) == "adamw_torch"


def test_columns_break_only_the_last_one_and_measure_wide_letters() -> None:
    assert columns([("a", "one two three four five"), ("bcd", "x")], 25) == (
        "a    one two three four\n     five\nbcd  x"
    )
    assert columns([("愛", "x"), ("abc", "y")], 40) == "愛   x\nabc  y"
