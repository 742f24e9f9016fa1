"""The look of etude's pictures: one style, drawn without a display."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import rcsetup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.draw.metrics import rows_of

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


LARGEST = 30.0
"""Inches of a picture's longer side; a larger one is drawn at this size."""
_alone: ContextVar[Callable[[str], None] | None] = ContextVar("_alone", default=None)
_epoch: ContextVar[int] = ContextVar("_epoch", default=0)


@contextmanager
def epochs_of(steps: int) -> Iterator[None]:
    """Within it, curves over steps have a second axis of epochs, of so many steps each; 0: none."""
    token = _epoch.set(steps)
    try:
        yield
    finally:
        _epoch.reset(token)


@contextmanager
def each_alone(say: Callable[[str], None]) -> Iterator[None]:
    """Within it a picture that cannot be drawn is named by ``say``, and takes no other with it."""
    token = _alone.set(say)
    try:
        with _survived("the pictures that follow"):
            yield
    finally:
        _alone.reset(token)


@contextmanager
def _survived(what: object) -> Iterator[None]:
    """Within `each_alone`, a fault is one line; else it is raised."""
    try:
        yield
    except Exception as error:
        say = _alone.get()
        # A disk that is full is nobody's picture.
        if say is None or isinstance(error, UserError | OSError):
            raise
        say(f"etude: {what} cannot be drawn ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches, `LARGEST` at most, that is saved to ``path`` when the block ends."""
    scale = min(1.0, LARGEST / max(width, height))
    with _survived(path), mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(scale * width, scale * height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        drawn.savefig(path)


Lines = Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]]
"""Steps and values by legend."""


def curves(
    path: Path,
    panels: Sequence[tuple[str, str, Lines]],
    *,
    title: str = "",
    across: str = "step",
    dashed: str = "",
) -> None:
    """Draw curves over steps: a panel for each title, label of the vertical axis, and steps and values by legend.

    Under a common title the panels share one legend on their right; ``across`` labels their horizontal axes, and the
    line whose legend is ``dashed`` is dashed. Within `epochs_of` an axis above counts epochs.
    """
    with figure(path, 4.2 * len(panels), 3.6 if title else 3.1) as drawn:
        axes = drawn.subplots(1, len(panels), squeeze=False)[0]
        for ax, (heading, label, lines) in zip(axes, panels, strict=True):
            for name, (steps, values) in lines.items():
                dots = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
                ax.plot(steps, values, "--" if name == dashed else "-", label=name, **dots)
            ax.set(title=heading, xlabel=across, ylabel=label)
            ax.locator_params(axis="x", nbins=5)
            epoch = _epoch.get()
            if epoch and across == "step":
                above = ax.secondary_xaxis("top", functions=(lambda x, n=epoch: x / n, lambda x, n=epoch: x * n))
                above.set_xlabel("epoch")
                above.locator_params(axis="x", nbins=5)
            if not title and any(steps for steps, _ in lines.values()):
                ax.legend()
        if title:
            # The stubs do not know the places outside the panels.
            place: Any = "outside center right"
            drawn.legend(*axes[-1].get_legend_handles_labels(), loc=place, fontsize=8)
            drawn.suptitle(title, fontsize=10)


def metric_curves(
    path: Path, metrics: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str, Mapping[str, str]]]
) -> None:
    """Draw metrics over steps, a panel each: title, label, and metrics by legend; what was never logged is left out."""
    found = [
        (title, label, {legend: rows_of(metrics, name) for legend, name in lines.items()})
        for title, label, lines in panels
    ]
    logged = [panel for panel in found if any(steps for steps, _ in panel[2].values())]
    curves(path, logged or found)


