"""``etude compare [STUDY]``: our numbers beside the published ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from etude import studies
from etude.cli.flags import parse
from etude.cli.table import show
from etude.cli.training import say
from etude.core.errors import UserError
from etude.report import markdown
from etude.report.reference import Comparison
from etude.report.results import comparisons, faults


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional] = ""
    """One study; all of them where none is named."""
    runs: Path | None = None
    """Where local runs are, beside the committed results; runs/ where nothing is named."""
    format: Literal["table", "markdown", "json"] = "table"
    """How to print them."""
    json: bool = False
    """The same as --format json."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude compare", description=__doc__ or "")
    chosen = [studies.load(name) for name in ((options.study,) if options.study else studies.NAMES)]
    runs = local_runs(options.runs)
    rows = comparisons(chosen, runs)
    for line in faults(chosen, runs):
        say(f"etude: {line}")
    if options.json or options.format == "json":
        show([row.to_dict() for row in rows], as_json=True)
    elif options.format == "markdown":
        tables = [markdown.table([row for row in rows if row.study == study.name]) for study in chosen]
        print("\n".join(f"## {study.title}\n\n{table}" for study, table in zip(chosen, tables, strict=True)), end="")
    else:
        print_comparisons(rows)
    return 0


def local_runs(named: Path | None) -> list[Path]:
    """The folder of local runs, ``runs/`` where nobody named one; that one need not exist.

    Raises:
        UserError: the one that was named is no folder.
    """
    if named is not None and not os.path.isdir(named):
        raise UserError(f"--runs {named} is no folder: `etude run` puts runs in runs/, or where its --runs says")
    return [named or Path("runs")]


def print_comparisons(rows: Sequence[Comparison]) -> None:
    """The comparison as a table, with the protocols of both sides in notes below it."""
    notes: dict[str, int] = {}

    def note(text: str) -> str:
        return f"({notes.setdefault(text, len(notes) + 1)})" if text else ""

    table: list[dict[str, Any]] = []
    for row in rows:
        interval = f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else ""
        table.append(
            {
                "study": row.study,
                "experiment": row.experiment,
                "cell": row.cell,
                "metric": f"{row.metric} {row.unit}".strip(),
                "split": row.split,
                "published": f"{row.claim} {note(row.published_protocol)}",
                "source": row.source,
                "ours": "" if row.ours is None else f"{row.ours:.2f} {note(row.protocol)}",
                "95 %": interval,
                "seeds": row.seeds,
                "scale": row.scale,
                "verdict": row.verdict,
            }
        )
    show(table)
    for text, number in notes.items():
        print(f"({number}) {text}")
    print("95 %: over seeds where there are several, else of the one run's own measurement.")
