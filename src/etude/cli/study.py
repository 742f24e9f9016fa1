"""``etude study STUDY EXPERIMENT``: the grid of runs behind a published table.

What is done is left, what was begun is resumed, what is missing runs: on this machine, or on a Ray cluster (extra
`ray`), where a run whose node dies goes on elsewhere from its last checkpoint. The exit status is 1 where a run failed.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude import studies
from etude.cli.compare import print_comparisons
from etude.cli.flags import parse
from etude.cli.table import show
from etude.cli.training import say
from etude.core.config import as_flags, differences, run_name
from etude.core.errors import UserError
from etude.core.grid import Engine, Item, LocalEngine, Outcome, run_grid
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
    study = studies.load(options.study)
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


def settings(
    study: Study, preset: str, words: Sequence[str], seeds: str = "the seeds of a grid are given with --seeds"
) -> dict[str, Any]:
    """``NAME=VALUE`` words as dotted settings, read as flags are; ``seeds`` says where a seed belongs."""
    before = study.preset(preset).build()
    flags: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes NAME=VALUE, such as optim.lr=0.01, not '{word}'")
        if name == "seed":
            raise UserError(f"--set {word}: {seeds}")
        flags += as_flags({name: value == "true"} if value in ("true", "false") else {name: value})
    after = parse(study.config, flags, prog=f"etude run {study.name} {preset}", default=before)
    return differences(before, after)


@dataclass(frozen=True)
class Grid:
    """The runs of an experiment."""

    study: Study
    experiment: str
    preset: str
    settings: Mapping[str, Any]
    """Of every run."""
    runs: Path

    @property
    def name(self) -> str:
        """What the names of all its runs begin with."""
        return run_name([self.experiment, self.preset], self.settings)

    def folder(self, job: Job, seed: int) -> Path:
        return self.runs / self.study.name / f"{self.name}-{job.name}-seed{seed if job.seed is None else job.seed}"

    def items(self, seeds: Sequence[int]) -> list[Item]:
        """The runs, each with the folder it has or will have."""
        items: list[Item] = []
        jobs = {job.name: job for job in self.study.experiment(self.experiment).jobs(self.preset)}
        for seed in seeds:
            for job in jobs.values():
                path, after = self.folder(job, seed), [self.folder(jobs[name], seed) for name in job.after]
                # A job with a seed of its own stands in every seed's list.
                if all(item.path != path for item in items):
                    words = self._words(job, seed if job.seed is None else job.seed, path, after)
                    items.append(Item(path.name, path, words, tuple(folder.name for folder in after)))
        return items

    def _words(self, job: Job, seed: int, path: Path, after: Sequence[Path]) -> Callable[[], list[str]]:
        def words() -> list[str]:
            before = best_of(after)
            own = {name: fill(value, before) for name, value in job.overrides.items()}
            where = ["--name", path.name, "--runs", str(path.parents[1])]
            return ["run", self.study.name, self.preset, *where, *as_flags({**self.settings, **own, "seed": seed})]

        return words

    def draw(self, outcomes: Sequence[Outcome]) -> None:
        """The experiment's own picture, of one seed of every run that has ended, beside the run folders."""
        experiment = self.study.experiment(self.experiment)
        ended = {o.item.path for o in outcomes if o.state in ("done", "ran")}
        lines: dict[str, list[dict[str, Any]]] = {}
        for job in experiment.jobs(self.preset):
            prefix = self.folder(job, 0).name.rpartition("-seed")[0]
            mine = sorted(path for path in ended if path.name.rpartition("-seed")[0] == prefix)
            if job.seed is None and mine:
                lines[job.name] = list(RunFolder.open(mine[0]).metrics())
        if experiment.picture is not None and lines:
            path = self.runs / self.study.name / f"{self.name}.png"
            experiment.picture(path, f"{self.study.title}: {self.name}", lines)
            say(f"picture: {path}")


def fill(value: object, before: RunFolder | None) -> object:
    """A job's setting with ``{after}`` and ``{after.NAME}`` filled in from the run it follows."""
    if not isinstance(value, str) or "{after" not in value:
        return value
    assert before is not None, "a job that says {after} names the job it follows"
    if value == "{after.best_step}":
        return before.checkpoints().best_step
    if value.startswith("{after."):
        place: Any = before.record.config
        for part in value[len("{after.") : -1].split("."):
            place = place[part]
        return place
    return value.replace("{after}", str(before.path))


def best_of(folders: Sequence[Path]) -> RunFolder | None:
    """Of some runs the one that validated best; of one, that one. Runs that have not ended are passed over."""
    ended = [RunFolder.open(path) for path in folders if (path / "summary.json").exists()]

    def score(run: RunFolder) -> float:
        about = (run.summary or {})["validation"]
        return about["best"] if about["direction"] == "max" else -about["best"]

    return max(ended, key=score) if len(ended) > 1 else ended[0] if ended else None
