"""``etude report [STUDY | RUN]``: one self-contained HTML file of numbers, curves and pictures, or the same as
Markdown; of the whole bench, of one study, or of one run's folder, finished or not.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.errors import UserError, nearest
from etude.report.page import Format, of_run, of_studies
from etude.report.terminal import local_runs
from etude.runs.training import say

_ENDINGS = {".md": "markdown", ".markdown": "markdown"}


@dataclass(frozen=True)
class Options:
    what: Annotated[str, tyro.conf.Positional] = ""
    """A study or a run's folder; all studies where nothing is named."""
    runs: Path | None = None
    """The folders of local runs, beside the committed results; runs/ where nothing is named."""
    out: Path | None = None
    """The file; an older report there is replaced. In report/, named for what it is of, where nothing is named."""
    format: Format | None = None
    """html or markdown; where nothing is named the ending of --out says it, and else it is html."""


def main(options: Options) -> None:
    kind: Format = options.format or ("markdown" if options.out and options.out.suffix in _ENDINGS else "html")
    ending = ".md" if kind == "markdown" else ".html"
    known = options.what in ("", *registry.NAMES)
    name = options.what or "index" if known else "-".join(Path(options.what).resolve().parts[-2:])
    out = options.out or Path("report") / f"{name}{ending}"
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder: name a file in it, such as --out {out / f'report{ending}'}")
    runs = local_runs(options.runs)
    if known:
        names = (options.what,) if options.what else registry.NAMES
        report = of_studies([registry.load(name) for name in names], runs)
    elif os.path.isdir(options.what):
        report = of_run(Path(options.what))
    else:
        raise UserError(f"'{options.what}' is no study and no run's folder{nearest(options.what, registry.NAMES)}")
    for line in report.faults:
        say(f"etude: {line}")
    shown = [part.run.path for section in report.sections for part in section.runs]
    if options.runs is not None and not any(options.runs in path.parents for path in shown):
        say(f"etude: no further runs in {options.runs}: the report is of what is there without it")
    print(report.write(out, kind))
