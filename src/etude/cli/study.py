"""``etude study STUDY EXPERIMENT``: the grid of runs behind a published table.

What is done is left, what was begun is resumed, what is missing runs: on this machine, or on a Ray cluster (extra
`ray`), where a run whose node dies goes on elsewhere from its last checkpoint. The exit status is 1 where a run failed.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.errors import UserError
from etude.report.results import comparisons
from etude.report.terminal import print_comparisons
from etude.runs.experiment import Grid, settings
from etude.runs.flags import parse
from etude.runs.grid import Engine, LocalEngine, run_grid
from etude.runs.table import show
from etude.runs.training import say


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional]
    """The study's name."""
    experiment: Annotated[str, tyro.conf.Positional]
    """The experiment's name; `etude show STUDY` lists them."""
    preset: str = ""
    """The preset of every run; the experiment's own where none is named."""
    seeds: tuple[int, ...] = (0,)
    """One run of each kind a seed."""
    jobs: int | None = None
    """Runs at a time: 1 on this machine, as many as have room on a cluster."""
    ray: str = ""
    """A Ray cluster to run on: local (started here for this grid), auto (the one of this machine), HOST:PORT."""
    cpus: int = 1
    """On a cluster: cores of a run, and its threads."""
    gpus: float = 0.0
    """On a cluster: GPUs of a run, or a fraction of one, such as 0.5 for two runs on each."""
    storage: str = ""
    """On a cluster whose nodes share no disk: a URL for run folders, such as s3://bucket/runs (what fsspec knows)."""
    runs: Path = Path("runs")
    """Where the run folders go."""
    set: tuple[str, ...] = ()
    """Settings of every run, such as data.source=cifar10-jpeg; a job's own come after them."""
    json: bool = False
    """Print the outcomes as a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude study", description=__doc__ or "")
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    if not options.ray and (options.cpus != 1 or options.gpus or options.storage):
        raise UserError("--cpus, --gpus and --storage are for a cluster: name it as --ray, such as --ray local")
    if not options.seeds:
        raise UserError("--seeds names no seed: give one or more, such as --seeds 0 1 2")
    study = registry.load(options.study)
    experiment = study.experiment(options.experiment)
    preset = options.preset or experiment.preset
    study.preset(preset)
    grid = Grid(study, options.experiment, preset, settings(study, preset, options.set), options.runs)
    items = grid.items(options.seeds)
    # Ray tells of nodes that died on standard output, where the answer goes.
    with contextlib.redirect_stdout(sys.stderr):
        engine = _engine(options)
        try:
            outcomes = run_grid(items, engine, say)
        finally:
            engine.close()
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


def _engine(options: Options) -> Engine:
    if not options.ray:
        return LocalEngine(options.jobs or 1)
    from etude.cluster.engine import RayEngine

    about = {"cpus": options.cpus, "gpus": options.gpus, "jobs": options.jobs or 0, "storage": options.storage}
    return RayEngine(options.ray, say=say, **about)
