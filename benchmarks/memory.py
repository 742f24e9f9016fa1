"""What `etude check` says that a run takes of memory, beside what the run then took.

    uv run python benchmarks/memory.py [STUDY ...] [--json FILE]

Laptop presets, some steps each, with the final results; made pictures and scenes in place of CIFAR-10 and CLEVRTex, the
other studies' real data. Every check and every run is a process of its own. `ETUDE_INCEPTION` names the Inception
weights; without them no FID is measured, and none is predicted.

The exit status is 1 where a prediction is more than a fifth away.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import side_by_side
from etude import registry
from etude.core.files import write_json
from etude.runs.environment import environment

BAR = 0.2
_MADE = ("--data.source", "generated")
_SCENES = (*_MADE, "--data.most", "300", "--metric.watched", "64")
_FID = ("--metric.inception", os.environ.get("ETUDE_INCEPTION", "none"))
RUNS: dict[str, tuple[str, ...]] = {
    "resnet": ("laptop", "--loop.max-steps", "40", *_MADE),
    "text2math": ("laptop", "--loop.max-steps", "150"),
    "text2math, ours": ("ours", "--loop.max-steps", "150"),
    "slots": ("laptop", "--loop.max-steps", "40", *_SCENES, *_FID),
    "slotdiffusion, autoencoder": ("vae-laptop", "--loop.max-steps", "40", *_SCENES, *_FID),
    "slotdiffusion": (
        "laptop", "--loop.max-steps", "40", "--vae.weights", "untrained", "--sample.ancestral", "20", *_SCENES,
        "--metric.composed", "64", "--metric.reconstructed", "16", *_FID,
    ),
    "dcgan": ("laptop", "--loop.max-steps", "40", "--metric.samples", "1000", "--metric.inception", "none"),
    "protonet": ("laptop", "--loop.max-steps", "40", "--evaluation.episodes", "50", "--evaluation.pool-episodes", "50"),
    "pix2pix": ("laptop", "--loop.max-steps", "40", *_FID),
    "darts, search": ("laptop", "--loop.max-steps", "12", *_MADE),
    "darts, retraining": ("retrain-laptop", "--loop.max-steps", "20", *_MADE),
}  # fmt: skip
"""By name: a preset, and what makes its run short."""


def etude(*words: str) -> str:
    child = subprocess.run([sys.executable, "-m", "etude", *words], capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"memory.py: etude {' '.join(words)} ended with {child.returncode}: {child.stderr[-500:]}")
    return child.stdout


def measure(name: str, folder: Path) -> dict[str, Any]:
    """What was said and what was taken, in MB."""
    study = name.partition(",")[0]
    words = [study, *RUNS[name], "--loop.eval-every", "1000", "--loop.device", "cpu"]
    said = json.loads(etude("check", *words, "--json"))[0]
    run = folder / study / "run"
    etude("run", *words, "--runs", str(folder), "--name", "run")
    took = json.loads((run / "summary.json").read_text())["peak_memory_mb"]
    return {
        "words": words, "parts": said["memory_mb"], "said_mb": said["peak_memory_mb"], "took_mb": took,
        "apart": said["peak_memory_mb"] / took - 1,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*", help="which; all by default")
    parser.add_argument("--json", type=Path, help="a file for all measurements")
    options = parser.parse_args()
    unknown = set(options.study) - set(registry.NAMES)
    if unknown:
        parser.error(f"no study {', '.join(sorted(unknown))}: known are {', '.join(registry.NAMES)}")
    found: dict[str, dict[str, Any]] = {}
    for name in RUNS:
        if not options.study or name.partition(",")[0] in options.study:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(name, Path(folder))
            print(f"{name}: {found[name]['apart']:+.0%}", file=sys.stderr, flush=True)
    table = side_by_side.new_table("Peak memory", ["run"], ["check MB", "the run MB", "apart"])
    for name, row in found.items():
        missed = "" if abs(row["apart"]) <= BAR else " FAIL"
        table.add_row(name, f"{row['said_mb']:,}", f"{row['took_mb']:,}", f"{row['apart']:+.0%}{missed}")
    side_by_side.Console(soft_wrap=True).print(table)
    if options.json is not None:
        write_json(options.json, {"benchmark": "memory", "environment": environment(), "runs": found})
    return int(any(abs(row["apart"]) > BAR for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
