"""The scores of a classifier on a folder of pictures whose classes are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from etude.core.errors import Refused, UserError
from etude.data.classify import FolderOptions, Network, labelled
from etude.data.folders import class_key
from etude.data.images import fitted
from etude.data.prediction import read_input
from etude.metrics.proportion import half_width

_BATCH = 64


@dataclass(frozen=True)
class Score:
    """One metric over the pictures of a folder."""

    metric: str
    value: float
    half_width: float | None
    """Half the 95 % interval, where there is one."""
    unit: str
    pictures: int
    classes: int


def score_folder(network: Network[Any, Any], options: FolderOptions) -> list[Score | Refused]:
    """The accuracy and F1 of a network on a folder of classes, and a refusal of each picture that cannot be read.

    Raises:
        UserError: a class that the network does not know, a folder of splits, or no picture that can be read.
    """
    from sklearn.metrics import f1_score

    numbers = {class_key(name): number for number, name in enumerate(network.classes)}
    config = network.config.data

    def one(picture: Path | tuple[str, bytes]) -> np.ndarray:
        return fitted(read_input(picture, "RGB", options.max_pixels, config.size), config.size, config.fit)

    def known(names: Sequence[str]) -> None:
        strange = [name for name in names if class_key(name) not in numbers]
        if strange:
            some = ", ".join(network.classes[:10]) + (", ..." if len(network.classes) > 10 else "")
            fix = "rename the folders, or leave them out"
            raise UserError(f"the network knows no class {', '.join(strange[:5])}, but {some}: {fix}")

    made = labelled(options.folder, one, known)
    rows = [row for row in made if not isinstance(row, Refused)]
    truth = [numbers[class_key(name)] for name, _ in rows]
    taken: list[int] = []
    for start in range(0, len(rows), _BATCH):
        images_NHWC = torch.from_numpy(np.stack([image for _, image in rows[start : start + _BATCH]]))
        with torch.no_grad():
            taken += network.model(network.model.prepare(images_NHWC))[0].argmax(1).tolist()
    right = 100 * float(np.mean(np.equal(truth, taken)))
    present = sorted(set(truth))
    macro = 100 * float(f1_score(truth, taken, labels=present, average="macro", zero_division=cast(Any, 0)))
    scores = [
        Score("accuracy", right, half_width(right, len(rows)), "%", len(rows), len(present)),
        Score("macro_f1", macro, None, "%", len(rows), len(present)),
    ]
    return [*scores, *(row for row in made if isinstance(row, Refused))]
