"""``etude report``: one HTML file of comparisons, runs and pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import studies
from etude.cli.flags import parse
from etude.report.page import write_report


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional] = ""
    """One study; all of them where none is named."""
    runs: Path = Path("runs")
    """Where local runs are, beside the committed results."""
    out: Path = Path("report/index.html")
    """The file; an older report there is replaced."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude report", description=__doc__ or "")
    names = (options.study,) if options.study else studies.NAMES
    print(write_report(options.out, [studies.load(name) for name in names], [options.runs]))
    return 0
