"""A run's folder: made once, opened where it is one, held by one process, its metrics never lost."""

import json
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.core import toy
from tests.core.disk import Ballast, largest_file, small_disk
from tests.forks import Fork

from etude import registry
from etude.core.config import override
from etude.core.errors import UserError
from etude.core.run_folder import FORMAT, RunFolder, RunRecord
from etude.runs.flags import parse

RECORD = RunRecord("toy", "smoke", "smoke", {"loop.max_steps": 3}, {"seed": 1, "name": "é", "ways": [5, 20]})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", RECORD)


def test_a_record_round_trip(run: RunFolder):
    assert RunFolder.open(run.path).record == RECORD
    assert yaml.safe_load((run.path / "config.yaml").read_text())["format"] == FORMAT


def test_a_second_run_of_one_name_is_refused(run: RunFolder):
    before = (run.path / "config.yaml").read_bytes()
    other = RunRecord("toy", "smoke", "smoke", {}, {"seed": 2})
    with pytest.raises(UserError, match=r"holds a run already: `etude resume .*`, or choose another --name"):
        RunFolder.create(run.path, other)
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a run folder"):
            RunFolder.open(path)


def alter(run: RunFolder, **changes: Any) -> None:
    path = run.path / "config.yaml"
    body = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in body.items() if value != "drop"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": FORMAT + 1}, rf"newer etude \(format {FORMAT + 1}, this one reads {FORMAT}\): upgrade etude"),
        ({"format": FORMAT + 1, "study": "drop", "more": 3}, "newer etude"),
        ({"format": "drop"}, "has no format number: it is not a run of etude"),
        ({"format": "one"}, "has no format number"),
        ({"study": "drop"}, r"config\.yaml: study: Field required"),
        ({"config": "drop"}, r"config\.yaml: config: Field required"),
        ({"overrides": None}, r"config\.yaml: overrides: Input should be a valid dict"),
        ({"scale": "huge"}, r"config\.yaml: scale: Input should be 'full', 'laptop' or 'smoke'"),
        ({"confg": {}}, r"config\.yaml: no setting 'confg'; did you mean 'config'\?"),
    ],
)
def test_a_broken_or_newer_record_is_one_line(run: RunFolder, changes: dict[str, Any], said: str):
    alter(run, **changes)
    with pytest.raises(UserError, match=said) as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)
    assert str(run.path) in str(caught.value)


def test_a_torn_record_is_one_line(run: RunFolder):
    path = run.path / "config.yaml"
    path.write_text(path.read_text()[:-9] + "[")
    with pytest.raises(UserError) as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


def test_the_configuration_of_a_run(tmp_path: Path):
    settings = toy.config(7, per_step=3)
    _, loop = toy.build(tmp_path / "run", settings)
    assert loop.run.config(toy.ToyConfig) == settings
    alter(loop.run, config={"loop": {"max_steps": 7}, "per_stp": 3})
    with pytest.raises(UserError, match=r"config\.yaml: no setting 'per_stp'; did you mean 'per_step'\?"):
        loop.run.config(toy.ToyConfig)


def test_the_command_repeats_the_run():
    """The words of `command`, read by the command line itself, give the run's configuration."""
    study = registry.load("protonet")
    preset = study.preset("smoke").build()
    overrides = {
        "seed": 4, "warm_start": True, "selected_run": "my runs/it's one", "evaluation.ways": [5, 3], "optim.lr": 1e-5
    }  # fmt: skip
    words = shlex.split(RunRecord("protonet", "smoke", "smoke", overrides, {}).command)
    assert words[:4] == ["etude", "run", "protonet", "smoke"]
    assert parse(study.config, words[4:], prog="etude run", default=preset) == override(preset, overrides)


def test_a_second_process_is_refused_until_the_first_ends(run: RunFolder):
    code = (
        "import sys; from pathlib import Path; from etude.core.run_folder import RunFolder;"
        f"run = RunFolder.open(Path({str(run.path)!r})); run.lock(); print('held', flush=True); sys.stdin.read()"
    )
    with Fork(
        ["-c", code], env=toy.child_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is in use by another process: wait for it, or choose another --name"):
            run.lock()
        child.kill()
        child.wait()
    run.lock()
    with pytest.raises(UserError, match="is in use by another process"):
        RunFolder.open(run.path).lock()
    run.unlock()
    other = RunFolder.open(run.path)
    other.lock()
    other.unlock()


def test_a_lock_removes_what_a_kill_left(run: RunFolder):
    (run.path / ".summary.json.x1.tmp").write_text("{")
    run.lock()
    run.unlock()
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "config.yaml"]


ROWS = [{"step": step, "loss": step / 3} for step in (2, 4, 6)]


def fill(run: RunFolder) -> Path:
    for row in ROWS:
        run.append_metrics(row)
    return run.path / "metrics.jsonl"


def test_metrics_round_trip(run: RunFolder):
    assert list(run.metrics()) == []
    fill(run)
    assert list(run.metrics()) == ROWS


