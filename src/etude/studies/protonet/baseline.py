"""Characters told apart by their pixels: by the nearest support, and by the nearest mean of a class."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from etude.core import randomness
from etude.data import omniglot
from etude.data.omniglot import CharacterPool
from etude.metrics.baseline import Baseline
from etude.studies.protonet.episodes import draw_classes, draw_drawings
from etude.studies.protonet.model import prototypes, squared_euclidean
from etude.studies.protonet.study import EvaluationConfig, laptop

SHOTS = (1, 5)
BLURS = (0.0, 1.0, 2.0, 3.0)
"""Standard deviations in pixels of a Gaussian that pictures are blurred with; validation chooses."""
VARIANTS = ("train", "trainval")
"""The splits that the networks beside it were trained on; here nothing is."""


def blurred(pool: CharacterPool, sigma: float) -> Tensor:
    """Every drawing as a vector of pixels in [0, 1], blurred: ``[C, P, D]``."""
    from scipy.ndimage import gaussian_filter

    x_CNHW = pool.images_CNHW.numpy().astype("float32") / 255
    return torch.from_numpy(gaussian_filter(x_CNHW, (0, 0, sigma, sigma)) if sigma else x_CNHW).flatten(2)


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Both methods in the four cells, on the test episodes that the study draws with seed 0."""
    return compared(omniglot.load("val"), omniglot.load("test"), laptop().evaluation, say)


def compared(
    val: CharacterPool, test: CharacterPool, config: EvaluationConfig, say: Callable[[str], None]
) -> list[Baseline]:
    """Both methods, the blur chosen on validation episodes of each cell."""
    rows: list[Baseline] = []
    on_val = {sigma: blurred(val, sigma) for sigma in BLURS}
    on_test = {sigma: blurred(test, sigma) for sigma in BLURS}
    few = replace(config, val_episodes=max(1, config.val_episodes // 10))
    for way in config.ways:
        for shot in SHOTS:
            # Of one support, the mean is the nearest.
            for nearest in (False, True) if shot > 1 else (True,):
                cell = f"w{way}s{shot}"
                say(f"{cell}: the nearest {'neighbour' if nearest else 'mean'}")

                def score(
                    z_CPD: Tensor, pool: CharacterPool, split: str, stream: str, count: int, *, within: bool = False,
                    way: int = way, shot: int = shot, nearest: bool = nearest,
                ) -> tuple[float, float]:  # fmt: skip
                    draw = randomness.generator(0, f"{split}/{stream}", way)
                    query = min(config.query, pool.images_CNHW.shape[1] - shot)
                    return accuracy(z_CPD, pool.groups_C, draw, way, shot, query, count, nearest=nearest, within=within)

                found = {s: score(z, val, "val", "episodes", few.val_episodes)[0] for s, z in on_val.items()}
                sigma = max(found, key=lambda sigma: found[sigma])
                name = f"nearest {'neighbour' if nearest else 'mean'} on pixels"
                for experiment, count, within, what in (
                    ("fewshot", config.episodes, False, "random test episodes"),
                    ("pool", config.episodes, False, "random test episodes"),
                    ("within", config.episodes, True, "episodes of one alphabet at one rotation each"),
                ):
                    if within and int(test.groups_C.bincount().max()) < way:
                        continue
                    mean, width = score(on_test[sigma], test, "test", experiment, count, within=within)
                    protocol = f"{count:,} {what}; blurred by {sigma:g} pixels, chosen on validation episodes"
                    rows += [
                        Baseline(name, "accuracy", "test", mean, protocol, "%", width, (cell,), variant, experiment)
                        for variant in VARIANTS
                    ]
    return rows


@torch.no_grad()
def accuracy(
    z_CPD: Tensor, groups_C: Tensor, draw: torch.Generator, way: int, shot: int, query: int, count: int, *,
    nearest: bool, within: bool,
) -> tuple[float, float]:  # fmt: skip
    """The mean accuracy over episodes in per cent, with half of its 95 % interval.

    The episodes are those that `score_pool` draws of the same generator for networks of 64 numbers.

    Args:
        z_CPD: a vector of each drawing.
        groups_C: the alphabet and rotation of each class.
        draw: draws the episodes.
        way: N.
        shot: K.
        query: queries of each class.
        count: of episodes.
        nearest: a query is of its nearest support's class, not of the nearest mean's.
        within: classes of one alphabet at one rotation only.
    """
    chunk = max(1, 2**24 // (way * (shot + query) * 64))
    target_Q = torch.arange(way).repeat_interleave(query)
    correct: list[Tensor] = []
    for start in range(0, count, chunk):
        classes_EN = draw_classes(min(chunk, count - start), way, groups_C, within, draw)
        drawings_ENK = draw_drawings(tuple(classes_EN.shape), z_CPD.shape[1], shot + query, draw)
        for classes_GN, drawings_GNK in zip(classes_EN.split(16), drawings_ENK.split(16), strict=True):
            support_GNKD, query_GNQD = z_CPD[classes_GN[..., None], drawings_GNK].split([shot, query], 2)
            if nearest:
                supports_GMD = support_GNKD.flatten(1, 2)
                distance_GQM = squared_euclidean(query_GNQD.flatten(1, 2), supports_GMD)
                distance_GQN = distance_GQM.unflatten(-1, (way, shot)).amin(-1)
            else:
                distance_GQN = squared_euclidean(query_GNQD.flatten(1, 2), prototypes(support_GNKD))
            correct.append((distance_GQN.argmin(-1) == target_Q).float().mean(-1))
    accuracy_E = torch.cat(correct).double() * 100
    return accuracy_E.mean().item(), 1.96 * accuracy_E.std().item() / math.sqrt(count)


def checksums() -> dict[str, str]:
    return {f"omniglot/{name}": digest for name, digest in omniglot.checksums().items()}
