"""The scores of cuts without a network: by place alone, and by the look of the edge."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from etude.core.errors import UserError
from etude.data.clevrtex import SPLITS, Scenes, SceneSet
from etude.metrics.baseline import Baseline
from etude.metrics.gaussian import distances
from etude.scenes.ring import RingConfig, ring_segments
from etude.scenes.scores import ABOUT, half_width, score
from etude.scenes.source import SceneConfig, load_scenes

CELLS = (7, 11, 15)
"""The numbers of cells by place: as many as there are slots."""
_BATCH = 32
# They say what slots are busy with, not how good the segments are.
_DIAGNOSES = {"empty", "background_slots", "background_share"}


def by_place(count: int, size: int) -> Tensor:
    """The cell of each pixel of a square picture by its place alone: K-means of coordinates, int64 ``[size, size]``."""
    from sklearn.cluster import KMeans

    places = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float32)] * 2)
    cells = KMeans(count, n_init=3, random_state=0).fit_predict(places.numpy())  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(cells).view(size, size).long()


def painted(images_BHWC: Tensor, segments_BHW: Tensor, count: int) -> Tensor:
    """Pictures whose every segment has its mean colour, ``[B, C, H, W]`` in [0, 1].

    Args:
        images_BHWC: bytes.
        segments_BHW: from 0.
        count: of segments.
    """
    x_BNC = images_BHWC.flatten(1, 2).float() / 255
    member_BNK = torch.nn.functional.one_hot(segments_BHW.flatten(1), count).float()
    mean_BKC = member_BNK.mT @ x_BNC / member_BNK.sum(1).clamp(min=1)[..., None]
    return (member_BNK @ mean_BKC).mT.unflatten(2, segments_BHW.shape[1:])


def methods(size: int) -> Mapping[str, tuple[int, Callable[[Tensor], Tensor]]]:
    """Each method by its name: the number of its segments, and what cuts pictures ``[B, H, W, C]`` into them."""
    ring = RingConfig()

    def placed(count: int) -> Callable[[Tensor], Tensor]:
        cells_HW = by_place(count, size)
        return lambda images_BHWC: cells_HW.expand(len(images_BHWC), -1, -1)

    found = {f"{count} cells by place alone": (count, placed(count)) for count in CELLS}
    about = f"ring model ({ring.gaussians} Gaussians of the outer {ring.ring} pixels, {ring.clusters} clusters)"
    return {about: (ring.clusters + 1, ring_segments)} | found


def segmented(scenes: Scenes, split: str, variant: str) -> Iterator[Baseline]:
    """Each method's scores on the scenes of a split."""
    for name, (count, cut) in methods(scenes.masks_NHW.shape[-1]).items():
        numbers: dict[str, list[Tensor]] = {}
        for start in range(0, len(scenes), _BATCH):
            images_BHWC = scenes.images_NHWC[start : start + _BATCH]
            segments_BHW = cut(images_BHWC)
            made_BCHW = painted(images_BHWC, segments_BHW, count)
            images_BCHW = images_BHWC.movedim(-1, 1) / 255
            found = score(segments_BHW, scenes.masks_NHW[start : start + _BATCH], made_BCHW, images_BCHW, count)
            for metric in found.of_image.keys() - _DIAGNOSES:
                numbers.setdefault(metric, []).append(found.of_image[metric])
        for metric, parts in sorted(numbers.items()):
            values_N = torch.cat(parts)
            seen = int((~values_N.isnan()).sum())
            note = "; each segment in its mean colour" if metric == "mse" else ""
            protocol = (
                f"mean over {seen:,} scenes, {ABOUT[metric]}{note}; settings chosen on validation scenes; {variant}"
            )
            yield Baseline(
                name, metric, split, values_N.nanmean().item(), protocol, half_width=half_width(values_N),
                variant=variant, better="lower" if metric == "mse" else "higher",
            )  # fmt: skip


def scene_baselines(folders: Mapping[str, tuple[int, ...]], say: Callable[[str], None]) -> list[Baseline]:
    """All methods on the scenes of some folders, those that are not at hand left out with a word.

    Args:
        folders: the sizes in pixels at which each one's scenes are read, by its name.
        say: tells what is done.

    Raises:
        UserError: none of them is at hand.
    """
    rows: list[Baseline] = []
    missing: list[UserError] = []
    for folder, sizes in folders.items():
        for size in sizes:
            try:
                read = load_scenes(SceneConfig(source="folder", folder=folder), size)
            except UserError as error:
                missing.append(error)
                say(f"left out: {error}")
                continue
            rows += measured(read, f"{read.about}, {size} px", say)
    if not rows:
        raise missing[0]
    return rows


def measured(read: SceneSet, variant: str, say: Callable[[str], None]) -> list[Baseline]:
    """All methods on one set of scenes."""
    say(f"{variant}: by place, by the ring")
    rows = [row for split in SPLITS[1:] for row in segmented(read.splits[split], split, variant)]
    train, real = read.splits["train"].images_NHWC, read.splits["val"].images_NHWC
    return rows + distances(train, real, len(real), "val", say, variant=variant)


def checksums(folders: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The names that the scenes of some folders are known by, of folders at hand."""
    found: dict[str, str] = {}
    for folder, sizes in folders.items():
        for size in sizes:
            try:
                read = load_scenes(SceneConfig(source="folder", folder=folder), size)
            except UserError:
                continue
            found |= {f"{name}, {size} px": digest for name, digest in read.checksums.items()}
    return found
