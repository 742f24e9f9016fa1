"""``etude baseline STUDY``: what the best simple methods get where the study's networks are measured."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.files import write_json
from etude.runs.environment import commit
from etude.runs.table import show
from etude.runs.training import say


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional]
    """The study, on the real data that its committed results are of."""
    runs: Path = Path("runs")
    """The folder that STUDY/baseline.json is written to, beside the runs of the study."""
    json: bool = False
    """Print a JSON list."""


def main(options: Options) -> None:
    study = registry.load(options.study)
    module = study.module("baseline")
    started = time.perf_counter()
    rows = [dataclasses.asdict(row) for row in module.measure(say)]
    about = {
        "format": 1,
        "study": study.name,
        "command": f"etude baseline {study.name}",
        "commit": commit(),
        "data": module.checksums(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(options.runs / study.name / "baseline.json", about | {"rows": rows})
    shown = ("name", "metric", "split", "variant", "cells", "value", "half_width", "unit", "protocol")
    show(rows if options.json else [{key: row[key] for key in shown} for row in rows], as_json=options.json)
