"""What needs no cluster: one line for what does not serve, storage, what a search gathers, a child that dies."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tests.core import toy
from tests.forks import Fork

from etude import cli, registry
from etude.cluster import connect, worker
from etude.cluster.engine import RayEngine, work_of
from etude.cluster.storage import Lost, Mirror, Storage
from etude.cluster.worker import Work
from etude.core.config import read_yaml
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.runs.grid import LocalEngine
from etude.runs.search import Ledger, Trial

# --- one line ---

STUDY = ["study", "protonet", "resize", "--preset", "smoke"]
TUNE = ["tune", "protonet", "smoke", "--search", "optim.lr=log:1e-4:1e-1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*STUDY, "--gpus", "0.5"], "--ray local"),
        ([*STUDY, "--storage", "file:///x"], "--ray local"),
        ([*STUDY, "--ray", "local", "--gpus", "1.5"], "--gpus must be 0, a fraction of one such as 0.5"),
        ([*STUDY, "--ray", "local", "--gpus", "-1"], "--gpus must be 0"),
        ([*STUDY, "--ray", "local", "--gpus", "nan"], "--gpus must be 0"),
        ([*STUDY, "--ray", "local", "--cpus", "0"], "--cpus must be at least 1, not 0"),
        ([*STUDY, "--ray", "locl"], "--ray takes local, auto or HOST:PORT such as 10.0.0.1:6379, not 'locl'"),
        ([*STUDY, "--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: nothing answers there"),
        ([*STUDY, "--ray", "127.0.0.1:99999"], "--ray takes local, auto or HOST:PORT"),
        ([*STUDY, "--ray", "ray://127.0.0.1:10001"], "no way to reach a cluster by this scheme"),
        ([*STUDY, "--ray", "local", "--storage", "nosuch://x"], "--storage nosuch://x: Protocol not known: nosuch"),
        (["tune", "protonet", "smoke"], "--search names no setting"),
        (["tune", "protonet", "smok"], "no preset 'smok'; did you mean 'smoke'?"),
        ([*TUNE, "--trials", "0"], "--trials must be 1 or more, not 0"),
        ([*TUNE, "--reduction", "1"], "--reduction must be 2 or more, not 1"),
        ([*TUNE, "--name", "a/b"], "no plain name"),
        ([*TUNE, "--set", "seed=1"], "--set seed=1: the seed of all trials is given with --seed\n"),
        ([*STUDY, "--set", "seed=1"], "--set seed=1: the seeds of a grid are given with --seeds\n"),
        ([*TUNE, "--gpus", "1"], "--ray local"),
        ([*TUNE, "--ray", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_what_does_not_serve_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        ([*STUDY, "--ray", "local"], "ray", "ray"),
        ([*TUNE, "--ray", "local"], "ray", "ray"),
        (TUNE, "optuna", "tune"),
    ],
)
def test_without_an_extra_one_line_says_how_to_have_it(
    words: list[str], module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "etude.runs.tuner", raising=False)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{module} is not installed" in said
    assert f"uv sync --extra {extra}" in said
    assert f"pip install 'etude[{extra}]'" in said


def test_a_node_that_is_large_enough() -> None:
    class Nodes:
        def nodes(self) -> list[dict[str, Any]]:
            small, large = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}
            return [{"Alive": True, "Resources": small}, {"Alive": False, "Resources": large}]

    connect.require_room(Nodes(), 2, 0.0, patience=0.0)
    for cpus, gpus in ((3, 0.0), (1, 0.25)):
        with pytest.raises(UserError, match=f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs"):
            connect.require_room(Nodes(), cpus, gpus, patience=0.0)


# --- what a grid's words mean to a node ---


def test_words_for_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.py").touch()
    for name in ("my.py", "photos", "conv4"):
        (tmp_path / name).touch()
    log = Path("out/protonet/b.log")
    words = [
        "run", "protonet", "smoke", "--name", "b", "--runs", "out", "--selected-run", "out/protonet/a",
        "--model.encoder", "mine/net.py:Net", "--data.source", "generated", "--model.distance", "my.py:manhattan",
        "--data.folder", "photos", "--other.encoder", "conv4", "--data.folder-b", "nowhere", "--x", "no.py:Name",
    ]  # fmt: skip
    work = work_of(words, log, 2, Storage(f"file://{tmp_path}/store"))
    assert (work.path, work.before) == ("out/protonet/b", ("a",))
    assert worker._moved(work) == [
        "run", "protonet", "smoke", "--name", "b", "--runs", "runs", "--selected-run", "runs/protonet/a",
        "--model.encoder", f"{tmp_path}/mine/net.py:Net", "--data.source", "generated", "--model.distance",
        f"{tmp_path}/my.py:manhattan", "--data.folder", f"{tmp_path}/photos", "--other.encoder", "conv4",
        "--data.folder-b", "nowhere", "--x", "no.py:Name",
    ]  # fmt: skip
    environment = worker.environment(dataclasses.replace(work, environment=(("ETUDE_MIRROR", "m"),), source=""))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["ETUDE_MIRROR"] == "m"
    assert environment["ETUDE_CACHE"] == os.environ["ETUDE_CACHE"], "a node's own comes first"

    record = RunRecord("protonet", "smoke", "smoke", {"selected_run": "out/protonet/a"}, {})
    RunFolder.create(tmp_path / "out" / "protonet" / "b", record)
    again = work_of(["resume", "out/protonet/b"], log, 1, None)
    assert (again.path, again.before) == ("out/protonet/b", ("a",))


def texts(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, type_ in get_type_hints(kind).items():
        if dataclasses.is_dataclass(type_):
            yield from texts(type_, f"{prefix}{name}.")
        elif type_ in (str, tuple[str, ...]):
            yield f"{prefix}{name}"


def test_every_setting_that_may_name_a_place_is_known() -> None:
    """A new one goes to `PLACES`, or here: names, and user's parts, which `.py:` tells. A cell is text by then."""
    others = {
        "norm", "encoder", "decoder", "distance", "sampler", "stop", "cell", "table", "cam_classes", "genotype",
    }  # fmt: skip
    found = {name.rpartition(".")[2] for study in registry.NAMES for name in texts(registry.load(study).config)}
    assert found - others == {place.replace("-", "_") for place in worker.PLACES}


