"""``etude compare [STUDY]``: our numbers beside the published ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from etude import registry
from etude.report import markdown
from etude.report.results import comparisons, faults
from etude.report.terminal import local_runs, print_comparisons
from etude.runs.flags import parse
from etude.runs.table import show
from etude.runs.training import say


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
    chosen = [registry.load(name) for name in ((options.study,) if options.study else registry.NAMES)]
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
