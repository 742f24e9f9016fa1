"""What the metrics of slots give a partition that looks at no picture: the bar that slots must clear.

``uv run python benchmarks/by_place.py --data.source folder --data.folder scenes --size 64`` cuts every scene into K
cells by place alone (K-means of the pixels' coordinates) and scores them as `slots` and `slotdiffusion` score theirs.
"""

import sys
from dataclasses import dataclass, field

from etude.core.errors import UserError
from etude.runs.flags import parse
from etude.scenes.baseline import by_place
from etude.scenes.scores import score
from etude.scenes.source import SceneConfig, load_scenes


@dataclass(frozen=True)
class Options:
    data: SceneConfig = field(default_factory=SceneConfig)
    """The scenes."""
    size: int = 64
    """Pixels a side."""
    cells: tuple[int, ...] = (7, 11, 15)
    """K, as many as the slots that it stands beside."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="by_place.py", description=__doc__ or "")
    scenes = load_scenes(options.data, options.size)
    print(f"{scenes.about}\n\n| split | cells | ARI | FG-ARI | mIoU | mBO |\n|---|---|---|---|---|---|")
    for split in ("val", "test"):
        masks = scenes.splits[split].masks_NHW
        for count in options.cells:
            cells = by_place(count, masks.shape[-1]).expand(len(masks), -1, -1)
            found = score(cells, masks, None, None, count).means()
            told = " | ".join(f"{found[name]:.3f}" for name in ("ari", "fg_ari", "miou_fg", "mbo"))
            print(f"| {split} | {count} | {told} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"by_place.py: {error}", file=sys.stderr)
        sys.exit(2)
