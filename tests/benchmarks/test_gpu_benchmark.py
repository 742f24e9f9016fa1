"""benchmarks/gpu.py: the forms run and agree, and what is counted of a step."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import faults, gpu
from etude.runs.training import choose

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_forms_agree(benchmark_run: Run, tmp_path: Path):
    words = ["--quick", "--forms", "etude", "bf16", "--json", str(tmp_path / "g")]
    done = benchmark_run("gpu", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "g").read_text())
    assert set(found["roofline"]) == {"fp32_per_s", "bf16_per_s", "bytes_per_s"}
    assert set(found["studies"]) == set(faults.TARGETS)
    for study in found["studies"].values():
        assert study["cost"]["flops"] > 1e5
        assert set(study["forms"]) == {"plain", "etude", "bf16"}
        assert study["forms"]["etude"]["apart"] < 1e-4
        assert 0 < study["forms"]["bf16"]["apart"] < 0.1, "another precision gives another loss"
        for row in study["forms"].values():
            assert row["attained"] == pytest.approx(row["bound_s"] / row["median_s"])


def test_losses_that_are_apart():
    assert gpu.apart([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert gpu.apart([1.0, float("nan")], [1.0, 2.0]) == float("inf")


def test_what_disagrees_ends_with_one(tmp_path: Path):
    script = tmp_path / "wrong.py"
    folder = Path(gpu.__file__).parent
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport gpu\n"
        "gpu.TOLERANCE['bf16'] = 0.0\nsys.exit(gpu.main(sys.argv[1:]))\n"
    )
    words = [sys.executable, str(script), "protonet", "--quick", "--forms", "bf16"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "DISAGREES" in done.stdout


def test_operations_and_bytes_are_counted():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    with gpu.Counts() as counts:
        product = a @ b
        product.t()
    assert counts.flops == 2 * 3 * 5 * 7
    assert counts.bytes == 4 * (15 + 35 + 21)
    with gpu.Counts() as counts:
        product.sum().backward()
    assert counts.flops == 2 * 3 * 7 * 5


@pytest.mark.parametrize("name", faults.TARGETS)
def test_the_sizes_are_settings(name: str):
    study, preset, _ = faults.TARGETS[name]
    assert set(gpu.SIZES) == set(faults.TARGETS)
    flags = [word for key, value in gpu.SIZES[name].items() for word in (f"--{key}", *str(value).split())]
    choose([study, preset, *flags], "gpu.py")


@pytest.mark.parametrize("words", [["nothing"], ["--forms", "fast"], ["--device", "cuda"]])
def test_wrong_words_are_one_line(benchmark_run: Run, words: list[str]):
    if words[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    done = benchmark_run("gpu", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpu.py: ")
