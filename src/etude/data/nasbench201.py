"""NAS-Bench-201 (Dong and Yang 2020): what each of its 15,625 cells reaches when it is trained.

One file of comma-separated values, a cell a line: accuracies in per cent, means over the benchmark's seeds, after 200
epochs (test) and after 12. It is given by its path, or lies in ETUDE_MIRROR; the benchmark's own archive, whose form is
a pickle of two gigabytes, is at https://github.com/D-X-Y/NAS-Bench-201. Licence of the benchmark: MIT.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from etude.core.errors import UserError
from etude.core.files import sha256
from etude.data import tree

FILE = "nasbench201.csv"
CELLS = 5**6
COLUMNS = {"cifar10": "c10_200", "cifar100": "c100_200", "imagenet16": "in16_200", "val12": "c10_val_12"}
"""By metric, the column: after 200 epochs on each data set, and after 12 on the validation half of CIFAR-10."""


@dataclass(frozen=True)
class Table:
    """The accuracies of all cells.

    Attributes:
        rows: by a cell's name, as ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, the metrics of `COLUMNS`.
        sha256: the file's.
    """

    rows: Mapping[str, Mapping[str, float]]
    sha256: str

    def of(self, cell: str) -> Mapping[str, float]:
        """The accuracies of a cell."""
        return self.rows[cell]


def load(name: str = FILE) -> Table:
    """Read the table.

    Raises:
        UserError: it is not there, or it is no table of all cells.
    """
    path = tree.find(name, "give the table of NAS-Bench-201 with --table-file")
    fix = f"give a table with the columns arch, {', '.join(COLUMNS.values())}"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = {
                row["arch"]: {metric: float(row[column]) for metric, column in COLUMNS.items()}
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path} is no table of NAS-Bench-201 ({type(error).__name__}: {error}): {fix}") from error
    if len(found) != CELLS:
        raise UserError(f"{path} has {len(found):,} cells, not {CELLS:,}: {fix}")
    return Table(found, sha256(Path(path)))
