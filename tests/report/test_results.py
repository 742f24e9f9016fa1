"""Runs as they are found on disk: finished, going, stopped, broken, of nobody."""

import fcntl
import json
from pathlib import Path

import pytest
from tests.report.folders import begin, finish, row, summary

from etude import registry
from etude.core.errors import UserError
from etude.report import results

STUDY = registry.load("protonet")


@pytest.fixture(autouse=True)
def _no_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "committed", lambda: tmp_path / "committed")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_committed_results_can_all_be_read(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(results, "committed", lambda: root / "results")
    every = [registry.load(name) for name in registry.NAMES]
    assert results.faults(every, []) == []
    for study in (STUDY, registry.load("dcgan")):
        found, left_out = results.find_runs(study, [])
        assert left_out == []
        assert [run.name for run in found if run.notes] == []
        assert len(found) == len(list((root / "results" / study.name).glob("*/summary.json")))


def test_a_finished_run(runs: Path) -> None:
    run = results.read_run(finish(runs / "protonet" / "a").path)
    assert (run.status, run.name, run.seed, run.step, run.notes) == ("finished", "a", 0, 300, ())
    assert run.command == "etude run protonet laptop"
    assert [line["step"] for line in run.metrics] == [100, 200, 300]


@pytest.mark.parametrize("listed", [True, False])
def test_a_run_is_going_while_its_lock_is_held(runs: Path, monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    if listed and not Path("/proc/locks").exists():
        pytest.skip("this system does not list its locks")
    if not listed:
        monkeypatch.setattr(results, "_LOCKS", runs / "none")
    path = begin(runs / "protonet" / "a").path
    assert results.read_run(path).status == "interrupted", "no lock yet"
    with (path / ".lock").open("w") as file:
        assert results.read_run(path).status == "interrupted", "a lock that nobody holds"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert results.read_run(path).status == "still going"
        fcntl.flock(file, fcntl.LOCK_UN)
        assert results.read_run(path).status == "interrupted"
        # Reading left nothing that would refuse the run its lock.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_that_was_interrupted(runs: Path) -> None:
    path = begin(runs / "protonet" / "a").path
    (path / "checkpoints" / "step-00000250").mkdir(parents=True)
    run = results.read_run(path)
    assert (run.status, run.step, run.saved, run.max_steps) == ("interrupted", 300, 250, 8000)
    assert results.read_run(begin(runs / "protonet" / "b", steps=0).path).step == 0


def test_reading_changes_nothing(runs: Path) -> None:
    finish(runs / "protonet" / "a")
    begin(runs / "protonet" / "b")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    results.find_runs(STUDY, [runs])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (json.dumps(summary(row()))[:90], "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[]", "is no summary of a run"),
        ("{}", "is no summary of a run (study: Field required)"),
        (json.dumps(summary(row(value="high"))), "results.0.value"),
        (json.dumps(summary(row(value="99"))), "results.0.value"),
        (json.dumps(summary(seed=None)), "seed"),
    ],
)
def test_a_broken_summary(runs: Path, content: str, hint: str) -> None:
    """It is named and counts for nothing; the others do."""
    path = begin(runs / "protonet" / "a").path
    (path / "summary.json").write_text(content)
    finish(runs / "protonet" / "b")
    run = results.read_run(path)
    assert (run.status, run.summary) == ("interrupted", None)
    (note,) = run.notes
    assert hint in note
    assert "delete it" in note
    (fault,) = results.faults([STUDY], [runs])
    assert hint in fault
    assert "\n" not in fault
    assert list(results.summaries(STUDY, [runs])) == ["b"]
    assert [run.name for run in results.find_runs(STUDY, [runs])[0]] == ["a", "b"]


def test_a_whole_summary_counts_though_the_first_of_its_name_is_broken(runs: Path, tmp_path: Path) -> None:
    (begin(runs / "protonet" / "a").path / "summary.json").write_text("{")
    finish(tmp_path / "more" / "protonet" / "a")
    assert list(results.summaries(STUDY, [runs, tmp_path / "more"])) == ["a"]


def test_what_a_kill_left_of_a_write(runs: Path) -> None:
    path = begin(runs / "protonet" / "a").path
    (path / ".summary.json.x1y2.tmp").write_text('{"form')
    assert results.read_run(path).status == "interrupted"
    # Of this one not even the configuration was written.
    (runs / "protonet" / "b").mkdir()
    (runs / "protonet" / "b" / ".config.yaml.x1y2.tmp").write_text("form")
    # And this one has lost it.
    (runs / "protonet" / "c").mkdir()
    (runs / "protonet" / "c" / "metrics.jsonl").write_text("")
    (runs / "protonet" / "notes.txt").write_text("mine")
    (runs / "protonet" / "empty").mkdir()
    found, left_out = results.find_runs(STUDY, [runs])
    assert [run.name for run in found] == ["a"]
    assert len(left_out) == 1
    assert f"{runs / 'protonet' / 'c'} is not a run folder (it has no config.yaml)" in left_out[0]


