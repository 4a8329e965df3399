"""The notebook of the documentation: it runs as it is shown, and is shown as it ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "quickstart.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def results(notebook: Any) -> list[list[str]]:
    """The kinds of what each cell returns; what the libraries print depends on which of them are installed."""
    cells = code_cells(notebook)
    return [[kind for output in cell.outputs for kind in sorted(output.get("data", {}))] for cell in cells]


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = results(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert results(notebook) == committed
    assert (tmp_path / "runs" / "notebook" / "adapter").is_dir()
    last = code_cells(notebook)[-1].outputs[-1]
    assert "image/svg+xml" in last.data


def test_the_committed_notebook_holds_its_outputs_and_no_path_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    assert sum(bool(cell.outputs) for cell in cells) >= 5
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert str(NOTEBOOK.parent.parent) not in text
