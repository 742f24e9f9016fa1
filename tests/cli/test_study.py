"""`etude study`: the settings and names of a grid's runs, what follows what, and when a grid has failed."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from etude import cli, registry
from etude.cluster import engine
from etude.core.config import override, read_yaml
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.study import Experiment, Job, best_of
from etude.runs.experiment import Grid, settings
from etude.runs.flags import take
from etude.runs.grid import LocalEngine
from etude.runs.training import choose
from etude.studies.resnet import figures
from etude.studies.resnet.study import NORMS, TUNED_RATES

STUDY = registry.load("resnet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- --set ---


def test_settings_are_read_as_flags_are() -> None:
    words = ["optim.lr=0.25", "model.n=2", "augment.flip=false", "data.folder=my birds/a=b", "optim.schedule=cosine"]
    words += ["cam_classes=disc", "loop.compile=true"]
    assert settings(STUDY, "smoke", words) == {
        "optim.lr": 0.25, "model.n": 2, "augment.flip": False, "data.folder": "my birds/a=b",
        "optim.schedule": "cosine", "cam_classes": ["disc"], "loop.compile": True,
    }  # fmt: skip


def test_a_setting_that_changes_nothing_is_none() -> None:
    preset: Any = STUDY.preset("smoke").build()
    assert settings(STUDY, "smoke", [f"model.norm={preset.model.norm}", f"optim.lr={preset.optim.lr}"]) == {}
    assert settings(STUDY, "smoke", []) == {}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lr", "--set takes NAME=VALUE, such as optim.lr=0.01, not 'optim.lr'"),
        ("=3", "--set takes NAME=VALUE"),
        ("optim.lrr=1", "no flag --optim.lrr; did you mean '--optim.lr'?; `etude run resnet smoke --help`"),
        ("optim.lr=fast", "--optim.lr"),
        ("optim.lr=-1", "optim.lr must be above 0, not -1.0"),
        ("loop.compile=perhaps", "perhaps"),
        ("model.n=0", "model.n must be at least 1"),
        ("seed=3", "--seeds"),
    ],
)
def test_settings_that_do_not_serve_are_one_line(
    word: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        settings(STUDY, "smoke", [word])
    assert says in str(caught.value)
    assert cli.main(["study", "resnet", "norms", "--preset", "smoke", "--set", word]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert list(here.iterdir()) == []


def test_a_grid_of_no_seed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "resnet", "norms", "--preset", "smoke", "--seeds"]) == 2
    assert "--seeds names no seed" in capsys.readouterr().err


# --- names, seeds and words ---


def grid(experiment: str, preset: str = "smoke", **changes: Any) -> Grid:
    return Grid(STUDY, experiment, preset, {k.replace("__", "."): v for k, v in changes.items()}, Path("runs"))


def test_names_tell_the_experiment_the_preset_and_what_was_set() -> None:
    items = grid("norms", model__n=2, data__folder="a/b c", loop__max_steps=3).items([0])
    begun = "norms-smoke-model.n-2-data.folder-a_bc-loop.max_steps-3"
    assert [item.name for item in items] == [f"{begun}-{norm}-seed0" for norm in NORMS]
    assert [item.path for item in items] == [Path("runs/resnet") / item.name for item in items]
    assert all(item.after == () for item in items)


def test_every_seed_has_its_runs() -> None:
    items = grid("norms").items([0, 3, 0])
    assert [item.name for item in items] == [f"norms-smoke-{norm}-seed{seed}" for seed in (0, 3) for norm in NORMS]


def test_a_job_with_a_seed_of_its_own_stands_once() -> None:
    items = {item.name: item for item in grid("norms-tuned").items([0, 1])}
    assert len(items) == len(NORMS) * (len(TUNED_RATES) + 2)
    for norm in NORMS:
        rates = tuple(f"norms-tuned-smoke-{norm}-lr{rate:g}-seed100" for rate in TUNED_RATES)
        assert all(items[name].after == () for name in rates)
        for seed in (0, 1):
            assert items[f"norms-tuned-smoke-{norm}-seed{seed}"].after == rates


def read_back(words: Sequence[str]) -> tuple[str, str, Any]:
    """What `etude run` would make of a run's words: its name, the folder of runs, the configuration."""
    rest = list(words)
    assert rest.pop(0) == "run"
    name, runs = take(rest, "--name", ""), take(rest, "--runs", "")
    return name, runs, choose(rest, "etude run").config


def test_the_words_of_a_run_are_its_settings() -> None:
    """The grid's own come first, the job's after them, the seed last."""
    with pytest.raises(UserError, match=r"varies model\.norm"):
        grid("best", model__norm="gn").items([7])
    made = grid("best", optim__momentum=0.5, augment__flip=False, cam_classes=("disc", "cross"))
    (item,) = made.items([7])
    name, runs, config = read_back(item.flags())
    assert (name, runs) == (item.name, "runs")
    (job,) = STUDY.experiment("best").jobs("smoke")
    expected = {"optim.momentum": 0.5, "augment.flip": False, "cam_classes": ["disc", "cross"], **job.overrides}
    assert config == override(STUDY.preset("smoke").build(), expected | {"seed": 7})
    assert config.model.norm == "ln", "the job's"


