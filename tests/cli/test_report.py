"""``etude report`` and ``etude compare``: what they are asked for, where it goes, and one line for each fault."""

import json
from pathlib import Path

import pytest
from tests.report import folders

from etude.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, without the committed results."""
    monkeypatch.chdir(tmp_path)
    for module in ("results", "page"):
        monkeypatch.setattr(f"etude.report.{module}.committed", lambda: tmp_path / "committed")
    return tmp_path


Capture = pytest.CaptureFixture[str]


def fault(capsys: Capture, *words: str) -> str:
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("etude: ")
    assert printed.out == ""
    return line


def written(capsys: Capture, *words: str) -> tuple[Path, list[str]]:
    """The file whose path was printed, and the lines on standard error."""
    assert main(["report", *words]) == 0
    printed = capsys.readouterr()
    path = Path(printed.out.removesuffix("\n"))
    assert path.is_file()
    return path, printed.err.splitlines()


@pytest.mark.parametrize(
    ("words", "place", "begins"),
    [
        ((), "report/index.html", "<!doctype html>"),
        (("protonet",), "report/protonet.html", "<!doctype html>"),
        (("runs/protonet/a",), "report/protonet-a.html", "<!doctype html>"),
        (("--format", "markdown"), "report/index.md", "# etude: report"),
        (("protonet", "--out", "x.md"), "x.md", "# Prototypical Networks: report"),
        (("protonet", "--out", "new/x.md", "--format", "html"), "new/x.md", "<!doctype html>"),
        (("runs/protonet/a/", "--out", "x.txt"), "x.txt", "<!doctype html>"),
    ],
)
def test_what_goes_where(words: tuple[str, ...], place: str, begins: str, capsys: Capture) -> None:
    folders.finish(Path("runs/protonet/a"))
    path, said = written(capsys, *words)
    assert str(path) == place
    assert path.read_text().lstrip().startswith(begins)
    assert said == []
    assert "etude run protonet laptop" in path.read_text()


def test_a_report_from_inside_the_run(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders.begin(Path("runs/protonet/a")).path)
    path, _ = written(capsys, ".")
    assert str(path) == "report/protonet-a.html"


def test_an_older_report_is_replaced(capsys: Capture) -> None:
    Path("x.html").write_text("old")
    assert "old" not in written(capsys, "protonet", "--out", "x.html")[0].read_text()[:100]


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (("report", "protonets"), ("'protonets' is no study and no run's folder", "did you mean 'protonet'?")),
        (("report", "runs/protonet/none"), ("is no study and no run's folder",)),
        (("report", "n" * 300), ("is no study and no run's folder",)),
        (("report", "runs/protonet"), ("is not a run folder (it has no config.yaml)",)),
        (("report", "protonet", "--out", "runs"), ("runs is a folder", "such as --out runs/report.html")),
        (("report", "protonet", "--out", "file/x.html"), ("cannot write file/x.html",)),
        (("report", "protonet", "--out", "n" * 300), ("cannot write",)),
        (("report", "protonet", "--format", "pdf"), ("--format", "pdf")),
        (("report", "--runs", "nowhere"), ("--runs nowhere is no folder",)),
        (("report", "--runs", "file"), ("--runs file is no folder",)),
        (("report", "--runs", "n" * 300), ("is no folder",)),
        (("compare", "--runs", "nowhere"), ("--runs nowhere is no folder",)),
        (("compare", "--format", "html"), ("--format", "html")),
    ],
)
def test_faults_are_one_line(words: tuple[str, ...], hints: tuple[str, ...], capsys: Capture) -> None:
    Path("file").touch()
    Path("runs/protonet").mkdir(parents=True)
    line = fault(capsys, *words)
    assert all(hint in line for hint in hints), line
    assert sorted(path.name for path in Path().iterdir()) == ["file", "runs"]


def test_a_place_that_may_not_be_written(capsys: Capture) -> None:
    """Not even by the superuser."""
    if not Path("/proc/version").exists():
        pytest.skip("no /proc")
    assert "cannot write /proc/x.html" in fault(capsys, "report", "protonet", "--out", "/proc/x.html")


def test_a_run_of_an_unknown_study(capsys: Capture) -> None:
    """Named alone it is a fault; among others it is left out with one line."""
    path = folders.finish(Path("runs/gpt/a")).path
    for name in ("config.yaml", "summary.json"):
        (path / name).write_text((path / name).read_text().replace("protonet", "gpt"))
    assert "no study 'gpt'" in fault(capsys, "report", "runs/gpt/a")
    folders.finish(Path("runs/protonet/a"))
    line = "etude: runs/gpt/a is of the study 'gpt', which this etude does not have: left out"
    assert written(capsys)[1] == [line]
    assert main(["compare", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [line]
    assert {row["ours"] for row in json.loads(printed.out) if row["study"] == "protonet"} == {99.0, None}


def test_an_empty_folder_of_runs(capsys: Capture) -> None:
    Path("none").mkdir()
    assert written(capsys, "protonet", "--runs", "none")[1] == [
        "etude: no further runs in none: the report is of what is there without it"
    ]
    assert written(capsys, "protonet")[1] == [], "nobody named runs/"
    folders.begin(Path("none/protonet/a"))
    assert written(capsys, "protonet", "--runs", "none")[1] == []


def test_a_broken_summary(capsys: Capture) -> None:
    (folders.begin(Path("runs/protonet/a")).path / "summary.json").write_text('{"format": 1, "stu')
    path, said = written(capsys, "protonet")
    assert len(said) == 1
    assert "runs/protonet/a/summary.json cannot be read as JSON" in said[0]
    assert "interrupted at step 300" in path.read_text()
    assert main(["compare", "protonet"]) == 0
    assert "summary.json cannot be read as JSON" in capsys.readouterr().err


def test_compare_as_markdown(capsys: Capture) -> None:
    folders.finish(Path("runs/protonet/a"))
    assert main(["compare", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n## ") == 7
    assert "| 99.00 | 98.90 to 99.10 | 0 | laptop |" in printed
    assert main(["compare", "protonet", "--format", "json"]) == 0
    as_format = capsys.readouterr().out
    assert main(["compare", "protonet", "--json"]) == 0
    assert capsys.readouterr().out == as_format
