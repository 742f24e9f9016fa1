"""The scenes that a study reads; loads no PyTorch."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from etude.core.bounds import require
from etude.data import SAMPLES

if TYPE_CHECKING:
    import torch

    from etude.data.clevrtex import SceneSet

SAMPLE = SAMPLES / "clevrtex" / "0" / "CLEVRTEX_render_000003.png"
"""A rendered scene that comes with the package."""
GENERATED = 10_000
"""The number of made-up scenes where none is named."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """The scenes that a study reads."""

    source: Literal["clevrtex", "folder", "generated"] = "clevrtex"
    """clevrtex: the released set; folder: scenes laid out like it, such as `etude data render` makes; generated: flat
    made-up scenes."""
    folder: str = ""
    """The path of the folder or zip file of source folder; looked for here and in ETUDE_MIRROR."""
    most: int = 0
    """Take the first scenes only; 0: all. Of generated ones, how many there are; 0: 10,000."""
    flip: bool = False
    """Mirror every second training picture."""

    def __post_init__(self) -> None:
        require(self.source != "folder" or bool(self.folder), "data.folder", "a path (--data.folder)", "empty")
        require(self.most == 0 or self.most >= 10, "data.most", "0, or at least 10", self.most)


def load_scenes(config: SceneConfig, size: int, *, batch: int = 0, device: "torch.device | str" = "cpu") -> "SceneSet":
    """The scenes of a configuration at ``size`` pixels a side, on a device.

    Raises:
        UserError: fewer training scenes than a batch has, or what `etude.data.clevrtex` raises.
    """
    from etude.data import clevrtex
    from etude.data.epochs import refuse_larger_batch

    if config.source == "generated":
        count = config.most or GENERATED
        tenth = max(1, count // 10)
        read = clevrtex.generated(size, {"train": count - 2 * tenth, "val": tenth, "test": tenth})
    elif config.source == "clevrtex":
        read = clevrtex.released(size, config.most)
    else:
        read = clevrtex.scenes(config.folder, size, config.most)
    refuse_larger_batch(batch, len(read.splits["train"]), "scenes")
    splits = {
        split: replace(part, images_NHWC=part.images_NHWC.to(device), masks_NHW=part.masks_NHW.to(device))
        for split, part in read.splits.items()
    }
    return replace(read, splits=splits)
