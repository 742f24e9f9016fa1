"""Score an embedding on classes of yours, in random episodes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from etude.core import randomness
from etude.core.errors import Refused, UserError
from etude.data.classify import labelled
from etude.studies.protonet.episodes import score_pool
from etude.studies.protonet.predict import Embedder
from etude.studies.protonet.predict import Options as Prediction

MOST_QUERIES = 15


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    """A folder or zip file with one sub-folder a class."""
    ways: tuple[int, ...] = (5,)
    """The classes of an episode."""
    shots: tuple[int, ...] = (1, 5)
    """The examples of each class."""
    episodes: int = 600
    seed: int = 0
    """The seed of the episodes, and of which pictures count where classes have more than others."""
    polarity: str = "auto"
    """The ink: dark, light, or auto, which takes each picture's border for paper."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""


@dataclass(frozen=True)
class Score:
    """The accuracy in episodes of one kind."""

    metric: str
    way: int
    shot: int
    queries: int
    value: float
    half_width: float
    """Half the 95 % interval over episodes."""
    unit: str
    classes: int


def evaluate(weights: Path, options: Options, extra: Mapping[str, Any] | None = None) -> list[Score | Refused]:
    """The accuracy for each count of ways and shots, and a refusal of each picture that cannot be read.

    All classes count with as many pictures as the smallest has, and what is left beside the shots are queries,
    `MOST_QUERIES` at most.

    Raises:
        UserError: fewer classes than ways, or no class with a picture more than the shots.
    """
    if options.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {options.episodes}")
    embedder, reading = Embedder(weights, extra), Prediction(polarity=options.polarity, max_pixels=options.max_pixels)
    made = labelled(options.folder, lambda picture: embedder.read(picture, reading))
    by_class: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, image in (row for row in made if not isinstance(row, Refused)):
        by_class[name].append(image)
    smallest = min(by_class, key=lambda name: len(by_class[name]))
    count = len(by_class[smallest])
    if max(options.shots) >= count:
        fix = "give fewer --shots, or that class more pictures"
        raise UserError(f"{max(options.shots)} shots leave no query of the class {smallest}, which has {count}: {fix}")
    if max(options.ways) > len(by_class):
        raise UserError(f"--ways {max(options.ways)}: {options.folder} has {len(by_class)} classes: ask for fewer")
    draw = randomness.generator(options.seed, "pictures", 0)
    z_CPD = torch.stack([_some(embedder.embed(images), count, draw) for images in by_class.values()])
    groups_C = torch.zeros(len(z_CPD), dtype=torch.long)
    scores: list[Score | Refused] = []
    for way in options.ways:
        for shot in options.shots:
            queries = min(MOST_QUERIES, count - shot)
            accuracy = score_pool(
                z_CPD, groups_C, embedder.distance, randomness.generator(options.seed, "episodes", way, shot), way=way,
                shot=shot, query=queries, num_episodes=options.episodes,
            )  # fmt: skip
            scores.append(Score("accuracy", way, shot, queries, accuracy.mean, accuracy.half_width, "%", len(by_class)))
    return [*scores, *(row for row in made if isinstance(row, Refused))]


def _some(z_PD: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return z_PD[torch.randperm(len(z_PD), generator=draw)[:count]]
