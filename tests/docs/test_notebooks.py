"""The notebooks run from the first cell to the last, with fewer steps, and are stored without outputs."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SAID = {"comparison": "reviews|praise|recommended|lora", "inside": "as it was: True"}


def cells(path, kind):
    notebook = json.loads(path.read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_jupyter_reads_it(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert notebook["nbformat"] == 4 and notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert "".join(cells(path, "markdown")[0]["source"]).startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code")):
        text = re.sub(r"(STEPS = |max_steps=)\d+", r"\g<1>2", "".join(cell["source"]))
        exec(compile(text, f"{path.name} cell {number}", "exec"), names)
    assert re.search(SAID[path.stem], capsys.readouterr().out)


def test_there_are_two():
    assert {path.stem for path in NOTEBOOKS} == set(SAID)
