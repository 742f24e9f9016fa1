"""How long `etude` takes to start: whole processes of short commands, from start to end.

    uv run python benchmarks/startup.py [--repeats 11] [--json FILE]

Wall time is what a person waits for, and grows with whatever else the machine does; CPU time (user and system, of the
process alone) hardly does. The bars are on the medians of both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Seconds that a command may take, by its words.
BARS: dict[str, float | None] = {
    "--help": 0.5, "list": 1.0, "show protonet": 1.0, "run protonet --help": 1.0, "predict --help": 1.0, "compare": 2.0,
    "run protonet smok": 1.0,
}  # fmt: skip
BARE = "python -c pass"


def measure(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    # Known already; without this the object would wait for a process that is gone.
    process.returncode = 0
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="processes of each command, beside one not counted")
    parser.add_argument("--json", type=Path, help="a file for every process's seconds")
    options = parser.parse_args()
    script = Path(sys.executable).parent / "etude"
    etude = [str(script)] if script.exists() else [sys.executable, "-m", "etude"]
    commands = {BARE: [sys.executable, "-c", "pass"]} | {words: [*etude, *words.split()] for words in BARS}
    seconds: dict[str, list[tuple[float, float]]] = {words: [] for words in commands}
    before = os.getloadavg()
    # In turn, so that other work on the machine meets all alike; the first turn fills the caches of files.
    for repeat in range(options.repeats + 1):
        for words, command in commands.items():
            found = measure(command)
            if repeat:
                seconds[words].append(found)
    after = os.getloadavg()
    load = f"load {before[0]:.1f} before and {after[0]:.1f} after"
    print(f"{os.cpu_count()} cores, {load}; {options.repeats} processes each")
    table = Table("command", "wall: min", "median", "max", "CPU: min", "median", "max", "bar", "wall", "CPU")
    rows: list[dict[str, Any]] = []
    for words, found in seconds.items():
        wall, cpu = ([pair[place] for pair in found] for place in (0, 1))
        bar = BARS.get(words)
        kept = ["" if bar is None else "kept" if statistics.median(x) < bar else "FAIL" for x in (wall, cpu)]
        told = [f"{number(x):.2f}" for x in (wall, cpu) for number in (min, statistics.median, max)]
        table.add_row(words if words == BARE else f"etude {words}", *told, "" if bar is None else f"{bar:.1f}", *kept)
        rows.append({"command": words, "wall": wall, "cpu": cpu, "bar": bar})
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps({"load": [before, after], "commands": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
