"""``etude compare [STUDY] [--claims]``: our numbers beside the published ones, or what the sources say, judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from etude import registry
from etude.core.study import Study
from etude.report import markdown
from etude.report.claims import Judgement, judgements
from etude.report.reference import Comparison
from etude.report.results import comparisons, faults
from etude.report.terminal import local_runs, print_comparisons
from etude.runs.table import show
from etude.runs.training import say

T = TypeVar("T", Comparison, Judgement)


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional] = ""
    """One study; all of them where none is named."""
    runs: Path | None = None
    """The folders of local runs, beside the committed results; runs/ where nothing is named."""
    format: Literal["table", "markdown", "json"] = "table"
    """The form to print them in."""
    json: bool = False
    """The same as --format json."""
    claims: bool = False
    """Judge what the sources say in place of what they measured."""


def main(options: Options) -> None:
    chosen = [registry.load(name) for name in ((options.study,) if options.study else registry.NAMES)]
    runs = local_runs(options.runs)
    for line in faults(chosen, runs):
        say(f"etude: {line}")
    if options.claims:
        _print(chosen, judgements(chosen, runs), options, markdown.claims, lambda rows: show([vars(r) for r in rows]))
    else:
        _print(chosen, comparisons(chosen, runs), options, markdown.table, print_comparisons)


def _print(
    chosen: Sequence[Study], rows: list[T], options: Options, table: Callable[[list[T]], str],
    columns: Callable[[list[T]], None],
) -> None:  # fmt: skip
    if options.json or options.format == "json":
        show([row.to_dict() for row in rows], as_json=True)
    elif options.format == "markdown":
        tables = [table([row for row in rows if row.study == study.name]) for study in chosen]
        print("\n".join(f"## {study.title}\n\n{text}" for study, text in zip(chosen, tables, strict=True)), end="")
    else:
        columns(rows)
