"""Score a generator on pairs of yours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from scipy import stats

from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict, override
from etude.core.runtime import Runtime
from etude.studies.pix2pix.study import Pix2PixConfig
from etude.studies.pix2pix.task import Pix2PixTask, Split


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    """A folder or zip file of side-by-side pictures, A on the left; splits, if it has some, count together."""
    folder_b: str = ""
    """The second folder, with the B pictures under the names of the A pictures."""


@dataclass(frozen=True)
class Score:
    """One metric over the pairs of a folder."""

    metric: str
    value: float
    half_width: float | None
    """Half the 95 % interval over pictures."""
    unit: str
    pictures: int


def evaluate(weights: Path, options: Options, extra: Mapping[str, Any] | None = None) -> list[Score]:
    """The mean of each metric over all pairs of a folder.

    Raises:
        UserError: a folder of fewer pairs than can be split, or one that cannot be read.
    """
    tensors, header = read_weights(weights, study="pix2pix")
    config = from_dict(Pix2PixConfig, header.config, origin=str(weights))
    # All splits at the network's size, and of any number.
    source = {"augment.jitter": 0, "batch.size": 1, "batch.parts": 1}
    source |= {"data.source": "folder", "data.folder": str(options.folder), "data.folder_b": options.folder_b}
    task = Pix2PixTask(override(config, source), Runtime(config.loop, config.seed))
    load_weights(task.exported, tensors, weights)
    parts: tuple[Split, ...] = ("train", "val", "test")
    splits: list[Split] = [split for split in parts if len(task.pairs.splits[split])]
    with torch.no_grad():
        made = torch.cat([task.translate(split) for split in splits])
    truth, count = torch.cat([task.truth(split) for split in splits]), len(made)
    units = {"l1": "of 255", "rmse": "of 255", "psnr": "dB"}
    rows: list[Score] = []
    for metric, values in task.scores(made, truth).items():
        t = float(stats.t.ppf(0.975, count - 1))
        half = t * values.std().item() / math.sqrt(count) if count > 1 else None
        rows.append(Score(metric, values.mean().item(), half, units.get(metric, ""), count))
    return rows
