"""Loggers for `optimizer.add_callback`: the curvature's diagnostics to a console, to TensorBoard or to W&B."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from scao_hf.optim.kronecker import require_count

if TYPE_CHECKING:
    from scao_hf.optim.kronecker import KroneckerOptimizer

PHASES = ("adam", "ramp", "preconditioned")


class _EveryFewSteps:
    """Reads the diagnostics every `log_every` steps (one device synchronisation) and passes them on."""

    def __init__(self, log_every: int) -> None:
        require_count("log_every", log_every, 1)
        self.log_every = log_every

    def __call__(self, optimizer: KroneckerOptimizer, step: int) -> None:
        if step % self.log_every == 0:
            self.write(step, optimizer.diagnostics())

    def write(self, step: int, diagnostics: dict[str, float]) -> None:
        raise NotImplementedError


class ConsoleLogger(_EveryFewSteps):
    """One line every `log_every` steps: phase, blend, rank, spectral mass kept, curvature, state.

    Args:
        log_every: steps between lines.
        stream: where to; standard error if None.
    """

    def __init__(self, log_every: int = 100, stream: TextIO | None = None) -> None:
        super().__init__(log_every)
        self._stream = stream

    def write(self, step: int, diagnostics: dict[str, float]) -> None:
        line = (
            f"step {step}: {PHASES[int(diagnostics['phase'])]}, blend {diagnostics['blend']:.0%}, "
            f"rank {diagnostics['rank_mean']:.1f} (max {diagnostics['rank_max']:.0f}), "
            f"mass {diagnostics['mass_kept']:.1%}, curvature {diagnostics['curvature_norm']:.2e}, "
            f"drift {diagnostics['basis_drift']:.1%}, state {diagnostics['state_bytes'] / 2**20:.1f} MiB"
        )
        failures = int(diagnostics["failures"])
        print(line + (f", {failures} failed factorisations" if failures else ""), file=self._stream or sys.stderr)


class TensorBoardLogger(_EveryFewSteps):
    """Scalars `scao/rank_mean`, `scao/phase`, … of `optimizer.diagnostics()`.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar`.
        log_every: steps between points.
    """

    def __init__(self, writer: Any, log_every: int = 100) -> None:
        super().__init__(log_every)
        self._writer = writer

    def write(self, step: int, diagnostics: dict[str, float]) -> None:
        for name, value in diagnostics.items():
            self._writer.add_scalar(f"scao/{name}", value, step)


class WandbLogger(_EveryFewSteps):
    """The same scalars to Weights & Biases.

    Args:
        run: a run; the current one (`wandb.run`) if None.
        log_every: steps between points.
    """

    def __init__(self, run: Any = None, log_every: int = 100) -> None:
        super().__init__(log_every)
        self._run = run

    def write(self, step: int, diagnostics: dict[str, float]) -> None:
        run = self._run
        if run is None:
            import wandb

            run = wandb.run
        if run is None:
            raise RuntimeError("WandbLogger found no run: call wandb.init() first, or pass WandbLogger(run=...)")
        run.log({f"scao/{name}": value for name, value in diagnostics.items()}, step=step)
