"""The command line: what each verb prints, its JSON, and one line for each fault."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.core import toy

from etude.cli import VERBS, main
from etude.studies.protonet import figures
from etude.studies.protonet.task import ProtonetTask

TINY = ("--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.log-every", "1", "--loop.save-every", "2")
SMALL = (*TINY, "--evaluation.val-episodes", "20", "--evaluation.episodes", "20", "--evaluation.pool-episodes", "20")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fault(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call prints."""
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("etude: ")
    assert "Traceback" not in printed.err
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps."""
    runs = tmp_path_factory.mktemp("finished")
    assert main(["run", "protonet", "smoke", "--name", "tiny", "--runs", str(runs), *SMALL]) == 0
    return runs / "protonet" / "tiny"


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: etude {verb}" in capsys.readouterr().out


def test_usage_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    usage = capsys.readouterr().out
    assert all(f"  {verb}" in usage for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (("rum",), ("no verb 'rum'", "did you mean 'run'?")),
        (("run", "protonets"), ("no study 'protonets'", "did you mean 'protonet'?")),
        (("run", "protonet", "smok"), ("no preset 'smok'", "did you mean 'smoke'?")),
        (("run", "protonet", "smoke", "--episodes.wya", "5"), ("no flag --episodes.wya", "--episodes.way")),
        (("run", "protonet", "smoke", "--episodes.way", "many"), ("--episodes.way", "many")),
        (("run", "protonet", "smoke", "--episodes.way", "0"), ("episodes.way must be at least 1",)),
        (("run", "protonet", "smoke", "--optim.lr", "-1"), ("optim.lr must be above 0, not -1.0; `etude run",)),
        (("run", "protonet", "smoke", "--name"), ("--name needs a value",)),
        (("show", "protonet", "papre"), ("no preset 'papre'", "did you mean 'paper'?")),
        (("study", "protonet", "fewshots"), ("no experiment 'fewshots'", "did you mean 'fewshot'?")),
        (("study", "protonet", "fewshot", "--jobs", "-1"), ("--jobs must be at least 0",)),
        (("resume", "nowhere"), ("nowhere is not a run folder",)),
        (("resume", "n" * 300), ("is not a run folder",)),
        (("predict", "n" * 300), ("is no run folder, weights file or study",)),
        (("eval", "nowhere"), ("nowhere is not a run folder",)),
        (("export", "nowhere"), ("'nowhere' is no run folder, weights file or study",)),
        (("export", "n" * 300), ("is no run folder, weights file or study",)),
        (("load", "nowhere"), ("nowhere is no folder: name one that `etude export",)),
        (("load", "n" * 300), ("is no folder: name one",)),
        (("predict", "nowhere"), ("'nowhere' is no run folder, weights file or study",)),
        (("compare", "protonets"), ("no study 'protonets'",)),
        (("data", "get", "omniglott"), ("no data set 'omniglott'", "did you mean 'omniglot'?")),
        (("data", "fetch"), ("fetch",)),
    ],
)
def test_faults_are_one_line(
    words: tuple[str, ...], hints: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fault(capsys, *words)
    assert all(hint in line for hint in hints), line
    assert list(here.iterdir()) == []


def test_a_run_that_cannot_begin_leaves_its_name_free(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fault(capsys, "run", "protonet", "smoke", "--name", "wide", "--episodes.way", "1000")
    assert "1000 ways were asked for, and there are 128 classes" in line
    assert not Path("runs/protonet/wide").exists()
    # What lay in a folder before is not the run's to remove.
    Path("runs/protonet/mine").mkdir(parents=True)
    Path("runs/protonet/mine/notes.txt").write_text("keep")
    fault(capsys, "run", "protonet", "smoke", "--name", "mine", "--episodes.way", "1000")
    assert Path("runs/protonet/mine/notes.txt").read_text() == "keep"


def test_a_name_is_taken_once(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "summary.json").read_bytes()
    line = fault(capsys, "run", "protonet", "smoke", "--name", "tiny", "--runs", str(finished.parents[1]))
    assert "holds a run already" in line
    assert "loop.max_steps is 4 there" in line
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.parametrize("name", [".", "..", "../../away", "a/b", "/tmp/etude-away"])
def test_a_name_is_of_a_folder_in_its_place(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fault(capsys, "run", "protonet", "smoke", "--name", name, "--runs", str(tmp_path / "runs"))
    assert f"--name {name}" in line
    assert "--runs" in line
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_its_folder(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    assert left >= {
        "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "figures", "summary.json", "model_card.md",
    }  # fmt: skip
    assert {path.name for path in (finished / "figures").iterdir()} == {"curves.png", "episode.png", "alphabets.png"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["scale"] == "smoke"
    assert all(row["protocol"] and row["split"] == "test" for row in summary["results"])
    assert summary["command"].startswith("etude run protonet smoke --loop.max-steps 4")
    assert summary["command"] in (finished / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("lr: 0.001", "lr: 0.05", "optim.lr is 0.001 there and 0.05 here"),
        ("seed: 0", "seed: 7", "seed is 0 there and 7 here"),
    ],
)
def test_settings_edited_in_mid_run_are_refused(
    finished: Path, tmp_path: Path, old: str, new: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An optimiser that is taken up has the settings that it was saved with, whatever the file says."""
    run = shutil.copytree(finished, tmp_path / "protonet" / "edited")
    (run / "summary.json").unlink()
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = fault(capsys, "resume", str(run))
    assert says in line
    assert "put it back" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (run / "config.yaml").write_text(text.replace("log_every: 5", "log_every: 4"))
    assert main(["resume", str(run)]) == 0


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    assert main(["resume", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("moment", "saved"), [("data_checksums", ""), ("results", "4"), ("draw", "4")])
def test_a_stop_outside_training_says_how_to_go_on(
    finished: Path,
    tmp_path: Path,
    moment: str,
    saved: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first step, while it evaluates, while it draws; and the resumed run ends as one in one go."""
    path = tmp_path / "protonet" / "tiny"

    def stop(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            # What a launcher does: the process that ends already must not die of it.
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(figures if moment == "draw" else ProtonetTask, moment, stop)
        assert main(["run", "protonet", "smoke", "--name", "tiny", "--runs", str(tmp_path), *SMALL]) == 130
    step = f"step {saved} is saved" if saved else "no step is saved yet"
    assert capsys.readouterr().err.splitlines()[-1] == f"etude: stopped, {step}: `etude resume {path}` goes on"
    assert not (path / "summary.json").exists()
    assert main(["resume", str(path)]) == 0
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (path, finished))
    for name in ("train_seconds", "peak_memory_mb"):
        assert ours.pop(name) > 0
        assert theirs.pop(name) > 0
    assert ours == theirs
    assert toy.metrics(path) == toy.metrics(finished)
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (path, finished)]
    assert names[0] == names[1]


@pytest.mark.parametrize("began", [False, True])
def test_a_process_lost_before_training_is_one_line(
    here: Path, began: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the first of several makes the folder."""

    def wait(_: object) -> None:
        if began:
            (here / "runs" / "protonet" / "mine").mkdir(parents=True)
            (here / "runs" / "protonet" / "mine" / "config.yaml").touch()
        raise RuntimeError("[pair.cc:547] Connection closed by peer, of gloo")

    monkeypatch.setattr("accelerate.PartialState.wait_for_everyone", wait)
    monkeypatch.setattr("accelerate.PartialState.is_main_process", False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState.__init__", lambda *_, **__: None)
    monkeypatch.setenv("RANK", "1")
    line = fault(capsys, "run", "protonet", "smoke", "--name", "mine", *SMALL)
    assert line.startswith("etude: process 1 of 2 lost another one, which ended or cannot be reached")
    assert line.endswith("goes on from the last checkpoint" if began else "before the run began: start it again")


def test_eval_gives_the_same_numbers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(finished), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["value"] == row["in_summary"] for row in rows)


def test_export_is_half_precision_and_asks_before_writing_over(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--out", "a.safetensors"]) == 0
    assert main(["export", str(finished), "--out", "b.safetensors", "--fp32"]) == 0
    assert Path("a.safetensors").stat().st_size < 0.7 * Path("b.safetensors").stat().st_size
    capsys.readouterr()
    assert "--force" in fault(capsys, "export", str(finished), "--out", "a.safetensors")
    assert main(["export", str(finished), "--out", "a.safetensors", "--force"]) == 0


@pytest.mark.parametrize(
    "words", [("list",), ("show", "protonet"), ("show", "protonet", "paper"), ("compare",), ("data", "list")]
)
def test_json_is_a_list_of_objects(words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(isinstance(row, dict) for row in rows)


def test_compare_has_the_promised_keys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "protonet", "--json"]) == 0
    keys = {
        "study", "experiment", "cell", "metric", "split", "published", "source", "ours", "interval", "seeds", "scale",
        "verdict",
    }  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert all(keys <= row.keys() for row in rows)
    paper = {row["cell"]: row["published"] for row in rows if row["source"].startswith("Snell")}
    assert paper == {"w5s1": 98.8, "w5s5": 99.7, "w20s1": 96.0, "w20s5": 98.9}


def test_check_measures_without_leaving_anything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "protonet", "smoke", "--json", "--evaluation.val-episodes", "20"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == {"encoder": 7248}
    assert facts["reload"] == "equal"
    assert facts["estimated_seconds"] > facts["steps"] * facts["seconds_per_step"] > 0
    assert list(here.iterdir()) == []


def test_a_grid_runs_only_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["study", "protonet", "resize", "--preset", "smoke", "--jobs", "2", "--json"]
    first = Path("runs/protonet/resize-smoke-nearest-seed0")
    first.mkdir(parents=True)
    # A folder that cannot be a run: this one fails, the other must not.
    (first / "config.yaml").write_text("format: 1\n")
    assert main(call) == 1
    printed = capsys.readouterr()
    states = {row["run"]: row["state"] for row in json.loads(printed.out)}
    assert states == {"resize-smoke-nearest-seed0": "failed", "resize-smoke-area-seed0": "ran"}
    assert "failed: resize-smoke-nearest-seed0" in printed.err
    (first / "config.yaml").unlink()
    assert main(call) == 0
    states = {row["run"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == {"resize-smoke-nearest-seed0": "ran", "resize-smoke-area-seed0": "done"}


def test_report_holds_its_pictures(finished: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished), "--out", "page.html"]) == 0
    assert capsys.readouterr().out.strip() == "page.html"
    page = Path("page.html").read_text()
    assert page.count('<img src="data:image/') == 2
    assert page.count('<svg class="plot"') >= 2
    assert "Snell et al. 2017" in page
    assert "://" not in page.split("<body>")[0]


@pytest.mark.usefixtures("real_omniglot")
@pytest.mark.real_data
def test_data_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "omniglot", "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"verified"}


def test_data_verify_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "omniglot"]) == 2
    assert "omniglot/images_background.zip is missing" in capsys.readouterr().err


def test_demo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "Snell et al. 2017" in printed
    assert printed.strip().splitlines()[-1] == "report: out/report.html"
    assert Path("out/report.html").stat().st_size > 50_000
