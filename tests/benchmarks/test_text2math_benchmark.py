"""The benchmark of the word problems runs from end to end, and all sides compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_quick(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="wants the extra `bench` or `bert`")
    report = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/text2math.py", "--quick", "--threads", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(report.read_text())
    assert written["quick"]
    assert written["agreement"]["holds"]
    assert len(written["agreement"]["differences"]) == 5
    assert all(0 <= difference <= 1e-3 for difference in written["agreement"]["differences"].values())
    beam, training = set(written["blocks"]["beam"]), set(written["blocks"]["training"])
    assert {"etude", "transformers around etude's network", "one hypothesis at a time"} <= beam
    assert {"etude", "tutorial, a sentence at a time"} <= training
    for sides in written["blocks"].values():
        assert all(block["seconds"] > 0 and block["count"] > 0 for row in sides.values() for block in row)
    assert len(written["bars"]) == 3
    assert not any(bar["judged"] for bar in written["bars"].values())
