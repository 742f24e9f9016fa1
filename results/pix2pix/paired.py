"""How two finished runs of pix2pix differ on the same test pictures: ``python results/pix2pix/paired.py RUN RUN``.

Few pictures say little of a mean by itself, and more of a difference: what makes a picture hard, both runs share. The
interval is Student's t of the pairs, 95 %.
"""

import sys
from pathlib import Path

from etude.cli.table import show
from etude.cli.training import load_trained
from scipy import stats

from etude.core.errors import UserError
from etude.studies.pix2pix.task import Pix2PixTask


def main(folders: list[str]) -> None:
    """Print a line for each metric, the first run less the second."""
    if len(folders) != 2:
        raise UserError("two runs are compared: give their folders")
    one, other = (load_trained(Path(folder))[3] for folder in folders)
    if not isinstance(one, Pix2PixTask) or not isinstance(other, Pix2PixTask):
        raise UserError("only runs of pix2pix are compared")
    if one.pairs.about != other.pairs.about:
        raise UserError("the runs have other pictures: give two of the same data")
    here, there = (task.scores(task.translate("test"), task.truth("test")) for task in (one, other))
    rows = []
    for name, values in here.items():
        interval = stats.ttest_rel(values.numpy(), there[name].numpy()).confidence_interval(0.95)
        mean, width = (interval.high + interval.low) / 2, (interval.high - interval.low) / 2
        rows.append({"metric": name, "difference": f"{mean:.2f}", "half width": f"{width:.2f}"})
    show(rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
