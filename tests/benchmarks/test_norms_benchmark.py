"""The benchmark of the norms runs from end to end, and all sides compute the same."""

import json
import subprocess
import sys
from pathlib import Path


def test_quick(root: Path, tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/norms.py", "--quick", "--threads", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(report.read_text())
    assert written["quick"]
    assert written["agree"]
    assert len(written["differences"]) == 30
    assert all(value < 1e-4 for value in written["differences"].values())
    tables = written["blocks"]
    assert {"bn, eager, channels last", "bin, eager, contiguous", "gn, training step"} <= set(tables)
    for sides in tables.values():
        assert set(sides) == {"etude", "plain reference", "PyTorch"}
        assert all(block["seconds"] > 0 for row in sides.values() for block in row)
    assert set(written["bars"]) == {f"{name}, eager, channels last" for name in ("bn", "in", "bin", "ln", "gn")}
    assert not any(bar["judged"] for bar in written["bars"].values())
