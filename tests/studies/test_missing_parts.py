"""A study of study.py, model.py and task.py alone trains; a verb that wants another part says so in one line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etude import registry, studies
from etude.core.study import Study

NAME = "bare"
PARTS = ("study.py", "model.py", "task.py")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The study, known to the registry while these tests run."""
    place = tmp_path_factory.mktemp("studies")
    template = Path(registry.__file__).parent / "runs" / "template"
    (place / NAME).mkdir()
    (place / NAME / "__init__.py").touch()
    for part in PARTS:
        text = (template / f"{part}.txt").read_text().replace("NAME", NAME).replace("Name", NAME.capitalize())
        (place / NAME / part).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "__path__", [*studies.__path__, str(place)])
        patch.setattr(registry, "NAMES", (*registry.NAMES, NAME))
        yield registry.load(NAME)
    for module in [name for name in sys.modules if name.startswith(f"etude.studies.{NAME}")]:
        del sys.modules[module]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(bare: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from etude import cli

    runs = tmp_path_factory.mktemp("runs")
    assert cli.main(["run", NAME, "smoke", "--name", "one", "--runs", str(runs), "--loop.max-steps", "2"]) == 0
    return runs / NAME / "one"


def test_it_trains_and_the_line_says_that_nothing_is_drawn(bare: Study, here: Path, etude: Any) -> None:
    answer = etude("run", NAME, "smoke", "--name", "one", "--loop.max-steps", "2")
    assert answer.status == 0
    assert "has no figures.py yet" in answer.err
    assert (here / "runs" / NAME / "one" / "summary.json").is_file()
    assert list((here / "runs" / NAME / "one" / "figures").iterdir()) == []


def test_its_verbs_work_or_name_the_missing_part(trained: Path, here: Path, etude: Any, refused: Any) -> None:
    assert etude("eval", trained).status == 0
    assert etude("export", trained, "--out", here / "x.safetensors").status == 0
    refused("predict", trained, __file__, says=("'bare' has no predict.py yet",))
    refused("predict", NAME, "--help", says=("'bare' has no predict.py yet",))
    refused("export", trained, "--out", here / "folder", says=("'bare' has no export.py yet",))
    refused("export", trained, "--out", here / "x.onnx", says=("'bare' has no export.py yet",))
    assert not (here / "folder").exists()
    assert not (here / "x.onnx").exists()


@pytest.mark.parametrize("what", ["study", "run"])
def test_its_report_says_that_nothing_is_published(what: str, trained: Path, here: Path, etude: Any) -> None:
    words = {"study": (NAME, "--runs", trained.parents[1]), "run": (trained,)}[what]
    answer = etude("report", *words, "--out", here / "report.html")
    assert answer.status == 0
    assert ("has no reference.toml yet" in answer.err) == (what == "study")
    assert "one" in (here / "report.html").read_text()


def test_it_is_compared_and_shown(bare: Study, here: Path, etude: Any) -> None:
    for verb in ("compare", "show"):
        answer = etude(verb, NAME)
        assert answer.status == 0
        assert "Traceback" not in answer.err
    assert "has no reference.toml yet" in etude("compare", NAME).err


def test_the_page_leaves_its_tab_out(bare: Study) -> None:
    from etude.serve import app

    assert NAME not in app.tabs()
    assert app.tabs().keys() >= {"runs"}
