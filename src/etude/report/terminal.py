"""The comparison with published numbers on a terminal, and where local runs are looked for."""

import os
from collections.abc import Sequence
from pathlib import Path

from etude.core.errors import UserError
from etude.report.reference import Comparison
from etude.runs.table import show


def local_runs(named: Path | None) -> list[Path]:
    """The folder of local runs, ``runs/`` where nobody named one; that one need not exist.

    Raises:
        UserError: the one that was named is no folder.
    """
    if named is not None and not os.path.isdir(named):
        raise UserError(f"--runs {named} is no folder: `etude run` puts runs in runs/, or where its --runs says")
    return [named or Path("runs")]


def print_comparisons(rows: Sequence[Comparison]) -> None:
    """Print the comparison as a table, with the protocols of both sides in notes below it."""
    notes: dict[str, int] = {}

    def note(text: str) -> str:
        return f"({notes.setdefault(text, len(notes) + 1)})" if text else ""

    show(
        [
            {
                "study": row.study,
                "experiment": row.experiment,
                "cell": row.cell,
                "metric": f"{row.metric} {row.unit}".strip(),
                "split": row.split,
                "published": f"{row.claim} {note(row.published_protocol)}",
                "source": row.source,
                "ours": "" if row.ours is None else f"{row.ours:.2f} {note(row.protocol)}",
                "95 %": f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else "",
                "seeds": row.seeds,
                "scale": row.scale,
                "verdict": row.told,
                "margin": f"{row.margin:g}",
                "without learning": "" if row.baseline is None else f"{row.baseline:.4g} ({row.baseline_name})",
            }
            for row in rows
        ]
    )
    for text, number in notes.items():
        print(f"({number}) {text}")
    print("95 %: over seeds where there are several, else of the one run's own measurement.")
