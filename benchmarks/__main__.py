"""`python -m benchmarks`: run studies, keep their runs, write tables and figures."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from scao_hf.finetune.comparison.protocol import ProtocolError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

DataDir = Annotated[Path | None, typer.Option(help="Local texts; the Hugging Face hub's without it.")]
Out = Annotated[Path, typer.Option(help="Where runs are kept and looked up.")]
Workers = Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.callback()
def suite() -> None:
    """Measure optimizers against each other, each with the same chance."""


@app.command("study")
def run_studies(
    names: Annotated[list[str], typer.Argument(help="Studies, in order.")],
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    workers: Workers = 2,
    optimizer: Annotated[list[str] | None, typer.Option(help="Others than the study's own; repeat it.")] = None,
    device: Device = "cpu",
) -> None:
    """Tune every optimizer with the same number of trials and run the chosen settings on fresh seeds.

    The studies share the workers: where the search of one waits for its best trial, the next goes on.
    """
    import torch

    from benchmarks.suite import Machine, chosen_studies
    from scao_hf.finetune.comparison.store import RunStore
    from scao_hf.finetune.comparison.study import run_studies

    torch.set_num_threads(1)
    started, jobs = time.monotonic(), {}
    machine = Machine(data_dir, device, cache=out / "cache")
    for name, study in chosen_studies(names, optimizer).items():
        store = RunStore(out / name / "runs.jsonl")
        print(f"{name}: {len(store)} runs at hand", file=sys.stderr)

        def tell(line: str, name: str = name) -> None:
            print(f"[{time.monotonic() - started:7.0f} s] {name}  {line}", file=sys.stderr, flush=True)

        jobs[name] = study.job(machine, store, tell)
    run_studies(jobs, workers, machine.reuses_workers)


@app.command("run")
def run_once(
    name: Annotated[str, typer.Argument(help="A study, for its task.")],
    optimizer: Annotated[str, typer.Argument(help="An optimizer of the table.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=JSON, such as lr=0.004 k_max=32.")] = None,
    seed: int = 42,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the study's.")] = None,
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    device: Device = "cpu",
) -> None:
    """Train once, at an optimizer's start with some values overridden, and print the run as JSON."""
    from benchmarks.suite import Machine, chosen_studies

    study = chosen_studies([name], [optimizer])[name]
    setting = study.plan().spaces[optimizer].start | dict(map(_key_and_value, overrides or []))
    more = {} if steps is None else {"steps": steps}
    study = replace(study, options={**study.options, **more})
    run = study.run_once(Machine(data_dir, device, cache=out / "cache"), optimizer, setting, seed)
    measures = {key: value for key, value in run.measures.items() if key not in ("train_losses", "ranks")}
    print(json.dumps({**run.to_dict(), "measures": measures}))


def _key_and_value(override: str) -> tuple[str, Any]:
    key, _, value = override.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{override!r} is not KEY=JSON, such as lr=0.004 or 'betas=[0.9, 0.95]'") from error


@app.command("ablation")
def ablate(
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    workers: Workers = 2,
    device: Device = "cpu",
    only: Annotated[
        list[str] | None, typer.Option(help="Parts of the rule, such as k_max or lr; all without it.")
    ] = None,
) -> None:
    """SCAO with one thing changed at a time, and over learning rates, on the 1M task."""
    from benchmarks import ablation
    from benchmarks.suite import Machine
    from scao_hf.finetune.comparison.store import RunStore

    machine, folder = Machine(data_dir, device, cache=out / "cache"), out / "ablation"
    store = RunStore(folder / "runs.jsonl")
    arms = [*ablation.ARMS, *ablation.rate_arms()]
    chosen = [arm for arm in arms if not only or not arm.part or arm.part in only]
    ablation.make_all(machine, store, chosen, workers, lambda line: print(line, file=sys.stderr, flush=True))
    for path in ablation.write(machine, store, folder):
        print(path)


@app.command("transfer")
def transfer_rates(
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    workers: Workers = 2,
    device: Device = "cpu",
    seeds: Annotated[str, typer.Option(help="Numbers with commas between them.")] = "42",
    only: Annotated[
        list[str] | None, typer.Option(help="What is varied: rank, alpha, init or imbalance; all without it.")
    ] = None,
) -> None:
    """SCAO, AdamW and LoRA+ over learning rates on LoRAs of several ranks, alphas and starts."""
    from benchmarks import transfer
    from benchmarks.suite import Machine
    from scao_hf.finetune.comparison.store import RunStore

    machine, folder = Machine(data_dir, device, cache=out / "cache"), out / "transfer"
    numbers, variations = [int(seed) for seed in seeds.split(",")], transfer.chosen_variations(only)
    store, started = RunStore(folder / "runs.jsonl"), time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] transfer  {line}", file=sys.stderr, flush=True)

    transfer.make_all(machine, store, variations, numbers, workers, tell)
    for path in transfer.write(machine, store, transfer.VARIATIONS, numbers, folder):
        print(path)


@app.command("recertify")
def recertify_runs(
    optimizer: Annotated[str, typer.Argument(help="Whose kept runs.")],
    names: Annotated[list[str], typer.Argument(help="Studies, or `published`.")],
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    device: Device = "cpu",
) -> None:
    """After a change of code that changes no number: make one kept run again, and keep the others if it is the same."""
    from benchmarks.recertify import recertify
    from benchmarks.suite import Machine
    from scao_hf.finetune.comparison.store import RunStore

    for name in names:
        store = RunStore(out / name / "runs.jsonl")
        count = recertify(Machine(data_dir, device, cache=out / "cache"), store, optimizer, lambda line: print(line))
        print(f"{name}: {count} runs of {optimizer} stand for the code as it is")


