"""The floor and the ceiling of a picture generator: a Gaussian in principal components, and real pictures."""

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.errors import UserError
from etude.metrics import fid
from etude.metrics.baseline import Baseline

COMPONENTS = 100


def gaussian_pictures(train: Tensor, count: int, *, components: int = COMPONENTS, seed: int = 0) -> Tensor:
    """Pictures drawn of a Gaussian with the mean of some pictures and their largest principal components.

    Args:
        train: bytes ``[N, ...]``.
        count: how many are drawn.
        components: at most so many directions.
        seed: of the drawing.

    Returns:
        Bytes ``[count, ...]``.
    """
    from sklearn.decomposition import PCA

    flat_ND = train.flatten(1).float().numpy()
    pca = PCA(min(components, len(train) - 1, flat_ND.shape[1]), svd_solver="randomized", random_state=0).fit(flat_ND)
    draw = randomness.generator(seed, "baseline/gaussian", 0)
    z_NP = torch.randn(count, pca.n_components_, generator=draw).numpy() * np.sqrt(pca.explained_variance_)
    made_ND = torch.from_numpy(pca.inverse_transform(z_NP)).clamp(0, 255).round().to(torch.uint8)
    return made_ND.view(count, *train.shape[1:])


def distances(
    train: Tensor, real: Tensor, count: int, split: str, say: Callable[[str], None], *, variant: str,
    cells: tuple[str, ...] = (),
) -> list[Baseline]:  # fmt: skip
    """FID and KID of training pictures, which is the floor, and of a Gaussian; none where the network is not at hand.

    Features are kept in the cache: a run that is stopped goes on where it was. ETUDE_INCEPTION names a local
    copy of the network.

    Args:
        train: bytes; the first ``count`` of them are measured, all of them make the Gaussian.
        real: bytes, the real pictures of the evaluation.
        count: of pictures on the other side, as many as the networks of these cells draw.
        split: of the real pictures.
        say: tells what is done.
        variant: the data.
        cells: that they stand beside.
    """
    try:
        network = fid.Inception(fid.weights_of(os.environ.get("ETUDE_INCEPTION", "")), torch.device("cpu"))
    except UserError as error:
        say(f"no FID: {error}")
        return []
    say(f"{variant}: features of {len(real) + 2 * count:,} pictures, a fifth of a second each on one core")
    real_NF = network.cached_features(real)
    made = {
        "training pictures (the floor)": train[:count],
        f"a Gaussian of {COMPONENTS} principal components": gaussian_pictures(train, count),
    }
    rows: list[Baseline] = []
    for name, pictures in made.items():
        found = fid.score(real_NF, network.cached_features(pictures, title=f"features of {name}"))
        protocol = f"clean-fid, {found.num_fake:,} pictures against {found.num_real:,} real ones of {split}; {variant}"
        floor = name.startswith("training")
        for metric, value, width, about in (
            ("fid", found.fid, found.half_width, protocol), ("kid", 1000 * found.kid, None, f"times 1,000; {protocol}"),
        ):  # fmt: skip
            rows.append(
                Baseline(name, metric, split, value, about, half_width=width, cells=cells, variant=variant,
                         better="lower", bound=floor)
            )  # fmt: skip
    return rows