def test_a_follower_takes_the_rate_that_validated_best(here: Path) -> None:
    items = {item.name: item for item in grid("norms-tuned").items([2])}
    follower = items["norms-tuned-smoke-bn-seed2"]
    for rate, score in ((0.01, 40.0), (0.1, 70.0), (0.3, None), (1.0, 55.0)):
        path = items[f"norms-tuned-smoke-bn-lr{rate:g}-seed100"].path
        record = RunRecord("resnet", "smoke", "smoke", {}, {"optim": {"lr": rate}})
        run = RunFolder.create(path, record)
        if score is not None:
            run.write_summary({"validation": {"metric": "accuracy", "best": score, "direction": "max"}})
    _, _, config = read_back(follower.flags())
    assert (config.optim.lr, config.seed, config.model.norm, config.table) == (0.1, 2, "bn", "norms-tuned")
    _, _, candidate = read_back(items["norms-tuned-smoke-bn-lr0.03-seed100"].flags())
    assert (candidate.optim.lr, candidate.seed, candidate.table) == (0.03, 100, "run")


# --- a whole grid ---


class Here(LocalEngine):
    """Runs `etude` in this process, as quickly as that goes."""

    commands: list[list[str]]

    def submit(self, command: Sequence[str], log: Path) -> "Future[int]":
        self.commands.append(list(command))
        future: Future[int] = Future()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            future.set_result(cli.main(list(command)))
        return future


RATES = {"low": 0.01, "high": 0.1, "wild": 1e30}


def at_best_rate(finished: Sequence[RunFolder]) -> dict[str, Any]:
    return {"optim.lr": best_of(finished).record.config["optim"]["lr"], "table": "norms"}


def tuned(preset: str) -> tuple[Job, ...]:
    """Three rates, of which one cannot train, and a run at the better of the others."""
    rates = [Job(name, {"optim.lr": rate}, seed=100) for name, rate in RATES.items()]
    return (Job("chosen", at_best_rate, after=tuple(RATES)), *rates)


def hopeless(preset: str) -> tuple[Job, ...]:
    rates = [Job(name, {"optim.lr": 1e30}, seed=100) for name in ("one", "two")]
    fine = Job("fine", {"optim.lr": 0.01})
    return (*rates, Job("chosen", at_best_rate, after=("one", "two")), fine)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, here: Path) -> type[Here]:
    """A study of two small experiments, whose runs leave no pictures."""
    experiments = {
        "tuned": Experiment("a", tuned, "smoke", compared=True),
        "hopeless": Experiment("b", hopeless, "smoke"),
    }
    monkeypatch.setattr(registry, "load", lambda name: dataclasses.replace(STUDY, experiments=experiments))
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    monkeypatch.setattr(engine, "LocalEngine", Here)
    Here.commands = []
    return Here


# Without a norm a rate of 1e30 does what one expects of it.
CALL = ["--json", "--set", "model.norm=none", "data.size=8", "loop.max_steps=3", "loop.eval_every=3", "curve_images=8"]
PREFIX = "{}-smoke-loop.max_steps-3-loop.eval_every-3-model.norm-none-data.size-8-curve_images-8"
"""What the names of an experiment's runs begin with."""


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str], str]:
    """The exit status, the state of each run by its last words, and what was said."""
    status = cli.main(["study", "resnet", *words, *CALL])
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert all(Path(row["folder"]).name == row["run"] for row in rows)
    prefix = f"{PREFIX.format(words[0])}-"
    assert all(row["run"].startswith(prefix) for row in rows)
    return status, {row["run"].removeprefix(prefix): row["state"] for row in rows}, printed.err


