"""Notebooks are the scripts beside them, hold their outputs, and run (a slow test)."""

import importlib.util
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import ROOT

nbformat = pytest.importorskip("nbformat")
if find_spec("nbclient") is None:
    pytest.skip("the extra `docs` is not installed", allow_module_level=True)
spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "docs" / "notebooks" / "make.py")
assert spec is not None and spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

NOTEBOOKS = [script.with_suffix(".ipynb") for script in make.SCRIPTS]


def test_there_is_one_notebook_for_each_script() -> None:
    assert sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")) == NOTEBOOKS and len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(path: Path) -> None:
    stored, written = nbformat.read(path, as_version=4), make.read(path.with_suffix(".py"))
    parts = [[(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (stored, written)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_it_printed_and_drew(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.output_type in ("stream", "execute_result") for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ipykernel") is None, reason="ipykernel is not installed")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = make.read(path.with_suffix(".py"))
    make.run(notebook, tmp_path)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