@pytest.mark.parametrize("content", ["", "format: 1\n", "a: [", "format: 99\nstudy: protonet\n", "\xff", "- 1\n"])
def test_a_broken_configuration(runs: Path, content: str) -> None:
    path = finish(runs / "protonet" / "a").path
    (path / "config.yaml").write_bytes(content.encode("latin-1"))
    run = results.read_run(path)
    assert (run.status, run.record.preset, run.max_steps, len(run.notes)) == ("finished", "laptop", None, 1)
    (path / "summary.json").unlink()
    with pytest.raises(UserError) as caught:
        results.read_run(path)
    assert "\n" not in str(caught.value)
    assert results.find_runs(STUDY, [runs]) == ([], [f"{caught.value}: left out"])


def test_only_a_summary_was_kept(runs: Path) -> None:
    path = runs / "protonet" / "a"
    path.mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(summary(row(), overrides={"optim.lr": 0.1})))
    run = results.read_run(path)
    assert (run.status, run.metrics, run.notes, run.record.overrides) == ("finished", [], (), {"optim.lr": 0.1})


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_broken_environment(runs: Path, content: str) -> None:
    path = finish(runs / "protonet" / "a").path
    (path / "environment.json").write_text(content)
    run = results.read_run(path)
    assert run.environment == {}
    assert len(run.notes) == 1


# --- metrics.jsonl ---

GOOD = '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n'


@pytest.mark.parametrize(
    ("text", "steps", "notes"),
    [
        (GOOD, [1, 2], []),
        ("", [], []),
        (GOOD + '{"step": 3, "train/lo', [1, 2], ["the last line of metrics.jsonl is cut short: left out"]),
        (
            '{"step": 0, "a":\n' + GOOD + "\n",
            [1, 2],
            ["2 of 4 lines of metrics.jsonl cannot be read (line 1, 4): left out"],
        ),
        (
            GOOD + '3\n[]\n{"step": "x"}\n{"a": 1}\n{"step": 2.5}\n{"step": true}\n',
            [1, 2],
            ["6 of 8 lines of metrics.jsonl cannot be read (line 3, 4, 5, 6, 7, ...): left out"],
        ),
        (
            GOOD
            + '{"step": 3, "train/loss": NaN, "val/loss": Infinity, "big": '
            + "9" * 400
            + ', "said": "x", "on": true}\n',
            [1, 2, 3],
            ["values that are no finite numbers are left out of big, train/loss, val/loss"],
        ),
    ],
)
def test_lines_of_metrics(tmp_path: Path, text: str, steps: list[int], notes: list[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    rows, said = results.read_metrics(path)
    assert [row["step"] for row in rows] == steps
    assert said == notes
    assert rows[2:] in ([], [{"step": 3}])


def test_metrics_of_bytes_and_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert results.read_metrics(path) == ([], [])
    path.write_bytes(GOOD.encode() + b"\xff\xfe\x00{")
    rows, notes = results.read_metrics(path)
    assert (len(rows), len(notes)) == (2, 1)
    path.unlink()
    path.mkdir()
    rows, notes = results.read_metrics(path)
    assert rows == []
    assert "cannot be read" in notes[0]


# --- strangers ---


def test_runs_of_other_studies(runs: Path) -> None:
    finish(runs / "protonet" / "mine")
    finish(runs / "protonet" / "theirs", summary(row(), study="dcgan"))
    finish(runs / "gpt" / "first")
    (runs / "cache" / "files").mkdir(parents=True)
    every = [registry.load(name) for name in registry.NAMES]
    lines = results.faults(every, [runs, runs / "none"])
    assert len(lines) == 2
    assert "theirs lies among the runs of 'protonet' and is of 'dcgan'" in lines[0]
    assert lines[1] == f"{runs / 'gpt' / 'first'} is of the study 'gpt', which this etude does not have: left out"
    assert len(results.faults([STUDY], [runs])) == 1, "who asks for one study is not told of others"
    assert list(results.summaries(STUDY, [runs])) == ["mine"]
    assert [run.name for run in results.find_runs(STUDY, [runs])[0]] == ["mine"]
