"""The benchmark beside easyfsl runs from end to end, and both sides agree."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("easyfsl") is None, reason="easyfsl comes with the extra 'bench'")
def test_quick(root: Path, tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/protonet.py", "--quick", "--threads", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(report.read_text())
    assert written["quick"]
    assert all(check["holds"] for check in written["agreements"])
    sides = {table: set(blocks) for table, blocks in written["blocks"].items()}
    assert {"etude", "easyfsl"} <= sides["training"]
    assert all({"etude", "easyfsl, pictures"} <= sides[name] for name in ("5-way 1-shot", "20-way 5-shot"))
    assert not any(bar["judged"] for bar in written["bars"].values())
