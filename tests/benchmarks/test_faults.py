"""benchmarks/faults.py: every study under every fault, fewer than in full; and what it would call wrong."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.core import toy

from benchmarks import faults
from etude import registry
from etude.core.errors import UserError

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_every_study_is_tried():
    assert {study for study, _, _ in faults.TARGETS.values()} == set(registry.NAMES)


@pytest.mark.parametrize("study", registry.NAMES)
def test_a_study_bears_kills_and_changed_bytes(study: str, tmp_path: Path, benchmark_run: Run):
    words = [study, "--kills", "3", "--bytes", "20", "--faults", "kill -9", "a byte", "--json", str(tmp_path / "f")]
    done = benchmark_run("faults", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    for row in json.loads((tmp_path / "f").read_text())["rows"]:
        assert row["kill -9"] == "3 of 3 equal"
        assert row["a byte"] == "20 of 20 found, equal"


def test_the_other_faults(tmp_path: Path, benchmark_run: Run):
    names = [name for name in faults.FAULTS if name not in ("kill -9", "a byte")]
    done = benchmark_run("faults", "protonet", "--faults", *names, "--json", str(tmp_path / "f"))
    assert done.returncode == 0, done.stderr + done.stdout
    (row,) = json.loads((tmp_path / "f").read_text())["rows"]
    assert {name: row[name] for name in names} == {
        "Ctrl-C": "equal", "no room": "equal", "clock": "equal", "read-only data": "equal",
        "two runs": "refused, equal",
    }  # fmt: skip


def test_a_fault_that_is_refused_ends_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What etude raises in this process, as for a file that it cannot read."""

    def refused(*_: object) -> str:
        raise UserError("a file is broken")

    monkeypatch.setattr(faults, "FAULTS", {"one": refused, "two": lambda *_: "equal"})
    monkeypatch.setattr(faults.Trial, "undisturbed", lambda _: 0.0)
    monkeypatch.setattr("sys.argv", ["faults.py", "protonet", "--json", str(tmp_path / "f")])
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    try:
        assert faults.main() == 1
    finally:
        torch.set_num_threads(threads)
    (row,) = json.loads((tmp_path / "f").read_text())["rows"]
    assert (row["one"], row["two"]) == ("WRONG: a file is broken", "equal")


@pytest.mark.slow
def test_all_of_it(benchmark_run: Run):
    done = benchmark_run("faults")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run with a summary, and a copy."""
    settings = toy.config(6)
    one = toy.train(tmp_path / "one", settings).run
    one.write_summary({"results": [1.0], "train_seconds": 3.0})
    shutil.copytree(one.path, tmp_path / "two")
    return one.path, tmp_path / "two"


def test_equal_runs_do_not_differ(runs: tuple[Path, Path]):
    one, two = runs
    (two / "summary.json").write_text(json.dumps({"results": [1.0], "train_seconds": 4.0}))
    assert faults.difference(one, two) == ""


@pytest.mark.parametrize(
    ("file", "says"),
    [("extra", "other files"), ("summary.json", "another summary"), ("metrics.jsonl", "other metrics")],
)
def test_what_differs_is_named(runs: tuple[Path, Path], file: str, says: str):
    one, two = runs
    path = two / file
    if file == "metrics.jsonl":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-1], lines[-1].replace('"step": 6', '"step": 7')]) + "\n")
    else:
        path.write_text(json.dumps({"results": [1.0000001], "train_seconds": 3.0}))
    assert faults.difference(two, one).startswith(says)


@pytest.mark.parametrize("name", ["weights.safetensors", "resume.pt"])
def test_a_last_bit_is_seen(runs: tuple[Path, Path], name: str):
    one, two = runs
    folder = max((two / "checkpoints").glob("step-*"))
    path = folder / name
    data = bytearray(path.read_bytes())
    if name == "resume.pt":
        state = torch.load(path, weights_only=True)
        state["loop"]["stale"] += 1
        torch.save(state, path)
    else:
        data[-1] ^= 1
        path.write_bytes(data)
    try:
        found = faults.difference(two, one)
    except UserError:
        pytest.fail("the file is still a valid one")
    assert folder.name in found


def test_equal_is_of_bits():
    zero, negative = torch.tensor([0.0]), torch.tensor([-0.0])
    assert faults.same({"a": [zero]}, {"a": [zero.clone()]})
    assert not faults.same(zero, negative)
    assert not faults.same(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert faults.same(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not faults.same(1, 1.0)


@pytest.mark.parametrize("words", [["unknown"], ["--kills", "0"], ["--kills", "37"], ["--bytes", "0"]])
def test_wrong_words(words: list[str], benchmark_run: Run):
    done = benchmark_run("faults", *words)
    assert done.returncode == 2
    assert "faults.py: error:" in done.stderr
