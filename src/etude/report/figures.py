"""How etude's pictures look: one style, drawn without a display."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import rcsetup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": rcsetup.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches that is saved to ``path`` when the block ends."""
    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        drawn.savefig(path)


def curves(path: Path, panels: Sequence[tuple[str, str, dict[str, tuple[list[int], list[float]]]]]) -> None:
    """Curves over steps, one panel each.

    Args:
        path: the picture's file.
        panels: title, label of the vertical axis, and by legend the steps and values.
    """
    with figure(path, 4.2 * len(panels), 3.1) as drawn:
        axes = drawn.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, label, lines) in zip(axes, panels, strict=True):
            for name, (steps, values) in lines.items():
                ax.plot(steps, values, label=name, marker="o" if len(steps) < 12 else None, markersize=3)
            ax.set(title=title, xlabel="step", ylabel=label)
            ax.locator_params(axis="x", nbins=5)
            if any(steps for steps, _ in lines.values()):
                ax.legend()