@app.command("timing")
def time_studies(
    names: Annotated[list[str], typer.Argument(help="Studies whose optimizers are timed on their task.")],
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    device: Device = "cpu",
) -> None:
    """Time the steps of a study's optimizers in turn, in one process; leave the machine to it."""
    import torch

    from benchmarks.suite import Machine, chosen_studies
    from benchmarks.timing import told

    torch.set_num_threads(1)
    for name, study in chosen_studies(names).items():
        measured = study.timing(Machine(data_dir, device, cache=out / "cache"))
        path = out / name / "timing.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print("\n".join(told(measured["arms"])))


@app.command("report")
def report_studies(
    names: Annotated[list[str] | None, typer.Argument(help="Studies; without any, all that have runs.")] = None,
    out: Out = Path("runs/benchmarks"),
    readme: Annotated[Path | None, typer.Option(help="A file whose block of results is replaced.")] = None,
) -> None:
    """Write tables, CSV and figures of the runs that are there; nothing is trained."""
    from benchmarks.reporting.report import write_reports

    for path in write_reports(names or [], out, readme):
        print(path)


@app.command("replay")
def replay_gradients(
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    quick: Annotated[bool, typer.Option("--quick", help="60 steps and a small grid, under two minutes.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the recorded run; 300.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="The last so many are recorded; 200.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Modules to record; repeat it.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the model; 1m.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="That trains the recorded run; adamw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the recorded run; 1.")] = None,
) -> None:
    """Record gradients once and replay them through trackers and optimizers; nothing else is trained."""
    from benchmarks.replay.study import FULL, QUICK, command, replay
    from benchmarks.suite import Machine

    asked: dict[str, Any] = {
        "steps": steps,
        "window": window,
        "size": size,
        "optimizer": optimizer,
        "seed": seed,
        "layers": layer,
    }
    base = QUICK if quick else FULL
    plan = replace(base, **{name: value for name, value in asked.items() if value is not None})
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] replay  {line}", file=sys.stderr, flush=True)

    machine = Machine(data_dir, cache=out / "cache")
    replay(machine, plan, out / "replay", command(plan, base, data_dir is not None), tell)
    print(out / "replay" / "summary.md")


@app.command("published")
def measure_published(
    data_dir: DataDir = None,
    out: Out = Path("runs/benchmarks"),
    workers: Workers = 2,
    seeds: Annotated[str, typer.Option(help="A verdict needs three.")] = "42,43,44",
    only: Annotated[list[str] | None, typer.Option(help="Claims, such as A1 or '500/*'; repeat it.")] = None,
    timing: Annotated[
        bool, typer.Option("--timing", help="Instead of training, time pairs on an idle machine.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write what the runs at hand say.")] = False,
    page: Annotated[Path, typer.Option(help="A page whose block of results is replaced, if it is there.")] = Path(
        "docs/published-claims.md"
    ),
    device: Device = "cpu",
) -> None:
    """Measure the claims of SCAO 0.1 again, then write tables, figures and the page of claims."""
    from benchmarks.published.claims import chosen_claims, needed_arms
    from benchmarks.published.report import write_report
    from benchmarks.published.runs import RUNS, make_all, write_timing
    from benchmarks.suite import Machine
    from scao_hf.finetune.comparison.store import RunStore

    started, folder = time.monotonic(), out / "published"
    machine, numbers = Machine(data_dir, device, cache=out / "cache"), [int(seed) for seed in seeds.split(",")]

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", file=sys.stderr, flush=True)

    if timing:
        write_timing(machine, folder, tell)
    elif not report_only:
        arms = needed_arms(chosen_claims(only or []))
        make_all(machine, RunStore(folder / RUNS), arms, numbers, workers, tell)
    for path in write_report(folder, numbers, page if page.exists() else None):
        print(path)


@app.command("step")
def measure_steps(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all without one.")] = None,
    out: Out = Path("runs/benchmarks"),
    optimizer: Annotated[list[str] | None, typer.Option(help="Others than the usual; repeat it.")] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="At most this many are measured, and scaled; 1 on a CPU, else all.")
    ] = None,
    embedding: Annotated[bool, typer.Option(help="Measure what is outside of the layers, too.")] = True,
    periods: Annotated[int, typer.Option(min=1, help="Of ten timed steps.")] = 2,
    seconds: Annotated[float, typer.Option(help="For each optimizer on each model; who needs more is left out.")] = 600,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    device: Device = "cpu",
) -> None:
    """Time optimizer.step() alone on the layer shapes of real models; leave the machine to it."""
    import torch

    from benchmarks.environment import environment
    from benchmarks.step.architectures import ARCHITECTURES
    from benchmarks.step.measure import DEFAULT_OPTIMIZERS, Plan, measure
    from benchmarks.step.report import write_step

    torch.set_num_threads(threads)
    started, among = time.monotonic(), optimizer or DEFAULT_OPTIMIZERS
    plan = Plan(device, threads, layers or (1 if device == "cpu" else None), embedding, periods, seconds)

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", file=sys.stderr, flush=True)

    found = [measure(name, among, plan, tell) for name in names or ARCHITECTURES]
    write_step(found, plan, among, environment(torch.device(device)), out / "step")
    print(out / "step" / "summary.md")


if __name__ == "__main__":
    try:
        app()
    except (ValueError, FileNotFoundError, ProtocolError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues from the runs that were finished", file=sys.stderr)
        sys.exit(130)
