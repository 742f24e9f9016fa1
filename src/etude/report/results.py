"""Runs, finished or not, and their comparison with the published numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from etude import registry
from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.study import Study
from etude.core.summary import broken_summaries, committed, read_summaries, read_summary
from etude.draw.metrics import read_metrics
from etude.report.baselines import best_baseline, broken_baselines
from etude.report.reference import Comparison, compare, read_reference

# What a run writes: a folder that has one of these was meant to be a run.
_SIGNS = ("config.yaml", "summary.json", "metrics.jsonl", "environment.json", "checkpoints")
_LOCKS = Path("/proc/locks")


def summaries(study: Study, runs: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Summaries of finished runs by name, the committed ones first."""
    return read_summaries([committed(), *runs], study.name)


def comparisons(studies: Sequence[Study], runs: Sequence[Path]) -> list[Comparison]:
    """Each published number of some studies beside the committed and local runs."""
    return [row for study in studies for row in compared(study, summaries(study, runs), runs)]


def compared(study: Study, summaries: Mapping[str, dict[str, Any]], runs: Sequence[Path]) -> list[Comparison]:
    """Each published number of a study beside some of its runs, and the best method without a network."""
    rows: list[Comparison] = []
    for row in compare(study.name, read_reference(study.folder / "reference.toml"), summaries):
        best = best_baseline(study.name, row.metric, row.split, row.cell, row.variant, runs, row.experiment)
        rows.append(row if best is None else replace(row, baseline=best.value, baseline_name=best.name))
    return rows


def faults(chosen: Sequence[Study], runs: Sequence[Path]) -> list[str]:
    """One line for each study without published numbers, and for each run that no comparison can count.

    Such a run has a broken summary, or is of a study that etude does not have; the latter are named only where all
    studies are asked for.
    """
    lines = [study.lacks("reference.toml") for study in chosen if not (study.folder / "reference.toml").exists()]
    lines += [line for study in chosen for line in broken_summaries([committed(), *runs], study.name)]
    lines += [line for study in chosen for line in broken_baselines(study.name, runs)]
    if len(chosen) == len(registry.NAMES):
        lines += [
            f"{run} is of the study '{folder.name}', which this etude does not have: left out"
            for place in runs
            for folder in _folders(place)
            if folder.name not in registry.NAMES
            for run in _folders(folder)
            if any((run / name).exists() for name in ("config.yaml", "summary.json"))
        ]
    return lines


@dataclass(frozen=True)
class Run:
    """A run on disk, as much of it as can be read."""

    record: RunRecord
    """Its configuration is empty where only the summary was kept."""
    path: Path
    status: Literal["finished", "still going", "interrupted"]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    saved: int | None
    """The step of its newest checkpoint."""
    notes: tuple[str, ...]
    """The faults of what could not be read, one line each."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def command(self) -> str:
        """The command line that repeats it."""
        return self.record.command if self.summary is None else self.summary["command"]

    @property
    def seed(self) -> Any:
        return self.record.config.get("seed") if self.summary is None else self.summary["seed"]

    @property
    def step(self) -> int:
        """The last step that is known of."""
        known = [row["step"] for row in self.metrics]
        return max([*known, self.saved or 0, (self.summary or {}).get("steps_trained", 0)])

    @property
    def max_steps(self) -> int | None:
        """The steps that it is to have; of a length in epochs, what the data made of it."""
        loop = self.record.config.get("loop")
        steps = (loop.get("max_steps") if isinstance(loop, dict) else None) or self.environment.get("steps")
        return steps if type(steps) is int else None


def find_runs(study: Study, runs: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs of a study, the committed ones first, and one line for each folder that was left out.

    Of two runs of one name the first counts, as in a comparison.
    """
    found: dict[str, Run] = {}
    left_out: list[str] = []
    for place in [committed(), *runs]:
        for folder in _folders(place / study.name):
            if folder.name in found or not any((folder / name).exists() for name in _SIGNS):
                continue
            try:
                found[folder.name] = read_run(folder, study.name)
            except UserError as error:
                left_out.append(f"{error}: left out")
    return list(found.values()), left_out


def read_run(path: Path, study: str | None = None) -> Run:
    """A run's folder, which is only read. A broken file in it becomes one of its notes.

    Raises:
        UserError: neither its configuration nor its summary can be read, or it is a run of another study.
    """
    notes: list[str] = []
    summary: dict[str, Any] | None = None
    environment: dict[str, Any] = {}
    try:
        if (path / "summary.json").exists():
            summary = read_summary(path / "summary.json")
    except UserError as error:
        notes.append(f"{error}: delete it, and `etude resume` writes it anew")
    try:
        record = RunFolder.open(path).record
    except UserError as error:
        if summary is None:
            raise
        # Of some committed runs only the summary was kept.
        if (path / "config.yaml").exists():
            notes.append(str(error))
        record = RunRecord(summary["study"], summary["preset"], summary["scale"], summary["overrides"], {})
    for of in (record.study, (summary or {}).get("study", record.study)):
        if of != (study or record.study):
            raise UserError(f"{path} lies among the runs of '{study or record.study}' and is of '{of}'")
    metrics, broken = read_metrics(path / "metrics.jsonl")
    try:
        if (path / "environment.json").exists():
            environment = dict(read_json(path / "environment.json"))
    except (UserError, TypeError, ValueError) as error:
        notes.append(str(error) if isinstance(error, UserError) else f"{path / 'environment.json'} is no JSON object")
    status = "finished" if summary is not None else "still going" if in_use(path) else "interrupted"
    saved = max(RunFolder(path).checkpoints().steps(), default=None)
    return Run(record, path, status, summary, environment, metrics, saved, (*notes, *broken))


def _folders(place: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return


def in_use(path: Path) -> bool:
    """True if a process on this machine trains a run, as its lock tells.

    Linux lists the locks that are held. Elsewhere it is tried and let go at once, which could refuse a run that begins
    at that very moment.
    """
    lock = path / ".lock"
    try:
        inode = lock.stat().st_ino
        if _LOCKS.exists():
            # The device is not compared: btrfs lists another than it tells of the file.
            held = _LOCKS.read_text().splitlines()
            return any(" FLOCK " in line and f":{inode} " in line for line in held)
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False
