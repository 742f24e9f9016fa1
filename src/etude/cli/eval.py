"""``etude eval RUN``: evaluate a finished run again on the test split, from its weights on disk.

``etude eval RUN FOLDER`` scores a network on data of yours that say what is right: folders of classes (resnet, darts,
protonet), pairs of pictures (pix2pix), a file of problems (text2math). RUN is a run, a weights file, an exported folder
or a study's name for the network that comes with it; of text2math, whose file may hold predictions, these are scored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.errors import UserError
from etude.runs.flags import parse, switch
from etude.runs.table import show, show_answers
from etude.runs.weights import find_weights, load_trained


@dataclass(frozen=True)
class _Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> int:
    named = [word for word in args if not word.startswith("-")]
    if named and (named[0] in registry.NAMES or len(named) > 1):
        return _own_data(args)
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
    return 0


def _own_data(args: list[str]) -> int:
    as_json = switch(args, "--json")
    name = args.pop(0)
    if name.startswith("-"):
        raise UserError(f"name the run or the study before {name}: `etude eval --help` tells more")
    # Predictions that a file of text2math holds are scored without a network.
    named = registry.load(name) if name in registry.NAMES else None
    bare = named is not None and named.has("evaluate") and hasattr(named.module("evaluate"), "WITHOUT_WEIGHTS")
    study, weights, extra = (named, None, None) if named is not None and bare else find_weights(name)
    if not study.has("evaluate"):
        raise UserError(
            f"the study '{study.name}' scores no data of yours: `etude eval RUN` evaluates a run of it again"
        )
    module = study.module("evaluate")
    options = parse(module.Options, args, prog=f"etude eval {name}", description=module.__doc__ or "")
    return show_answers(module, module.evaluate(weights, options, extra), as_json=as_json)
