"""``etude study STUDY EXPERIMENT``: the grid of runs behind a published table.

What is done is left, what was begun is resumed, what is missing runs. The exit status is 1 where a run
failed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import studies
from etude.cli.compare import print_comparisons
from etude.cli.flags import parse
from etude.cli.table import show
from etude.cli.training import say
from etude.core.config import as_flags
from etude.core.errors import UserError
from etude.core.grid import Engine, Item, LocalEngine, fill, run_grid
from etude.core.run_folder import RunFolder
from etude.core.study import Job, Study
from etude.report.results import comparisons


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
    jobs: int = 1
    """Runs at a time on this machine."""
    runs: Path = Path("runs")
    """Where the run folders go."""
    json: bool = False
    """Print the outcomes as a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude study", description=__doc__ or "")
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    study = studies.load(options.study)
    experiment = study.experiment(options.experiment)
    preset = options.preset or experiment.preset
    study.preset(preset)
    items = grid_items(study, options.experiment, preset, options.seeds, options.runs)
    engine: Engine = LocalEngine(options.jobs)
    try:
        outcomes = run_grid(items, engine, say)
    finally:
        engine.close()
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
    failed = [o for o in outcomes if o.state in ("failed", "waits")]
    for outcome in failed:
        say(f"etude: {outcome.state}: {outcome.item.name}: {outcome.reason} (log: {outcome.item.log})")
    if failed:
        say(f"etude: {len(failed)} of {len(outcomes)} runs have not ended well; the same command runs only these again")
    return 1 if failed else 0


def grid_items(study: Study, experiment: str, preset: str, seeds: Sequence[int], runs: Path) -> list[Item]:
    """The runs of an experiment, each with the folder it has or will have."""
    items: list[Item] = []
    for seed in seeds:

        def folder(job: str, seed: int = seed) -> Path:
            return runs / study.name / f"{experiment}-{preset}-{job}-seed{seed}"

        for job in study.experiment(experiment).jobs(preset):
            path = folder(job.name)
            after = folder(job.after) if job.after else None
            flags = _flags(study, preset, job, seed, path, after)
            items.append(Item(path.name, path, flags, after.name if after else None))
    return items


def _flags(study: Study, preset: str, job: Job, seed: int, path: Path, after: Path | None) -> Callable[[], list[str]]:
    def words() -> list[str]:
        before = RunFolder.open(after) if after else None
        settings = {name: fill(value, before) for name, value in job.overrides.items()} | {"seed": seed}
        where = ["--name", path.name, "--runs", str(path.parents[1])]
        return ["run", study.name, preset, *where, *as_flags(settings)]

    return words
