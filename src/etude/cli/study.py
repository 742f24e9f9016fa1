"""``etude study STUDY EXPERIMENT``: the grid of runs behind a published table.

What is done is left, what was begun is resumed, what is missing runs: on this machine, or on a Ray cluster (extra
`ray`), where a run whose node dies goes on elsewhere from its last checkpoint. The exit status is 1 where a run failed.
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from etude import registry
from etude.cluster.engine import Where
from etude.core.errors import UserError
from etude.report.results import comparisons
from etude.report.terminal import print_comparisons
from etude.runs.experiment import Grid, settings
from etude.runs.grid import run_grid
from etude.runs.table import show
from etude.runs.training import say


@dataclass(frozen=True, kw_only=True)
class Options(Where):
    study: Annotated[str, tyro.conf.Positional]
    """The study's name."""
    experiment: Annotated[str, tyro.conf.Positional]
    """The experiment's name; `etude show STUDY` lists them."""
    preset: str = ""
    """The preset of every run; the experiment's own where none is named."""
    seeds: tuple[int, ...] = (0,)
    """One run of each kind a seed."""
    set: tuple[str, ...] = ()
    """Settings of every run, such as data.source=cifar10-jpeg; a job's own come after them."""


def main(options: Options) -> int:
    options.check()
    if not options.seeds:
        raise UserError("--seeds names no seed: give one or more, such as --seeds 0 1 2")
    study = registry.load(options.study)
    experiment = study.experiment(options.experiment)
    preset = options.preset or experiment.preset
    study.preset(preset)
    grid = Grid(study, options.experiment, preset, settings(study, preset, options.set), options.runs)
    items = grid.items(options.seeds)
    grid.refuse_others(items)
    # Ray tells of nodes that died on standard output, where the answer goes.
    with contextlib.redirect_stdout(sys.stderr), contextlib.closing(options.engine(say)) as engine:
        outcomes = run_grid(items, engine, say)
    grid.draw(outcomes)
    show(
        [
            {"run": o.item.name, "state": o.state, "status": o.status, "reason": o.reason, "folder": str(o.item.path)}
            for o in outcomes
        ],
        as_json=options.json,
    )
    if not options.json:
        rows = [row for row in comparisons([study], [options.runs]) if row.experiment == options.experiment]
        if rows:
            print()
            print_comparisons(rows)
    # Of runs that another one chooses from, some may fail: a learning rate that diverges is no candidate.
    chosen_from = {name for o in outcomes if o.state in ("done", "ran") for name in o.item.after}
    failed = [o for o in outcomes if o.state in ("failed", "waits") and o.item.name not in chosen_from]
    for outcome in failed:
        say(f"etude: {outcome.state}: {outcome.item.name}: {outcome.reason} (log: {outcome.item.log})")
    if failed:
        say(f"etude: {len(failed)} of {len(outcomes)} runs have not ended well; the same command runs only these again")
    return 1 if failed else 0