def test_a_torn_last_line_is_left_out(run: RunFolder, caplog: pytest.LogCaptureFixture):
    """Wherever the crash cut it; the lines before it are whole."""
    path = fill(run)
    whole = path.read_bytes()
    for size in range(len(whole) - len(json.dumps(ROWS[-1])) - 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert list(run.metrics()) == ROWS[:2]
    path.write_bytes(whole + b"\0\0\0\0")
    assert list(run.metrics()) == ROWS
    assert not caplog.messages


@pytest.mark.parametrize("harm", [b"\xff", b"\n", b"x"])
def test_a_bad_line_costs_no_other(run: RunFolder, caplog: pytest.LogCaptureFixture, harm: bytes):
    """A resume writes the others back; a warning names the one that is lost."""
    path = fill(run)
    data = path.read_bytes()
    place = data.index(b"\n") + 3
    path.write_bytes(data[:place] + harm + data[place + 1 :])
    assert list(run.metrics()) == [ROWS[0], ROWS[2]]
    assert caplog.messages[0] == f"line 2 of {path} cannot be read: left out"
    assert len(caplog.messages) == data.count(b"\n") - 2 + (harm == b"\n")
    caplog.clear()
    run.rewind_metrics(6)
    assert caplog.messages
    caplog.clear()
    assert list(run.metrics()) == [ROWS[0], ROWS[2]]
    assert not caplog.messages


def test_a_line_after_a_torn_one_starts_anew(run: RunFolder):
    """A resume rewinds first, which drops the torn line."""
    path = fill(run)
    path.write_bytes(path.read_bytes()[:-4])
    run.rewind_metrics(4)
    run.append_metrics(ROWS[2])
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 0), (2, 1), (5, 2), (6, 3), (99, 3)])
def test_rewind(run: RunFolder, step: int, kept: int):
    path = fill(run)
    before = path.read_text().splitlines(keepends=True)
    run.rewind_metrics(step)
    assert path.read_text() == "".join(before[:kept])


def test_a_summary(run: RunFolder):
    assert run.summary is None
    run.write_summary({"a": 1.5})
    assert run.summary == {"a": 1.5}
    (run.path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json cannot be read as JSON"):
        _ = run.summary


def test_metrics_beyond_the_limit_are_one_line(run: RunFolder):
    path = fill(run)
    with largest_file(path.stat().st_size + 10), pytest.raises(UserError, match=r"no room to write .*metrics\.jsonl"):
        run.append_metrics({"step": 8, "loss": 0.123456789012345})
    assert list(run.metrics()) == ROWS


def test_a_run_on_a_full_disk_goes_on_once_there_is_room(tmp_path: Path):
    """Wherever the room runs out, the resumed run ends as one that never stopped."""
    settings = toy.config(12, log_every=1, save_every=2)
    whole = toy.train(tmp_path / "whole", settings)
    with small_disk(tmp_path / "disk") as disk:
        ballast, faults = Ballast(disk), set[str]()
        for number, free in enumerate(range(0, 40_000, 4096)):
            run = disk / str(number)

            def spend(free: int = free) -> None:
                ballast.fill(free)

            try:
                toy.train(run, settings, {5: spend})
            except UserError as error:
                said = str(error)
                assert "no room to write" in said
                assert "\n" not in said
                faults.add(Path(said.split("no room to write ")[1].split(" (")[0]).name)
                ballast.remove()
                resumed = toy.train(run, settings)
                assert resumed.checkpoints.steps() == whole.checkpoints.steps()
                for step in resumed.checkpoints.steps():
                    assert toy.same(resumed.checkpoints.load_resume(step), whole.checkpoints.load_resume(step))
                assert toy.metrics(run) == toy.metrics(tmp_path / "whole")
            else:
                ballast.remove()
        assert len(faults) >= 2, faults


def test_a_stop_on_a_full_disk_is_one_line(tmp_path: Path):
    """The save that a signal asks for fails, and says so; what was saved before is kept."""
    from tests.core.test_loop import interrupt

    task, loop = toy.build(tmp_path / "run", toy.config(12, log_every=50, eval_every=0))
    task.before[7] = interrupt
    with ExitStack() as limits:
        task.before[6] = lambda: limits.enter_context(largest_file(300))
        with pytest.raises(UserError, match="no room to write"):
            loop.train()
    assert loop.checkpoints.newest() == 6


def test_a_name_too_long_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a shorter one as --name"):
        RunFolder.create(tmp_path / ("x" * 251), RunRecord("protonet", "smoke", "smoke", {}, {}))
    assert not list(tmp_path.iterdir())


def test_of_two_that_take_a_name_at_one_moment_one_has_it(tmp_path: Path) -> None:
    """And the folder holds what that one wrote, whole."""
    for trial in range(20):
        path, start = tmp_path / f"race{trial}", threading.Barrier(4)

        def take(seed: int, path: Path = path, start: threading.Barrier = start) -> int | str:
            record = RunRecord("toy", "smoke", "smoke", {"seed": seed}, {"seed": seed})
            start.wait()
            try:
                RunFolder.create(path, record)
            except UserError as error:
                return str(error)
            return seed

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(take, range(4)))
        [winner] = [one for one in found if isinstance(one, int)]
        assert all("holds a run already" in one for one in found if isinstance(one, str))
        assert RunFolder.open(path).record.overrides == {"seed": winner}
