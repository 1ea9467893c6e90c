"""The notebooks of the documentation run, and hold the outputs that they have when they run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "run_notebooks.py")
run_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_notebooks)

MAX_BYTES = 300_000
NUMBER = re.compile(r"[-+]?\d+\.\d+")
VERSION = ".".join(map(str, sys.version_info[:2]))


def notebook_name(path):
    return path.stem


def outputs_of(notebook):
    """Return the outputs by cell, but those of installing and of cells whose outputs vary, such as times."""
    return {
        cell.id: cell.outputs
        for cell in notebook.cells
        if cell.cell_type == "code" and not {"install", "varies"} & set(cell.metadata.get("tags", ()))
    }


def texts_of(output):
    """Return the plain text and the HTML of an output."""
    data = output.get("data", {})
    return [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]


def same(one, other):
    """Whether two texts are equal, and their numbers nearly so: engines round differently on other processors."""
    numbers = [list(map(float, NUMBER.findall(text))) for text in (one, other)]
    return NUMBER.sub("#", one) == NUMBER.sub("#", other) and numbers[0] == pytest.approx(numbers[1], abs=0.02)


def test_numbers_may_differ_a_little():
    """The comparison takes what another processor rounds, and nothing else."""
    assert same("score 1.234, rank 2", "score 1.241, rank 2")
    assert not same("score 1.234", "score 1.334")
    assert not same("rank 2", "rank 3")
    assert not same("1.5 a", "1.5 b")


@pytest.mark.parametrize("path", run_notebooks.NOTEBOOKS, ids=notebook_name)
def test_a_notebook_runs_and_has_the_outputs_that_it_shows(path, tmp_path):
    """Every cell but the installation runs without an error or a warning, and the texts are those in the file."""
    fresh = run_notebooks.run(path, tmp_path, timeout_s=240)
    outputs = [output for cell in fresh.cells for output in cell.get("outputs", ())]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    shown = nbformat.read(path, as_version=4)
    # The texts of the notebooks come with Python.
    if shown.metadata.language_info.version != VERSION:
        return
    expected = outputs_of(shown)
    assert outputs_of(fresh).keys() == expected.keys()
    for cell_id, outputs in outputs_of(fresh).items():
        assert [one.output_type for one in outputs] == [one.output_type for one in expected[cell_id]], cell_id
        for one, other in zip(outputs, expected[cell_id], strict=True):
            assert one.get("data", {}).keys() == other.get("data", {}).keys(), cell_id
            for text, old in zip(texts_of(one), texts_of(other), strict=True):
                assert same(text, old), f"{cell_id}: run `python scripts/run_notebooks.py`\n{old}\n---\n{text}"


@pytest.mark.parametrize("path", run_notebooks.NOTEBOOKS, ids=notebook_name)
def test_a_notebook_is_fit_to_be_read(path):
    """It is small, was run, shows a picture, and says nothing of the machine on which it ran."""
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    (install,) = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", ())]
    assert install.source.startswith("%pip install -q ")
    assert "ipywidgets" in install.source, "without it, readers see a TqdmWarning"
    assert install.outputs == []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell is not install]
    assert ran == list(range(1, len(ran) + 1))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    # Such as /home/name/..., C:\\Users\\..., <... object at 0x7f...>.
    assert re.findall(r"[\"' (](?:/(?:home|root|tmp|usr|var|work|Users)/|[A-Z]:\\\\)|at 0x[0-9a-f]{6}", text) == []


@pytest.mark.parametrize("path", run_notebooks.NOTEBOOKS, ids=notebook_name)
def test_links_of_a_notebook_resolve(path):
    """A link to a file of the repository finds it."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", cell.source):
                assert (path.parent / link).exists(), link


def test_an_error_in_a_notebook_is_not_missed(tmp_path):
    """A cell that raises fails the run."""
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "broken.ipynb")
    with pytest.raises(run_notebooks.CellExecutionError, match="ZeroDivisionError"):
        run_notebooks.run(tmp_path / "broken.ipynb", tmp_path, timeout_s=240)
