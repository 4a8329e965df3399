"""`python -m benchmarks`: run studies, keep their runs, write tables and figures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

DataDir = Annotated[Path | None, typer.Option(help="Local texts; the Hugging Face hub's without it.")]
Out = Annotated[Path, typer.Option(help="Where runs are kept and looked up.")]
Workers = Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")]


@app.callback()
def suite() -> None:
    """Measure optimizers against each other, each with the same chance."""


@app.command()
def study(
    names: Annotated[list[str], typer.Argument(help="Studies, in order.")],
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    workers: Workers = 2,
    device: str = "cpu",
) -> None:
    """Tune every optimizer with the same number of trials and run the chosen settings on fresh seeds."""
    from benchmarks.suite import STUDIES, Machine
    from scao_hf.finetune.comparison.store import RunStore

    started = time.monotonic()
    for name in names:
        store = RunStore(out / name / "runs.jsonl")
        print(f"{name}: {len(store)} runs at hand", file=sys.stderr)

        def tell(line: str, name: str = name) -> None:
            print(f"[{time.monotonic() - started:7.0f} s] {name}  {line}", file=sys.stderr, flush=True)

        STUDIES[name].run(Machine(data_dir, device), store, workers, tell)


if __name__ == "__main__":
    try:
        app()
    except KeyboardInterrupt:
        print("stopped; the same command continues from the runs that were finished", file=sys.stderr)
        sys.exit(130)
