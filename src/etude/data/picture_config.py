"""The settings of labelled pictures and of their augmentation; loads no PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from etude.core.bounds import Whole, at_least, require

Source = Literal["cifar10", "cifar10-jpeg", "folder", "generated"]


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """The pictures that a study of classes reads."""

    source: Source = "cifar10"
    """cifar10; cifar10-jpeg, lossy copies of it (cifar10_jpeg.npz); folder, your own pictures; generated, the embedded
    twin."""
    folder: str = ""
    """The pictures of source folder: a folder or zip file with one sub-folder a class, or with train and val folders of
    those; looked for here and in ETUDE_MIRROR."""
    # The maps are halved twice, and some norms take a variance of each.
    size: Annotated[int, at_least(5)] = 32
    """Height and width in pixels; CIFAR-10 has 32, and is averaged down to 16 or 8."""
    fit: Literal["crop", "squash"] = "crop"
    """The way that pictures of other shapes become square: their middle, or all of it with its proportions changed."""
    val_share: float = 0.2
    """The share of the training pictures that validates, of a folder without val; of CIFAR-10 always 5,000."""
    test_share: float = 0.2
    """The share that tests of a folder without test."""
    split_seed: int = 0
    """Draws these shares."""
    split_file: str = ""
    """The file where the split is kept; one in the cache where none is named."""
    skip_corrupt: bool = False
    """Leave unreadable pictures out instead of stopping."""

    def __post_init__(self) -> None:
        for name in ("val_share", "test_share"):
            share = getattr(self, name)
            require(0 < share < 1, f"data.{name}", "between 0 and 1", share)
        require(self.val_share + self.test_share < 1, "data.val_share + data.test_share", "below 1", "more")
        require(self.source != "folder" or bool(self.folder), "data.folder", "a path (--data.folder)", "empty")
        if self.source.startswith("cifar10"):
            require(self.size in (32, 16, 8), "data.size", "32, 16 or 8 for CIFAR-10", self.size)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    pad: Whole = 4
    """Pixels added on each side before a window of the old size is cut out at random; 0: none."""
    flip: bool = True
    """Mirror every second picture."""
