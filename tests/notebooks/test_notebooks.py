"""The notebooks run as a reader would run them: in a kernel, cell by cell, with nothing downloaded."""

import os
import re
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from etude import registry

FOLDER = Path(__file__).parents[2] / "notebooks"
SECONDS = 400
"""For a notebook: some take 30 s on an idle core, and a busy machine may take many times as long."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_each_study_has_a_notebook():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(registry.NAMES)


@pytest.mark.parametrize("name", registry.NAMES)
def test_the_source_is_clean(name: str):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        # Names, not what an editor draws at random.
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), cell.id
        assert cell.metadata == {}, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@pytest.mark.parametrize("name", registry.NAMES)
def test_it_teaches_with_the_studys_own_parts(name: str):
    notebook = read(name)
    code = code_of(notebook)
    parts = set(re.findall(rf"^from etude\.studies\.{name}\.(\w+) import", code, re.MULTILINE))
    assert "study" in parts
    assert len(parts) >= 2, f"more of etude.studies.{name} than its presets"
    assert "STUDY.shipped_weights" in code
    assert "train_step" in code
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "$$" in prose
    assert re.search(r"## Exercises\n\n1\. ", prose)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        assert (FOLDER / target).is_file(), target


@pytest.mark.parametrize("name", registry.NAMES)
def test_it_runs(name: str, tmp_path: Path):
    kept = {key: value for key, value in os.environ.items() if key not in ("ETUDE_MIRROR", "MPLBACKEND")}
    # A proxy that is not there: whatever asked the network would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    own = {"ETUDE_CACHE": str(tmp_path / "cache"), "IPYTHONDIR": str(tmp_path / "ipython"), "OMP_NUM_THREADS": "1"}
    place = tmp_path / "here"
    place.mkdir()
    notebook = read(name)
    resources = {"metadata": {"path": str(place)}}
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources)
    began = time.monotonic()
    # A cell that fails raises.
    client.execute(env=kept | nowhere | own)
    assert time.monotonic() - began < SECONDS
    assert not list(place.iterdir()), "files beside the notebook"
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    warned = [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]
    assert not warned