# --- storage ---


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/store")


def made(folder: Path, step: int, text: str = "x") -> None:
    """A checkpoint's files; what they hold is no matter here."""
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    for name in ("weights.safetensors", "resume.pt", "manifest.json"):
        (place / name).write_text(f"{name} {step} {text}")


def begun(path: Path, **overrides: Any) -> Path:
    RunFolder.create(path, RunRecord("toy", "smoke", "smoke", overrides, dict(overrides)))
    return path


def seen(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(file) for file in files if file.name != ".lock"}


def test_a_mirror_follows_a_run(tmp_path: Path, store: Storage) -> None:
    run, far = begun(tmp_path / "run"), tmp_path / "store" / "toy" / "run"
    mirror = Mirror(store, "toy/run", run, "me")
    mirror.claim()
    made(run, 3)
    (run / "metrics.jsonl").write_text("1\n")
    (run / ".lock").touch()
    (run / ".half.tmp").touch()
    mirror.push()
    three = {f"checkpoints/step-00000003/{name}" for name in ("weights.safetensors", "resume.pt", "manifest.json")}
    assert seen(far) == {".owner", "config.yaml", "metrics.jsonl"} | three
    made(run, 6)
    toy_files = run / "checkpoints" / "step-00000003"
    for path in toy_files.iterdir():
        path.unlink()
    toy_files.rmdir()
    (run / "metrics.jsonl").write_text("1\n2\n")
    (run / "summary.json").write_text("{}")
    mirror.push()
    assert not (far / "checkpoints" / "step-00000003").exists(), "what the run has pruned goes there too"
    assert (far / "metrics.jsonl").read_text() == "1\n2\n"
    assert not (far / "summary.json").exists(), "it says that the run has ended"
    mirror.push(last=True)
    assert (far / "summary.json").exists()

    again = Mirror(store, "toy/run", tmp_path / "elsewhere", "you")
    again.claim()
    again.bring()
    assert seen(tmp_path / "elsewhere") == seen(run) - {".lock", ".half.tmp"}
    (run / "metrics.jsonl").write_text("3\n")
    with pytest.raises(Lost):
        mirror.push()
    assert (far / "metrics.jsonl").read_text() == "1\n2\n", "one that was given up sends no more"


