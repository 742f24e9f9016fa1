"""benchmarks/memory.py: its runs are there, and a prediction that is far off gives another exit status."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from etude import registry
from etude.runs.training import choose


@pytest.mark.parametrize("name", memory.RUNS)
def test_the_runs_are_ones_that_there_are(name: str):
    chosen = choose([name.partition(",")[0], *memory.RUNS[name]], "memory.py")
    assert chosen.config.loop.max_steps <= 150


def test_every_study_is_measured():
    assert {name.partition(",")[0] for name in memory.RUNS} == set(registry.NAMES)


@pytest.mark.parametrize(("said", "status"), [(1000, 0), (810, 0), (790, 1), (1210, 1)])
def test_a_fifth_is_allowed(said: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def etude(*words: str) -> str:
        if words[0] == "check":
            return json.dumps([{"memory_mb": {"training": said}, "peak_memory_mb": said}])
        run = Path(words[words.index("--runs") + 1]) / words[1] / "run"
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"peak_memory_mb": 1000}))
        return ""

    monkeypatch.setattr(memory, "etude", etude)
    monkeypatch.setattr(sys, "argv", ["memory.py", "darts", "--json", str(tmp_path / "m.json")])
    assert memory.main() == status
    runs = json.loads((tmp_path / "m.json").read_text())["runs"]
    assert set(runs) == {"darts, search", "darts, retraining"}
    assert runs["darts, search"]["apart"] == pytest.approx(said / 1000 - 1)
