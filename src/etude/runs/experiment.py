"""The grid of an experiment: its runs, their folders and words, and the picture that compares them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.core.config import as_flags, differences, run_name
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.study import Job, Study
from etude.runs.flags import parse
from etude.runs.grid import Item, Outcome
from etude.runs.training import choose, refuse_other, say


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
    """The settings of every run."""
    runs: Path

    @property
    def name(self) -> str:
        """The beginning of all its runs' names."""
        return run_name([self.experiment, self.preset], self.settings)

    def folder(self, job: Job, seed: int) -> Path:
        return self.runs / self.study.name / f"{self.name}-{job.name}-seed{seed if job.seed is None else job.seed}"

    def items(self, seeds: Sequence[int]) -> list[Item]:
        """The runs, each with the folder it has or will have."""
        items: list[Item] = []
        for job in self.study.experiment(self.experiment).jobs(self.preset):
            if not callable(job.overrides):
                self._refuse_varied(job, job.overrides)
        jobs = {job.name: job for job in self.study.experiment(self.experiment).jobs(self.preset)}
        for seed in seeds:
            for job in jobs.values():
                path, after = self.folder(job, seed), [self.folder(jobs[name], seed) for name in job.after]
                # A job with a seed of its own stands in every seed's list.
                if all(item.path != path for item in items):
                    words = self._words(job, seed if job.seed is None else job.seed, path, after)
                    items.append(Item(path.name, path, words, tuple(folder.name for folder in after)))
        return items

    def refuse_others(self, items: Sequence[Item]) -> None:
        """Refuse folders of runs with other settings than the grid asks for; a run whose settings depend on others is
        looked at once these have ended."""
        ended = {item.name for item in items if item.done}
        for item in items:
            if not (item.path / "config.yaml").exists() or not ended.issuperset(item.after):
                continue
            try:
                RunFolder.open(item.path)
            except UserError:
                # A broken record fails its own run, and no other.
                continue
            words = list(item.flags())
            refuse_other(item.path, choose([words[1], words[2], *words[7:]], "etude run").config)

    def _words(self, job: Job, seed: int, path: Path, after: Sequence[Path]) -> Callable[[], list[str]]:
        def words() -> list[str]:
            own = job.settings([RunFolder.open(run) for run in after if (run / "summary.json").exists()])
            self._refuse_varied(job, own)
            where = ["--name", path.name, "--runs", str(path.parents[1])]
            return ["run", self.study.name, self.preset, *where, *as_flags({**self.settings, **own, "seed": seed})]

        return words

    def _refuse_varied(self, job: Job, own: Mapping[str, Any]) -> None:
        """Refuse a setting of every run that the experiment sets itself; lengths and the like may be some jobs' own."""
        given = sorted(name for name in self.settings.keys() & own.keys() if not name.startswith("loop."))
        if given:
            name = given[0]
            raise UserError(
                f"--set {name}={self.settings[name]}: the experiment '{self.experiment}' varies {name} "
                f"({job.name} has {own[name]}): leave it out"
            )

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
        if experiment.compared and lines:
            path = self.runs / self.study.name / f"{self.name}.png"
            self.study.module("figures").compared(path, f"{self.study.title}: {self.name}", lines)
            say(f"picture: {path}")
