"""The notebooks run from the first cell to the last, made small, and are stored without what they print."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {"FACTS": 320, "FACTS_EPOCHS": 1, "RECORDS": 48, "EPOCHS": 32, "HELD_OUT": 16}
SMALLER = {"first_judge": SMALL, "compare_judges": {**SMALL, "NUM_COTS": 2}}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def parameters(notebook):
    """The cell with the parameters, and their values."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, {}, values)
    return cell, values


def execute(notebook, folder, **values):
    """The notebook's cells after it has run in `folder`, with `values` in the place of its own parameters."""
    cell, known = parameters(notebook)
    assert values.keys() <= known.keys(), "a parameter that the notebook does not have"
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in {**known, **values}.items())
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


def outputs(cells, kind):
    """What the cells gave of a MIME type, in their order."""
    found = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def printed(cells):
    found = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.get("name") == "stdout")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", "/nonexistent")  # nobody's own settings


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_in_short_cells(path):
    notebook = read(path.stem)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.cells[0].source.startswith("# ")
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source
            assert len(cell.source.splitlines()) <= 14, cell.source
            ast.parse(cell.source)  # no magics: the code is Python anywhere
        assert max(map(len, cell.source.splitlines())) <= 125, cell.source


def test_each_notebook_is_executed_here():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALLER)


def test_a_first_judge_is_trained_and_judges(tmp_path):
    cells = execute(read("first_judge"), tmp_path, **SMALLER["first_judge"])
    folder = tmp_path / "first_judge"
    assert all((folder / name / "judge_config.json").is_file() for name in ("stage1", "judge"))
    assert len(outputs(cells, "image/png")) == 2
    text = printed(cells)
    assert "annotator: one looks" in text and "  stage 1: " in text
    assert "48 of 48 rows have a score to train on." in "".join(outputs(cells, "text/html")) + text
    assert "RAIL" in outputs(cells, "text/plain")[-2]


def test_two_judges_are_evaluated_and_compared(tmp_path):
    cells = execute(read("compare_judges"), tmp_path, **SMALLER["compare_judges"])
    folder = tmp_path / "compare_judges"
    assert all((folder / f"{name}.json").is_file() for name in ("stage1", "stage2"))
    assert len(outputs(cells, "image/png")) == 5
    assert "A is stage2, B is stage1." in "".join(outputs(cells, "text/plain"))
    assert "Pearson, A - B: " in printed(cells)


def test_a_cell_that_fails_fails_the_test(tmp_path):
    notebook = read("first_judge")
    notebook.cells = [parameters(notebook)[0], new_code_cell("assert HELD_OUT != 12, 'seen'")]
    with pytest.raises(CellExecutionError, match="seen"):
        execute(notebook, tmp_path, HELD_OUT=12)


def test_a_parameter_that_a_notebook_does_not_have_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="does not have"):
        execute(read("first_judge"), tmp_path, HELDOUT=12)
