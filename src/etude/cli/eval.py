"""``etude eval RUN``: evaluate a finished run again on the test split, from its weights on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.cli.flags import parse
from etude.cli.table import show
from etude.cli.training import load_trained


@dataclass(frozen=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude eval", description=__doc__ or "")
    _, _, summary, task = load_trained(options.run)
    keys = ("experiment", "cell", "metric", "split")
    before = {tuple(row[key] for key in keys): row["value"] for row in summary["results"]}
    rows = [
        {
            "experiment": result.experiment,
            "cell": result.cell,
            "metric": result.metric,
            "split": result.split,
            "value": result.value,
            "half_width": result.half_width,
            "unit": result.unit,
            "in_summary": before.get(tuple(getattr(result, key) for key in keys)),
            "protocol": result.protocol,
        }
        for result in task.results(summary["extra"])
    ]
    show(rows, as_json=options.json)
    return 0
