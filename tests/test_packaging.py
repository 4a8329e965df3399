"""What is on disk is what is listed, and what is listed is what a wheel installs."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"scao_hf": "scao_hf", "cli": "scao_hf.cli", "recipes": "scao_hf.recipes"}
"""Top-level folders of the repository and the packages they are installed as."""

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc")


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for folder, package in MAPPED.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / folder).parts
            found[".".join([package, *inner])] = init.parent
    return found


def package_of(file: Path) -> str:
    """The innermost package that holds a file."""
    folders = {folder: name for name, folder in packages_on_disk().items()}
    return next(folders[parent] for parent in file.parents if parent in folders)


def data_files() -> dict[Path, str]:
    """Files that are not Python, with the package that installs them."""
    return {file: package_of(file) for folder in MAPPED for file in files_below(ROOT / folder) if file.suffix != ".py"}


def test_the_package_list_is_what_is_on_disk() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_every_folder_with_python_in_it_is_a_package() -> None:
    folders = {file.parent for folder in MAPPED for file in files_below(ROOT / folder) if file.suffix == ".py"}
    assert folders == set(packages_on_disk().values())


def test_mapped_folders_are_the_ones_set_up() -> None:
    assert SETUPTOOLS["package-dir"] == {package: folder for folder, package in MAPPED.items()}


@pytest.mark.parametrize("folder", ["cli", "recipes"])
def test_mapped_folders_stay_flat(folder: str) -> None:
    assert [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("file", data_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_data_file_is_listed(file: Path) -> None:
    package = package_of(file)
    inside = file.relative_to(packages_on_disk()[package]).as_posix()
    patterns = SETUPTOOLS["package-data"].get(package, [])
    # A star of setuptools stays within one folder.
    assert any(fnmatch.fnmatch(inside, p) and inside.count("/") == p.count("/") for p in patterns), (
        f"{inside} is in no pattern of package-data for {package}: {patterns}"
    )


@pytest.mark.parametrize(
    ("package", "pattern"), [(package, p) for package, ps in SETUPTOOLS["package-data"].items() for p in ps]
)
def test_every_data_pattern_finds_something(package: str, pattern: str) -> None:
    assert list(packages_on_disk()[package].glob(pattern))


def test_recipes_and_the_embedded_model_are_there() -> None:
    names = {file.name for file in data_files()}
    assert {"py.typed", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert any(file.suffix == ".yaml" for file in data_files())
    assert any(file.suffix == ".jsonl" for file in data_files())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a source distribution of a copy of the tree, as `python -m build` does."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs setuptools 77 to build")
    work = tmp_path_factory.mktemp("packaging")
    copy = work / "copy"
    copy.mkdir()
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (source,) = build("build_sdist", copy, work)
    with tarfile.open(source) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    (built,) = build("build_wheel", unpacked, work)
    return zipfile.ZipFile(built)


def build(hook: str, tree: Path, work: Path) -> list[Path]:
    target = work / hook
    target.mkdir()
    program = f"from setuptools import build_meta; build_meta.{hook}({str(target)!r})"
    finished = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return list(target.iterdir())


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        "/".join([*package.split("."), *file.relative_to(ROOT / folder).parts])
        for folder, package in MAPPED.items()
        for file in files_below(ROOT / folder)
    }
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == expected


def test_a_wheel_installs_one_top_level_package_only(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert sorted(top for top in tops if not top.endswith(".dist-info")) == ["scao_hf"]


def test_a_wheel_runs_the_demo_offline_away_from_the_repository(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    program = "import sys, scao_hf; print(scao_hf.__file__); from scao_hf.cli.main import main; sys.exit(main())"
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),  # comes before the editable installation that runs these tests
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty"),
    }
    finished = subprocess.run(
        [sys.executable, "-c", program, "demo", "-q", "training.max_steps=2", "data.max_samples=120"],
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(str(tmp_path / "site"))
    assert (tmp_path / "runs" / "demo" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_wheel_names_its_command_its_licence_and_its_version(wheel: zipfile.ZipFile) -> None:
    from scao_hf import __version__

    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert info == f"scao_hf-{__version__}.dist-info"
    assert "scao-finetune = scao_hf.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


@pytest.mark.parametrize("extra", ["hf", "cli", "tensorboard", "wandb", "dev"])
def test_each_documented_extra_exists(extra: str, wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert f"Provides-Extra: {extra}\n" in wheel.read(metadata).decode()
