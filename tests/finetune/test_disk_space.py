"""The space that a run will need: foretold as it is then used, and refused before weights where it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scao_hf.finetune import model, settings
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.inputs import load_inputs
from scao_hf.finetune.observer import Observer, Silence
from scao_hf.finetune.planning.disk import shortage
from scao_hf.finetune.planning.outcome import Disk
from scao_hf.finetune.planning.plan import plan
from scao_hf.finetune.planning.space import expected_use
from scao_hf.finetune.quiet import quiet
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.run import finetune

SAVING = ["save_strategy=steps", "save_steps=1", "data.sample_tokens=0"]


class Noting(Observer):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes the disk has left."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))


def foretold(recipe_file: Path, *overrides: str) -> Disk:
    recipe = load_recipe(str(recipe_file), overrides)
    with quiet():
        return expected_use(recipe, load_inputs(recipe, 42, Silence()), settings.output_directory(recipe))


@pytest.mark.parametrize("overrides", [[], ["lora=null", "optim=adamw_torch"]])
def test_what_is_foretold_is_what_lies_there(
    recipe_file: Path, overrides: list[str], free: Callable[[int], None]
) -> None:
    free(1 << 30)
    told = foretold(recipe_file, *SAVING, *overrides)
    recipe = load_recipe(str(recipe_file), [*SAVING, *overrides])
    assert told == plan(recipe).disk
    run = finetune(recipe).output_dir
    checkpoints = list(run.glob("checkpoint-*"))
    assert len(checkpoints) == told.checkpoints == 3
    heavy = [file for name in ("*.safetensors", "optimizer.pt") for file in checkpoints[0].glob(name)]
    # Headers of the files, and torch's pickled names of the state's tensors.
    assert 0 <= sum(file.stat().st_size for file in heavy) - told.checkpoint < 64 * 1024


def test_a_run_without_space_for_one_checkpoint_is_refused_before_weights_are_loaded(
    recipe_file: Path, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, loaded = foretold(recipe_file, *SAVING), []
    monkeypatch.setattr(model, "load_model", lambda *_args: loaded.append(1))
    free(told.saved + told.checkpoint - 1)
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), SAVING))
    assert (caught.value.code, caught.value.exit_code) == ("disk.space", 7)
    assert caught.value.message.startswith("a checkpoint and the trained weights take ")
    assert caught.value.hint == "free some space, or training.output_dir=ELSEWHERE"
    assert not loaded
    assert not (recipe_file.parent / "run").exists()


def test_a_run_without_space_for_all_its_checkpoints_is_told_how_many_there_is_space_for(
    recipe_file: Path, free: Callable[[int], None]
) -> None:
    told = foretold(recipe_file, *SAVING)
    free(told.total - 1)
    noting = Noting()
    finetune(load_recipe(str(recipe_file), SAVING), noting)
    assert len(noting.notices) == 1
    assert "the run will stop when the disk is full; training.save_total_limit=1, or another" in noting.notices[0]
    with_limit = foretold(recipe_file, *SAVING, "training.save_total_limit=1", f"output_dir={recipe_file.parent}/new")
    assert shortage(with_limit) is None


def test_an_earlier_run_makes_room_for_the_next(recipe_file: Path, free: Callable[[int], None]) -> None:
    free(1000)
    for folder, size in (("checkpoint-2", 70), ("adapter", 20), ("mine", 5)):
        (recipe_file.parent / "run" / folder).mkdir(parents=True)
        (recipe_file.parent / "run" / folder / "file").write_bytes(bytes(size))
    assert foretold(recipe_file, *SAVING).available == 1090


def test_a_run_without_checkpoints_needs_space_for_its_weights_alone(
    recipe_file: Path, free: Callable[[int], None]
) -> None:
    told = foretold(recipe_file, "save_strategy=no")
    assert (told.checkpoints, told.total) == (0, told.saved)
    free(told.saved - 1)
    with pytest.raises(FinetuneError, match=r"^the trained weights take "):
        finetune(load_recipe(str(recipe_file), ["save_strategy=no"]))


def test_a_stream_is_counted_by_its_steps(recipe_file: Path) -> None:
    streamed = ["data.streaming=true", "max_steps=50", "data.test_split_size=4", "save_steps=10", "save_strategy=steps"]
    assert foretold(recipe_file, *streamed).checkpoints == 5


@pytest.mark.parametrize(
    ("available", "hint"),
    [(70, None), (69, "training.save_total_limit=4"), (30, "training.save_total_limit=1"), (29, "save_strategy=no")],
)
def test_the_advice_fits_the_space(available: int, hint: str | None) -> None:
    short = shortage(Disk(checkpoint=10, checkpoints=6, saved=10, available=available))
    assert (short is None) == (hint is None)
    if short is not None:
        assert short[1].startswith(hint if hint != "save_strategy=no" else "training.save_strategy=no")


def test_an_adapter_that_fits_no_layer_is_refused_before_weights_are_loaded(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(model, "load_model", load)
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), ["lora.target_modules=[no_such_layer]"]))
    assert caught.value.code == "model.target-modules"