def test_a_rate_that_fails_is_no_failure_where_another_was_chosen(
    small: type[Here], capsys: pytest.CaptureFixture[str]
) -> None:
    status, states, said = outcome(capsys, "tuned", "--seeds", "0", "1")
    assert states == {
        "chosen-seed0": "ran", "low-seed100": "ran", "high-seed100": "ran", "wild-seed100": "failed",
        "chosen-seed1": "ran",
    }  # fmt: skip
    assert status == 0
    assert "have not ended well" not in said
    folder = Path("runs/resnet")
    score = {
        name: RunFolder.open(path).summary["validation"]["best"]  # type: ignore[index]
        for name in ("low", "high")
        for path in folder.glob(f"*-{name}-seed100")
        if path.is_dir()
    }
    best = max(score, key=score.__getitem__)
    for seed in (0, 1):
        (path,) = (p for p in folder.glob(f"*-chosen-seed{seed}") if p.is_dir())
        config = read_yaml(path / "config.yaml")["config"]
        assert (config["optim"]["lr"], config["seed"], config["table"]) == (RATES[best], seed, "norms")
    # One picture, beside the runs.
    (picture,) = folder.glob("*.png")
    assert picture.name == f"{PREFIX.format('tuned')}.png"
    assert f"picture: {picture}" in said
    (log,) = folder.glob("*wild-seed100.log")
    assert "not finite" in log.read_text()

    # Once more: only what failed runs again.
    small.commands.clear()
    status, states, _ = outcome(capsys, "tuned", "--seeds", "0", "1")
    assert status == 0
    assert states == {
        "chosen-seed0": "done", "low-seed100": "done", "high-seed100": "done", "wild-seed100": "failed",
        "chosen-seed1": "done",
    }  # fmt: skip
    assert len(small.commands) == 1


def test_a_choice_among_failures_waits_and_the_grid_has_failed(
    small: type[Here], capsys: pytest.CaptureFixture[str]
) -> None:
    status, states, said = outcome(capsys, "hopeless")
    assert states == {
        "one-seed100": "failed", "two-seed100": "failed", "chosen-seed0": "waits", "fine-seed0": "ran",
    }  # fmt: skip
    assert status == 1
    assert "3 of 4 runs have not ended well" in said
    assert f"waits: {PREFIX.format('hopeless')}-chosen-seed0" in said


def test_the_picture_is_of_the_runs_that_are_asked_for(
    small: type[Here], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed of each, and none of the runs that only choose."""
    drawn: dict[str, Any] = {}

    def picture(path: Path, title: str, runs: dict[str, Any]) -> None:
        drawn.update(runs, title=title)

    monkeypatch.setattr(figures, "compared", picture)
    outcome(capsys, "tuned", "--seeds", "4", "2")
    assert set(drawn) == {"title", "chosen"}
    assert drawn["title"].startswith("Residual networks and six normalisations: tuned-smoke")
    (path,) = (p for p in Path("runs/resnet").glob("*-chosen-seed2") if p.is_dir())
    assert drawn["chosen"] == list(RunFolder.open(path).metrics())


def test_the_report_shows_the_picture_of_a_grid(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/resnet")
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "norms-smoke.png")
    assert cli.main(["report", "--runs", "runs", "--out", "without.html"]) == 0
    with_it = Path("without.html").read_text()
    (folder / "norms-smoke.png").unlink()
    assert cli.main(["report", "--runs", "runs", "--out", "without.html"]) == 0
    without = Path("without.html").read_text()
    assert with_it.count("data:image/") == without.count("data:image/") + 1


def ended(path: Path, best: float | None, direction: str = "max", **config: object) -> Path:
    """A run that ended with this score on validation; one that was only begun where there is none."""
    run = RunFolder.create(path, RunRecord("toy", "smoke", "smoke", {}, dict(config)))
    if best is not None:
        run.write_summary({"validation": {"metric": "m", "best": best, "direction": direction}})
    return path


@pytest.mark.parametrize(("direction", "winner"), [("max", "b"), ("min", "a")])
def test_the_best_of_some_runs(tmp_path: Path, direction: str, winner: str):
    paths = [ended(tmp_path / name, best, direction) for name, best in (("a", 0.1), ("b", 0.7), ("c", 0.5))]
    for order in (paths, paths[::-1]):
        assert best_of([RunFolder.open(path) for path in order]).path == tmp_path / winner


def test_one_run_is_the_best_without_a_score(tmp_path: Path):
    RunFolder.create(tmp_path / "a", RunRecord("toy", "smoke", "smoke", {}, {})).write_summary({"validation": None})
    assert best_of([RunFolder.open(tmp_path / "a")]).path == tmp_path / "a"


def test_a_job_gets_the_runs_that_have_finished(tmp_path: Path):
    """What was only begun, or never, is no candidate."""
    got: list[str] = []

    def overrides(finished: Sequence[RunFolder]) -> dict[str, Any]:
        got.extend(run.path.name for run in finished)
        return {"optim.lr": best_of(finished).record.config["optim"]["lr"]}

    names = ("a", "b", "begun", "nowhere")
    jobs = (*map(Job, names), Job("last", overrides, after=names))
    study = dataclasses.replace(STUDY, experiments={"x": Experiment("x", lambda _: jobs, "smoke")})
    grid = Grid(study, "x", "smoke", {}, tmp_path)
    for name, score in (("a", 0.3), ("b", 0.6), ("begun", None)):
        ended(grid.folder(Job(name), 0), score, optim={"lr": 0.01 if name == "a" else 0.3})
    words = list(grid.items([0])[-1].flags())
    assert got == [f"x-smoke-{name}-seed0" for name in "ab"]
    assert words[words.index("--optim.lr") + 1] == "0.3"
