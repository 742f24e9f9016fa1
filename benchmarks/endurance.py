"""What a long training holds: memory, its metrics file and its folder, watched from outside while it trains.

    uv run python benchmarks/endurance.py [STUDY] [PRESET] [--minutes 60] [--json FILE] [-- --flags of etude run]

The run is a process of its own, stopped with Ctrl-C's signal when the time is over, as a person would. The slope of
its resident memory is a least-squares line through all samples after the first tenth, in MB an hour, with the
standard error of the line.

The exit status is 1 where memory grows by more than a hundredth an hour and two standard errors, where more
checkpoints lie on disk than the retention rule allows, or more in the folder than they and the metrics take, where the
metrics have more lines than the intervals of the log and of evaluation make, or where the run does not stop as it
should. Linux only.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from etude.core.files import write_json
from etude.core.run_folder import RunFolder
from etude.runs.environment import environment

_BESIDE_MB = 1.0
"""What a run has beside checkpoints and metrics while it trains: its configuration and its log."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def sample(pid: int, run: Path, started: float) -> dict[str, float]:
    """What a training holds now."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes() if metrics.exists() else b""
    checkpoints = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir()]
    return {
        "seconds": time.monotonic() - started,
        "rss_mb": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20,
        "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "metrics_kb": len(lines) / 1024,
        "lines": lines.count(b"\n"),
        "checkpoint_mb": max((size(p) for p in checkpoints), default=0) / 2**20,
        "folder_mb": size(run) / 2**20,
        "checkpoints": len(checkpoints),
        "step": max((int(p.name[5:]) for p in checkpoints), default=0),
    }


def size(folder: Path) -> int:
    """Bytes of all files below a folder from which others are removed meanwhile."""
    total = 0
    # Unlike pathlib's, this walk passes over a folder that is gone when its turn comes.
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(where) / name).stat().st_size
    return total


def slope(seconds: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least squares: the slope an hour, and its standard error; neighbouring samples are taken for independent."""
    hours = seconds / 3600
    centred = hours - hours.mean()
    spread = (centred**2).sum()
    rise = float((centred * values).sum() / spread)
    rest = values - values.mean() - rise * centred
    return rise, float(np.sqrt((rest**2).sum() / max(1, len(values) - 2) / spread))


def watch(words: list[str], runs: Path, minutes: float, every: float) -> dict[str, Any]:
    """Train for some minutes from the first metrics on, and stop. Returns the samples and how it ended."""
    study = words[0]
    command = [sys.executable, "-m", "etude", "run", *words, "--name", "long", "--runs", str(runs)]
    log = runs / "log"
    with log.open("w") as to:
        child = subprocess.Popen(command, stdout=to, stderr=to)
        run, rows = runs / study / "long", []
        while not (run / "metrics.jsonl").exists() and child.poll() is None:
            time.sleep(0.1)
        started = time.monotonic()
        while time.monotonic() - started < 60 * minutes and child.poll() is None:
            rows.append(sample(child.pid, run, started))
            time.sleep(every)
        child.send_signal(signal.SIGINT)
        status = child.wait(600)
    lines, loop = log.read_text().strip().splitlines(), RunFolder.open(run).record.config["loop"]
    return {"samples": rows, "status": status, "said": lines[-1] if lines else "", "loop": loop}


def judge(found: Mapping[str, Any], rows: Sequence[Mapping[str, float]], memory: tuple[float, float]) -> list[str]:
    """What is wrong, a line each.

    Args:
        found: what `watch` returned.
        rows: the samples that count.
        memory: the slope of resident memory, MB an hour, and its standard error.
    """
    loop, (rise, error) = found["loop"], memory
    # The best one beside the newest, and one that is about to be removed.
    kept = loop["keep"] + 2
    most = max(row["checkpoints"] for row in rows)
    faults: list[str] = []
    if rise - 2 * error > 0.01 * rows[0]["rss_mb"]:
        faults.append(f"memory grows by {rise:.1f} +- {error:.1f} MB an hour")
    if most > kept:
        faults.append(f"{most:.0f} checkpoints, and {loop['keep']} are kept")
    held = max(row["folder_mb"] - row["metrics_kb"] / 1024 for row in rows)
    allowed = kept * max(row["checkpoint_mb"] for row in rows) + _BESIDE_MB
    if held > allowed:
        faults.append(f"{held:.1f} MB in the folder beside the metrics, and {kept} checkpoints take {allowed:.1f} MB")
    for row in rows:
        # What was trained since the checkpoint that gives the step is not known better.
        steps = row["step"] + 2 * loop["save_every"]
        lines = 2 + steps // loop["log_every"] + (steps // loop["eval_every"] if loop["eval_every"] else 0)
        if row["lines"] > lines:
            faults.append(f"{row['lines']:.0f} lines of metrics by step {row['step']:.0f}, and {lines:.0f} are due")
            break
    if found["status"] != 130:
        faults.append(f"it ended with {found['status']}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="resnet")
    parser.add_argument("preset", nargs="?", default="laptop")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--json", type=Path, help="a file for all samples")
    args = sys.argv[1:]
    more = args[args.index("--") + 1 :] if "--" in args else []
    options = parser.parse_args(args[: args.index("--")] if "--" in args else args)
    words = [options.study, options.preset, "--loop.max-steps", "100000000", *more]
    with tempfile.TemporaryDirectory() as folder:
        found = watch(words, Path(folder), options.minutes, options.every)
    rows = found["samples"][len(found["samples"]) // 10 :]
    if len(rows) < 3:
        print(f"too few samples: {found['said']}", file=sys.stderr)
        return 1
    seconds = np.array([row["seconds"] for row in rows])
    table = Table("what", "first", "last", "most", "an hour")
    slopes: dict[str, tuple[float, float]] = {}
    for name in ("rss_mb", "open_files", "threads", "metrics_kb", "folder_mb", "checkpoints", "step"):
        values = np.array([row[name] for row in rows])
        slopes[name] = slope(seconds, values)
        shown = [f"{value:,.1f}" for value in (values[0], values[-1], values.max())]
        table.add_row(name.replace("_", " "), *shown, "{:+,.1f} +- {:,.1f}".format(*slopes[name]))
    minutes = (seconds[-1] - seconds[0]) / 60
    Console().print(f"{' '.join(words)}: {len(rows)} samples over {minutes:.0f} minutes")
    Console().print(table)
    print(found["said"])
    faults = judge(found, rows, slopes["rss_mb"])
    for fault in faults:
        print(f"FAIL: {fault}")
    if options.json:
        write_json(options.json, found | {"environment": environment(), "words": words, "slopes": slopes})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