@contextmanager
def maps(
    path: Path, count: int, columns: int, width: float, height: float, label: str = "", **more: Any
) -> Iterator[tuple[Figure, list[Any]]]:
    """A figure of ``count`` panels in rows, each of ``width`` x ``height`` inches, under the one colour bar of what is
    shown in them."""
    columns = min(columns, count)
    rows = -(-count // columns)
    with figure(path, width * columns + 0.8, height * rows + 0.4) as page:
        axes = page.subplots(rows, columns, squeeze=False, **more).flatten()
        for ax in axes:
            ax.set_axis_off()
        yield page, list(axes[:count])
        images = [image for ax in axes[:count] for image in ax.images]
        page.colorbar(images[-1], ax=axes, shrink=0.7, label=label)


def coloured(segments_HW: Tensor | np.ndarray) -> np.ndarray:
    """A colour a segment: bytes ``[H, W, 3]``; the first is grey."""
    table = (mpl.colormaps["tab20"](range(20))[:, :3] * 255).astype(np.uint8)
    table = np.concatenate([np.full((1, 3), 70, np.uint8), table])
    numbers = np.asarray(segments_HW).astype(int)
    return table[np.where(numbers == 0, 0, 1 + (numbers - 1) % (len(table) - 1))]


def sheet(images: Tensor, columns: int, line: int = 255) -> np.ndarray:
    """Pictures in rows, a pixel of the shade ``line`` between them.

    Bytes ``[N, H, W]`` or ``[N, H, W, 3]`` become ``[rows (H + 1) - 1, columns (W + 1) - 1]``, with colours likewise.
    """
    count, height, width, *colours = images.shape
    rows = -(-count // columns)
    tiles = torch.full((rows * columns, height + 1, width + 1, *colours), line, dtype=torch.uint8)
    tiles[:count, :height, :width] = images.cpu()
    tiles = tiles.unflatten(0, (rows, columns)).transpose(1, 2)
    return tiles.reshape(rows * (height + 1), columns * (width + 1), *colours)[:-1, :-1].numpy()


def grid(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str] = ()) -> None:
    """Rows of pictures with their names on the left, and titles above the columns."""
    columns = max(len(images) for _, images in rows)
    with figure(path, 1.15 * columns + 0.4, 1.2 * len(rows) + 0.3) as page:
        axes = page.subplots(len(rows), columns, squeeze=False)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            for spine in ax.spines.values():
                spine.set_visible(False)
        for line, (name, images) in zip(axes, rows, strict=True):
            line[0].set_ylabel(name)
            for ax, image in zip(line, images, strict=False):
                ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        for ax, title in zip(axes[0], titles, strict=False):
            ax.set_title(title)


def save_figure(target: Path, draw: Callable[[Path], None]) -> None:
    """Let ``draw`` write a .png file, and put it in its place whole."""

    def write(to: Path) -> None:
        # Matplotlib tells the format by the name.
        named = to.with_name(f"{to.name}.png")
        try:
            draw(named)
            named.replace(to)
        finally:
            named.unlink(missing_ok=True)

    write_atomic(target, write)


def attention(path: Path, image_HWC: Tensor, attention_TKN: Tensor, places: tuple[int, int]) -> None:
    """A row an iteration: what share of each place a slot takes."""
    maps = attention_TKN.unflatten(-1, places).numpy()
    rows = [
        (f"iteration {number + 1}", [image_HWC.numpy(), *(np.uint8(255 * part) for part in of_slot)])
        for number, of_slot in enumerate(maps)
    ]
    grid(path, rows, ["picture", *(f"slot {number}" for number in range(maps.shape[1]))])


def two_sheets(path: Path, above: tuple[str, Tensor], below: tuple[str, Tensor], columns: int = 8) -> None:
    """Two sheets of pictures ``[N, H, W, 3]``, each under its title."""
    heights = [-(-len(images) // columns) for _, images in (above, below)]
    with figure(path, 9.6, 1.2 * sum(heights) + 0.8) as page:
        for ax, (title, images) in zip(page.subplots(2, 1, height_ratios=heights), (above, below), strict=True):
            ax.imshow(sheet(images, columns))
            ax.set_title(title)
            ax.set_axis_off()