def test_the_order_of_an_upload(tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short anywhere, it leaves no checkpoint that looks whole and none whose metrics are missing."""
    run = begun(tmp_path / "run")
    made(run, 3)
    (run / "metrics.jsonl").write_text("1\n")
    (run / "checkpoints" / "best.json").write_text('{"step": 3}')
    (run / "summary.json").write_text("{}")
    sent: list[str] = []
    put = store.put
    monkeypatch.setattr(
        store, "put", lambda source, name: (sent.append(name.removeprefix("toy/run/")), put(source, name))
    )
    Mirror(store, "toy/run", run, "").push(last=True)
    order = [
        "metrics.jsonl", "checkpoints/step-00000003/weights.safetensors", "checkpoints/step-00000003/manifest.json",
        "checkpoints/best.json", "summary.json",
    ]  # fmt: skip
    assert [name for name in sent if name in order] == order


@pytest.mark.parametrize("at", ["config.yaml", "00000006/resume.pt", "00000006/manifest.json"])
def test_one_that_is_taken_over_in_an_upload_touches_nothing_more(
    at: str, tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was thought dead was sending all the while."""
    run, far = begun(tmp_path / "run"), tmp_path / "store" / "toy" / "run"
    mirror = Mirror(store, "toy/run", run, "me")
    mirror.claim()
    made(run, 3)
    mirror.push()
    made(run, 6)
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    (run / "config.yaml").write_text("changed")
    (run / "metrics.jsonl").write_text("1\n")
    sent: list[str] = []
    put = store.put

    def slow(source: Path, name: str) -> None:
        put(source, name)
        sent.append(name)
        if name.endswith(at):
            Mirror(Storage(store.url), "toy/run", tmp_path / "other", "you").claim()

    monkeypatch.setattr(store, "put", slow)
    with pytest.raises(Lost):
        mirror.push()
    assert sent[-1].endswith(at)
    assert (far / "checkpoints" / "step-00000003" / "manifest.json").exists(), "the new owner may be bringing it"


def test_two_owners_share_no_half_file(tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Storage(store.url)
    seen_at: list[str] = []
    monkeypatch.setattr(store.fs, "mv", lambda beside, place: seen_at.append(beside))
    store.write("toy/run/config.yaml", "mine")
    other.write("toy/run/config.yaml", "theirs")
    store.write("toy/run.log", "mine")
    store.write("toy/run2.log", "another run's")
    monkeypatch.undo()
    assert [Path(beside).read_text() for beside in seen_at[:2]] == ["mine", "theirs"]
    Mirror(other, "toy/run", tmp_path / "run", "you").claim()
    assert [Path(beside).exists() for beside in seen_at] == [False, False, False, True], "they are swept away"
    assert other.files("toy/run") == [".owner"]


def test_two_commands_try_one_storage(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write
    monkeypatch.setattr(store, "write", lambda *words: (write(*words), Storage(store.url).check()))
    store.check()
    assert not list(Path(str(store.root)).iterdir())


def test_half_an_upload_is_passed_over(tmp_path: Path, store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run")
    made(run, 3)
    mirror = Mirror(store, "toy/run", run, "")
    mirror.push()
    made(run, 6)
    put = store.put

    def cut(source: Path, name: str) -> None:
        if "00000006/weights" in name:
            raise ConnectionError("the node is gone")
        put(source, name)

    monkeypatch.setattr(store, "put", cut)
    with pytest.raises(UserError, match="ConnectionError: the node is gone"):
        mirror.push()
    monkeypatch.undo()
    assert store.bring("toy/run", tmp_path / "elsewhere")
    steps = [path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir()]
    assert steps == ["step-00000003"]
    mirror.push()
    assert store.bring("toy/run", tmp_path / "later")
    assert len(list((tmp_path / "later" / "checkpoints").iterdir())) == 2, "what failed is sent again"


def test_a_gathered_run_names_others_where_they_lie_here(tmp_path: Path, store: Storage) -> None:
    run = begun(tmp_path / "work" / "run", selected_run="runs/toy/a", other="runs/toyshop/a")
    made(run, 3)
    made(run, 6)
    (run / "checkpoints" / "best.json").write_text('{"step": 3}')
    (run / "summary.json").write_text(
        json.dumps({"overrides": {"selected_run": "runs/toy/a"}, "command": "etude run --selected-run runs/toy/a"})
    )
    Mirror(store, "toy/run", run, "").push(last=True)
    here = tmp_path / "out" / "toy" / "run"
    store.gather(here, pytest.fail, chosen=True)
    config = read_yaml(here / "config.yaml")
    assert config["overrides"] == {"selected_run": f"{tmp_path}/out/toy/a", "other": "runs/toyshop/a"}
    summary = json.loads((here / "summary.json").read_text())
    assert summary["command"] == f"etude run --selected-run {tmp_path}/out/toy/a"
    assert [path.name for path in (here / "checkpoints").glob("step-*")] == ["step-00000003"], "the chosen one"
    assert list(here.parent.iterdir()) == [here]


def test_a_run_of_this_machine_is_sent_once(tmp_path: Path, store: Storage) -> None:
    run = begun(tmp_path / "out" / "toy" / "run", selected_run=f"{tmp_path}/out/toy/a")
    made(run, 3)
    far = tmp_path / "store" / "toy" / "run"
    for _ in range(2):
        store.send(run)
        assert read_yaml(far / "config.yaml")["overrides"] == {"selected_run": "runs/toy/a"}
        assert (far / "checkpoints" / "step-00000003" / "manifest.json").exists()
        # What the storage has is newer.
        made(run, 6) if not (run / "checkpoints" / "step-00000006").exists() else None
    assert not (far / "checkpoints" / "step-00000006").exists()


def test_a_storage_in_memory_is_whole_or_absent(tmp_path: Path) -> None:
    """As object storage is: nothing is renamed there."""
    store = Storage("memory://bucket/runs")
    assert store.whole
    assert not Storage(f"file://{tmp_path}").whole
    store.check()
    run = begun(tmp_path / "run")
    made(run, 3)
    Mirror(store, "toy/run", run, "").push(last=True)
    assert store.bring("toy/run", tmp_path / "elsewhere")
    assert seen(tmp_path / "elsewhere") == seen(run)


def test_a_storage_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--storage file://.*file/below: "):
        Storage(f"file://{tmp_path}/file/below").check()


def test_a_storage_that_is_away_at_the_beginning_is_no_fault_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(worker, "_PUSH", 0.01)
    (tmp_path / "store").touch()
    words = ("run", "protonet", "nosuch", "--name", "x", "--runs", "runs")
    work = Work("runs/protonet/x", words, str(tmp_path), storage=f"file://{tmp_path}/store")
    monkeypatch.setattr(worker, "_ARRIVE", 0.1)
    status, fault = worker.run(work)
    assert status == worker.ELSEWHERE
    assert fault.startswith(f"--storage file://{tmp_path}/store: ")
    # For a while it is waited for.
    monkeypatch.setattr(worker, "_ARRIVE", 60.0)
    claim, tries = Mirror.claim, []

    def late(mirror: Mirror) -> None:
        tries.append(1)
        if len(tries) == 3:
            (tmp_path / "store").unlink()
        claim(mirror)

    monkeypatch.setattr(Mirror, "claim", late)
    assert worker.run(work) == (2, ""), "by its own fault, which its log tells"
    assert len(tries) == 3
    assert "no preset 'nosuch'" in (tmp_path / "store" / "protonet" / "x.log").read_text()


# --- what a search gathers ---

SEARCH = ["tune", "protonet", "smoke", "--search", "optim.lr=0.1,0.2,0.3", "--ray", "local"]


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Storage]:
    """A search whose driver died before anything was brought: a trial done, one stopped, one failed."""
    monkeypatch.chdir(tmp_path)
    store, folder = Storage(f"file://{tmp_path}/store"), tmp_path / "runs" / "protonet"
    for number, values in enumerate(([0.5, 0.25], [0.75]), start=1):
        name = f"tune-smoke-{number:03d}"
        run = RunFolder.create(tmp_path / "made" / name, RunRecord("protonet", "smoke", "smoke", {}, {}))
        for step, value in enumerate(values, start=1):
            run.append_metrics({"step": 3 * step, "val/accuracy": value})
            made(run.path, 3 * step)
        if number == 1:
            run.write_summary({"step": 6})
        Mirror(store, f"protonet/{name}", run.path, "").push(last=True)
    store.write("protonet/tune-smoke-003.log", "etude: loss is not finite\n")
    about = {
        "study": "protonet", "preset": "smoke", "set": {}, "search": ["optim.lr=0.1,0.2,0.3"], "seed": 0,
    }  # fmt: skip
    trials = [Trial(1, {"optim.lr": 0.1}, "done"), Trial(2, {"optim.lr": 0.2}, "stopped")]
    ledger = Ledger(
        folder / "tune-smoke.tune.json", about, ("accuracy", "max"), [*trials, Trial(3, {"optim.lr": 0.3}, "failed")]
    )
    ledger.write()
    return folder, store


def test_what_a_lost_driver_has_not_gathered_is_gathered(
    searched: tuple[Path, Storage], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a cluster: no trial is wanted."""
    folder, store = searched
    monkeypatch.setattr("etude.cluster.engine.connect", lambda address: pytest.fail("there is nothing to run"))
    assert cli.main([*SEARCH, "--trials", "3", "--storage", store.url, "--json"]) == 0
    out, said = capsys.readouterr()
    rows = json.loads(out)
    assert [row["best"] for row in rows] == [0.5, 0.75, None]
    assert rows[2]["reason"] == "etude: loss is not finite"
    assert "best on validation: trial 1: " in said
    assert [len(list((folder / f"tune-smoke-00{n}").glob("checkpoints/*"))) for n in (1, 2)] == [1, 1]
    # Without the URL it can only be said.
    shutil.rmtree(folder / "tune-smoke-001")
    assert cli.main([*SEARCH, "--trials", "3", "--json"]) == 1
    assert "give the --storage" in json.loads(capsys.readouterr().out)[0]["reason"]


def test_a_further_search_knows_what_was_not_gathered(
    searched: tuple[Path, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    from etude.runs.tuner import Search

    _, store = searched
    knows: list[Any] = []

    def look(search: Search, number: int) -> None:
        knows.extend((trial.state.name, trial.value, trial.intermediate_values) for trial in search.study.trials)

    monkeypatch.setattr(RayEngine, "__new__", lambda *words, **more: LocalEngine(1))
    monkeypatch.setattr(Search, "run", look)
    assert cli.main([*SEARCH, "--trials", "4", "--storage", store.url]) == 0
    assert knows == [
        ("COMPLETE", 0.5, {3: 0.5, 6: 0.5}), ("PRUNED", 0.75, {3: 0.75}), ("FAIL", None, {}),
    ]  # fmt: skip


def test_what_trained_further_here_is_not_replaced(
    searched: tuple[Path, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped trial says `etude resume`; what that trains is not thrown away, nor while it trains."""
    folder, store = searched
    words = [*SEARCH, "--trials", "3", "--storage", store.url]
    stopped = folder / "tune-smoke-002"
    assert cli.main(words) == 0
    run = RunFolder(stopped)
    made_there = folder.parents[1] / "made" / "tune-smoke-002"

    def further_there(step: int) -> None:
        made(made_there, step)
        Mirror(store, "protonet/tune-smoke-002", made_there, "").push()

    run.lock()
    (stopped / "trains").touch()
    further_there(6)
    assert cli.main(words) == 0
    assert (stopped / "trains").exists()
    assert f"left: {stopped.relative_to(folder.parents[1])} trains here now" in capsys.readouterr().err
    made(stopped, 9)
    run.unlock()
    assert cli.main(words) == 0
    assert (stopped / "trains").exists(), "nine steps here, six there"
    # Further there, it comes; and is free afterwards.
    further_there(12)
    assert cli.main(words) == 0
    assert not (stopped / "trains").exists()
    run.lock()
    run.unlock()


def test_a_search_reads_its_record_when_it_is_alone(
    searched: tuple[Path, Storage], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another that ends as this one begins has written its last trial meanwhile."""
    folder, store = searched
    path = folder / "tune-smoke.tune.json"
    whole = path.read_text()
    body = json.loads(whole)
    path.write_text(json.dumps(body | {"trials": body["trials"][:2]}))
    alone = Ledger.alone

    def late(ledger: Ledger) -> Any:
        path.write_text(whole)
        return alone(ledger)

    monkeypatch.setattr(Ledger, "alone", late)
    assert cli.main([*SEARCH, "--trials", "3", "--storage", store.url, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


# --- processes ---


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Killed with SIGKILL, the parent cannot tell it."""
    code = (
        "import subprocess, sys, time\n"
        "words = [sys.executable, '-m', 'etude.runs.child', 'run', 'protonet', 'smoke',\n"
        f"  '--runs', {str(tmp_path)!r}, '--name', 'x', '--loop.max-steps', '1000000']\n"
        "child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = Fork(["-c", code], stdout=subprocess.PIPE, text=True, env=toy.child_environment())
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 300
        while not (tmp_path / "protonet" / "x" / "config.yaml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(child, 0)
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 30
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    outlives = _alive(child)
    if outlives:
        os.kill(child, signal.SIGKILL)
    assert not outlives


def _alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lost_worker_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import tempfile, time; from etude.cluster.worker import _workshop\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "with _workshop() as path:\n    print(path, flush=True)\n    time.sleep(1000)"
    )
    other = Fork(["-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        with worker._workshop() as mine:
            assert mine != path
            assert path.exists(), "its worker lives"
        assert not mine.exists()
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert path.exists()
    with worker._workshop():
        assert not path.exists()


def test_a_run_waits_for_the_lock_of_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begun(tmp_path / "runs" / "protonet" / "x")
    work = Work("runs/protonet/x", ("run",), str(tmp_path))
    held = RunFolder(path)
    held.lock()
    monkeypatch.setattr(worker, "_LOCK", 0.5)
    started = time.monotonic()
    worker.Attempt(work, tmp_path)._prepare()
    assert time.monotonic() - started > 0.4, "as long as it is held, but not for ever"
    held.unlock()
    monkeypatch.setattr(worker, "_LOCK", 60.0)
    started = time.monotonic()
    worker.Attempt(work, tmp_path)._prepare()
    assert time.monotonic() - started < 30
    held.lock()
    held.unlock()


def test_a_node_without_the_folder_says_so(tmp_path: Path) -> None:
    work = Work("runs/protonet/x", ("run",), str(tmp_path / "nowhere"))
    status, fault = worker.run(work)
    assert status == 2
    assert "has no folder" in fault
    assert "--storage URL" in fault
