"""``etude eval RUN``: evaluate a finished run again on the test split, from its weights on disk.

``etude eval RUN FILE`` scores the run's network on problems of yours, and ``etude eval STUDY FILE`` the predictions
that the file holds, where a study knows such files (text2math does).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.errors import UserError
from etude.runs.flags import parse, switch
from etude.runs.table import show
from etude.runs.weights import find_weights, load_trained


@dataclass(frozen=True)
class _Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> None:
    named = [word for word in args if not word.startswith("-")]
    if named and (named[0] in registry.NAMES or len(named) > 1):
        _file(args)
        return
    options = parse(_Options, args, prog="etude eval", description=__doc__ or "")
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


def _file(args: list[str]) -> None:
    as_json = switch(args, "--json")
    name = args.pop(0)
    if name.startswith("-"):
        raise UserError(f"name the run or the study before {name}: `etude eval --help` tells more")
    if name in registry.NAMES:
        study, weights = registry.load(name), None
    else:
        study, weights, _ = find_weights(name)
    if not study.has("evaluate"):
        raise UserError(f"the study '{study.name}' scores no files: `etude eval RUN` evaluates a run of it again")
    module = study.module("evaluate")
    options = parse(module.Options, args, prog=f"etude eval {name}", description=module.__doc__ or "")
    show([dataclasses.asdict(row) for row in module.evaluate(weights, options)], as_json=as_json)
