"""The lines of a metrics.jsonl as they can be drawn."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a metrics.jsonl that can be read, and what is to be said of the others.

    A line is kept if it is an object with a whole ``step``; of its values the finite numbers are.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path} cannot be read ({error.strerror})"]
    rows: list[dict[str, Any]] = []
    bad: list[int] = []
    infinite: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**53:
            bad.append(number)
            continue
        numbers = {name: _number(value) for name, value in row.items() if type(value) in (int, float)}
        infinite |= {name for name, value in numbers.items() if not math.isfinite(value)}
        infinite |= {name for name, value in row.items() if value is None}
        rows.append({name: value for name, value in numbers.items() if math.isfinite(value)} | {"step": row["step"]})
    notes: list[str] = []
    if bad == [len(lines)]:
        notes.append("the last line of metrics.jsonl is cut short: left out")
    elif bad:
        which = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{len(bad)} of {len(lines)} lines of metrics.jsonl cannot be read (line {which}): left out")
    if infinite:
        notes.append(f"values that are no finite numbers are left out of {', '.join(sorted(infinite))}")
    return rows, notes


def _number(value: int | float) -> float:
    """A number that can be drawn: the difference of two must be one, too."""
    return float(value) if -1e300 < value < 1e300 else math.inf


def rows_of(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps and values of one metric in the lines of metrics.jsonl."""
    pairs = [(row["step"], row[name]) for row in metrics if name in row]
    return [step for step, _ in pairs], [value for _, value in pairs]
