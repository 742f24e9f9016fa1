"""What the tests of the benchmarks share: a benchmark as a process of its own, as its command line starts it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The benchmarks are scripts, which import each other from their own folder.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def benchmark_run(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``benchmarks/NAME.py`` with these options."""

    def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"benchmarks/{name}.py", *options]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)

    return run


@pytest.fixture
def quick(benchmark_run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Callable[[str], Any]:
    """What a quick run of a benchmark writes; it succeeds, and judges no bar."""

    def run(name: str) -> Any:
        report = tmp_path / "speed.json"
        done = benchmark_run(name, "--quick", "--threads", "1", "--json", str(report))
        assert done.returncode == 0, done.stdout + done.stderr
        written = json.loads(report.read_text())
        assert written["quick"]
        assert not any(bar["judged"] for bar in written["bars"].values())
        return written

    return run
