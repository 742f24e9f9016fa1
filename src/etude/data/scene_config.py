"""Which scenes a study reads; loads no PyTorch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etude.core.config import require

if TYPE_CHECKING:
    from etude.data.clevrtex import SceneSet

GENERATED = 10_000
"""Made-up scenes where no number is named."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What a study of scenes reads."""

    source: Literal["clevrtex", "folder", "generated"] = "clevrtex"
    """clevrtex: the released set; folder: scenes laid out like it, such as `etude data render` makes; generated: flat
    made-up scenes."""
    folder: str = ""
    """With source folder: its path, or a zip file's; looked for here and in ETUDE_MIRROR."""
    most: int = 0
    """Take the first scenes only; 0: all. Of generated ones, how many there are; 0: 10,000."""
    flip: bool = False
    """Mirror every second training picture."""

    def __post_init__(self) -> None:
        require(self.source != "folder" or bool(self.folder), "data.folder", "a path (--data.folder)", "empty")
        require(self.most == 0 or self.most >= 10, "data.most", "0, or at least 10", self.most)


def load_scenes(config: SceneConfig, size: int) -> "SceneSet":
    """The scenes of a configuration, ``size`` pixels a side."""
    from etude.data import clevrtex

    if config.source == "generated":
        count = config.most or GENERATED
        tenth = max(1, count // 10)
        return clevrtex.generated(size, {"train": count - 2 * tenth, "val": tenth, "test": tenth})
    if config.source == "clevrtex":
        return clevrtex.released(size, config.most)
    return clevrtex.scenes(config.folder, size, config.most)
