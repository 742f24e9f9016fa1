"""The numbers of simple methods that ``etude baseline`` wrote, beside a cell."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydantic

from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.summary import committed
from etude.metrics.baseline import Baseline

_ROWS = pydantic.TypeAdapter(list[Baseline])


def best_baseline(
    study: str, metric: str, split: str, cell: str, variant: str, runs: Sequence[Path], experiment: str = ""
) -> Baseline | None:
    """The best method without a network by a metric, on the split and the data of a cell; None where there is none.

    Args:
        study: its name.
        metric: as in a result.
        split: likewise.
        cell: likewise.
        variant: likewise; empty: any data.
        runs: folders of local runs, whose numbers count where the committed ones have none.
        experiment: the table of the cell; empty: any.
    """
    for rows in _read(study, runs):
        fitting = [
            row
            for row in ([] if isinstance(rows, UserError) else rows)
            if (row.metric, row.split) == (metric, split) and not row.bound
            and cell in (row.cells or (cell,)) and variant in ("", row.variant)
            and (experiment == row.experiment or "" in (experiment, row.experiment))
        ]  # fmt: skip
        if fitting:
            return max(fitting, key=lambda row: row.value if row.better == "higher" else -row.value)
    return None


def broken_baselines(study: str, runs: Sequence[Path]) -> list[str]:
    """One line for each file of baselines of a study that cannot be read."""
    return [f"{rows}: left out" for rows in _read(study, runs) if isinstance(rows, UserError)]


def _read(study: str, runs: Sequence[Path]) -> Iterator[list[Baseline] | UserError]:
    for folder in (committed(), *runs):
        path = folder / study / "baseline.json"
        if path.exists():
            try:
                yield _rows(path)
            except UserError as error:
                yield error


def _rows(path: Path) -> list[Baseline]:
    body = read_json(path)
    try:
        # From text, as only there a dataclass is read strictly.
        return _ROWS.validate_json(json.dumps(body["rows"]), strict=True)
    except (TypeError, LookupError) as error:
        raise UserError(f"{path} has no rows: `etude baseline` writes it anew") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} holds no baselines ({place}: {first['msg']}): `etude baseline` writes it anew"
        ) from error
