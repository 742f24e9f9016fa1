"""Finished runs: their ``summary.json``, the chosen weights, and the results that are committed."""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from etude.core.config import Scale, first_fault
from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.run_folder import RunFolder
from etude.core.study import Result


def committed() -> Path:
    """The folder of the committed results: beside ``src`` in a checkout, in the package where it is installed."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1] / "results"
    return checkout if (package.parents[1] / "pyproject.toml").is_file() else package / "_results"


@dataclass(frozen=True)
class _Summary:
    """The part of ``summary.json`` that a comparison and the report read; it may hold more."""

    study: str
    preset: str
    scale: Scale
    seed: int
    overrides: dict[str, Any]
    command: str
    step: int
    steps_trained: int
    results: list[Result]
    parameters: dict[str, int]
    train_seconds: pydantic.FiniteFloat
    peak_memory_mb: pydantic.FiniteFloat


_SUMMARY = pydantic.TypeAdapter(_Summary)


def read_summary(path: Path) -> dict[str, Any]:
    """A run's ``summary.json``, each of its results with all that a `Result` has; `UserError` where it is none.

    It is read again only when it changed, for a comparison and a report ask for it more than once.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return _read_summary(path, (about.st_ino, about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=4096)
def _read_summary(path: Path, stamp: tuple[int, int, int]) -> dict[str, Any]:
    body = read_json(path)
    try:
        # From text, as only there a dataclass is read strictly.
        # A value that is not finite is null there.
        text = re.sub(r'"value": null\b', '"value": NaN', json.dumps(body))
        known = _SUMMARY.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise UserError(f"{path} is no summary of a run ({first_fault(error)})") from error
    return body | {"results": [row.to_dict() for row in known.results]}


def _read(folders: Iterable[Path], study: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    for folder in folders:
        for path in sorted((folder / study).glob("*/summary.json")):
            try:
                body = read_summary(path)
                if body["study"] != study:
                    raise UserError(f"{path.parent} lies among the runs of '{study}' and is of '{body['study']}'")
                yield path.parent.name, body
            except UserError as error:
                yield path.parent.name, error


def read_summaries(folders: Iterable[Path], study: str) -> dict[str, dict[str, Any]]:
    """Summaries of finished runs by name, from ``results/`` and ``runs/`` folders; the first folder wins.

    What cannot be read is passed over: `broken_summaries` names it.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, body in _read(folders, study):
        if not isinstance(body, UserError):
            found.setdefault(name, body)
    return found


def broken_summaries(folders: Iterable[Path], study: str) -> list[str]:
    """One line for each summary that cannot be read."""
    return [f"{body}: left out" for _, body in _read(folders, study) if isinstance(body, UserError)]


def chosen_weights(run: RunFolder) -> Path:
    """The weights file of a run's best checkpoint, or of its newest where no metric chooses."""
    checkpoints = run.checkpoints()
    step = checkpoints.best_step
    step = checkpoints.newest() if step is None else step
    if step is None:
        raise UserError(f"{run.path} has no checkpoint yet: `etude resume {run.path}` trains it")
    return checkpoints.weights(step)


def summary_of(run: RunFolder) -> dict[str, Any] | None:
    """A run's summary, or None for one that has not ended; `UserError` where what lies there is none."""
    summary = run.summary
    try:
        fits = summary is None or isinstance(summary["extra"], dict)
    except (TypeError, LookupError):
        fits = False
    if not fits:
        fix = f"delete it, and `etude resume {run.path}` writes it anew"
        raise UserError(f"{run.path / 'summary.json'} is no summary of a run: {fix}")
    return summary
