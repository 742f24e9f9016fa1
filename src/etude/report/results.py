"""Where finished runs are found, and their comparison with the published numbers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etude.core.study import Study
from etude.report.reference import Comparison, compare, read_reference, read_summaries


def committed() -> Path:
    """The folder of the committed results: beside ``src`` in a checkout, in the package where it is installed."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1] / "results"
    return checkout if (package.parents[1] / "pyproject.toml").is_file() else package / "_results"


def summaries(study: Study, runs: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Summaries of finished runs by name, the committed ones first."""
    return read_summaries([committed(), *runs], study.name)


def comparisons(studies: Sequence[Study], runs: Sequence[Path]) -> list[Comparison]:
    """Each published number of some studies beside the committed and local runs."""
    return [
        row
        for study in studies
        for row in compare(study.name, read_reference(study.folder / "reference.toml"), summaries(study, runs))
    ]
