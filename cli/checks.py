"""The checks of `doctor`: each looks at one thing and says what it found, and what would do where it is not well."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scao_hf._version import __version__

from . import figures

DISTRIBUTION = "scao-hf"
OPTIONAL = {
    "bitsandbytes": "4-bit and 8-bit models: pip install bitsandbytes",
    "tensorboard": 'training.report_to=tensorboard: pip install "scao-hf[tensorboard]"',
    "wandb": 'training.report_to=wandb: pip install "scao-hf[wandb]"',
}
"""Packages that a run may do without, and what each one brings."""
FREE_BYTES_WANTED = 5 * 1024**3
SELF_TEST_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: str
    """"ok"; "note" for what a run may do without; "fault" for what will stop it."""
    found: str
    hint: str | None = None


def this_program() -> Iterator[Check]:
    yield Check(name=DISTRIBUTION, status="ok", found=__version__)
    yield Check(name="Python", status="ok", found=f"{platform.python_version()} on {platform.platform()}")


def required_packages() -> Iterator[Check]:
    """Every package of the `cli` extra against the version range that this package asks for."""
    for name, wanted in requirements("cli").items():
        yield package(name, wanted)


def requirements(extra: str) -> dict[str, str]:
    """Version ranges by package, those without an extra and those of `extra` and the extras it names."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    ranges: dict[str, str] = {}
    pending, seen = [extra], set()
    declared = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    while pending:
        current = pending.pop()
        seen.add(current)
        for one in declared:
            if one.marker is not None and not one.marker.evaluate({"extra": current}):
                continue
            if one.name == DISTRIBUTION:
                pending += sorted(one.extras - seen)
            else:
                ranges[one.name] = str(one.specifier)
    return dict(sorted(ranges.items()))


def package(name: str, wanted: str) -> Check:
    from packaging.specifiers import SpecifierSet

    repair = 'pip install -U "scao-hf[cli]"'
    version = installed(name)
    if version is None:
        return Check(name=name, status="fault", found=f"not installed ({wanted} wanted)", hint=repair)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Check(name=name, status="fault", found=f"{version}, but {wanted} is wanted", hint=repair)
    return Check(name=name, status="ok", found=version)


def installed(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def optional_packages() -> Iterator[Check]:
    for name, purpose in OPTIONAL.items():
        version = installed(name)
        if version is None:
            yield Check(name=name, status="note", found="not installed", hint=purpose)
        else:
            yield Check(name=name, status="ok", found=version)


def machine() -> Iterator[Check]:
    """The accelerator, what it can compute in, and the processor."""
    import torch

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            yield Check(name=f"GPU {index}", status="ok", found=f"{gpu.name}, {figures.byte_size(gpu.total_memory)}")
        yield half_precision(torch.cuda.is_bf16_supported(including_emulation=False))
    elif torch.backends.mps.is_available():
        yield Check(name="GPU", status="ok", found="Apple (mps)")
    else:
        yield Check(name="GPU", status="note", found="none", hint="training runs on the processor, in float32")
    yield Check(name="processor", status="ok", found=threads)


def half_precision(native: bool) -> Check:
    if native:
        return Check(name="bfloat16", status="ok", found="native")
    return Check(name="bfloat16", status="note", found="not native", hint="model.dtype=auto picks float32 here")


def disk() -> Iterator[Check]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{figures.byte_size(free)} free in {here}"
    if not os.access(here, os.W_OK):
        yield Check(name="disk", status="note", found=f"{here} cannot be written", hint="give train -o FOLDER")
    elif free < FREE_BYTES_WANTED:
        yield Check(
            name="disk", status="note", found=found, hint="checkpoints may not fit: training.save_total_limit=1"
        )
    else:
        yield Check(name="disk", status="ok", found=found)


def hub() -> Iterator[Check]:
    """The cache of downloaded models and data, and whether downloading is switched off."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    held = len(list(cache.glob("models--*"))), len(list(cache.glob("datasets--*")))
    yield Check(name="hub cache", status="ok", found=f"{cache}: {held[0]} models, {held[1]} data sets")
    if constants.HF_HUB_OFFLINE:
        yield Check(name="hub", status="note", found="offline", hint="HF_HUB_OFFLINE is set: nothing is downloaded")
    else:
        yield Check(name="hub", status="ok", found=f"{constants.ENDPOINT} (not contacted)")


def self_test() -> Iterator[Check]:
    """A few steps of SCAO on a least-squares problem: it must reach preconditioning and lower the loss."""
    import torch

    from scao_hf import SCAO

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 12, generator=generator).to(device)
    targets = inputs @ torch.randn(12, 8, generator=generator).to(device)
    weight = torch.nn.Parameter(torch.zeros(12, 8, device=device))
    # Weights that start at zero have far to go: no bound in their units.
    optimizer = SCAO([weight], lr=0.05, weight_decay=0.0, warmup_steps=5, blend_steps=5, precond_freq=5, tau=None)
    start, losses = time.perf_counter(), []
    for _ in range(SELF_TEST_STEPS):
        optimizer.zero_grad()
        loss = (inputs @ weight - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    took = (time.perf_counter() - start) * 1e3
    phase, failures = (optimizer.diagnostics()[name] for name in ("phase", "failures"))
    found = f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {SELF_TEST_STEPS} steps on {device}, {took:.0f} ms"
    if losses[-1] < 0.5 * losses[0] and phase == 2 and failures == 0:
        yield Check(name="SCAO", status="ok", found=found)
    else:
        told = f"{found}; phase {phase:.0f}, {failures:.0f} failed factorisations"
        yield Check(name="SCAO", status="fault", found=told, hint="please report this with the output of doctor --json")
