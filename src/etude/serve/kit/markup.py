"""Pictures and tables as HTML that a screen reader can read, too."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import gradio as gr
import numpy as np
from PIL import Image

CSS = """
.et-plain .html-container { padding: 0; }
.et-note { opacity: .8; font-size: .9rem; margin: .2rem 0; }
.et-tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .3rem 0 .8rem; padding: 0; }
.et-tiles figure { margin: 0; width: var(--side); max-width: 100%; }
.et-tiles img { width: 100%; display: block; border: 1px solid var(--border-color-primary); }
.et-tiles img.et-small { image-rendering: pixelated; }
@media (max-width: 640px) { .et-tiles { gap: .5rem; } .et-tiles figure { width: calc(var(--narrow) - .4rem); } }
.et-tiles figcaption { font-size: .85rem; text-align: center; overflow-wrap: anywhere; }
.et-bar { width: 100%; height: 1rem; }
.et-bar::-webkit-progress-bar { background: #d8d8de; }
.et-bar::-webkit-progress-value { background: #0072B2; }
.et-bar::-moz-progress-bar { background: #0072B2; }
.et-scroll { overflow: auto; max-height: 34rem; background: #fff; color: #111; padding: .5rem; margin: .3rem 0;
  contain: inline-size; border: 1px solid var(--border-color-primary); }
.et-table { border-collapse: collapse; width: 100%; font-size: .92rem; color: #111; border: 0 !important; }
.et-table tr { border: 0 !important; }
.et-table caption { text-align: left; font-weight: 600; padding: 0 0 .3rem; }
.et-table th, .et-table td { text-align: left; padding: .2rem .5rem; color: #111; border: 0 !important;
  border-bottom: 1px solid #ddd !important; }
"""


def box(name: str) -> gr.HTML:
    """A place for what this file writes."""
    return gr.HTML(elem_id=name, elem_classes="et-plain")


@dataclass(frozen=True)
class Tile:
    """A picture with what stands below it; ``alt`` tells who cannot see it what it shows."""

    image: np.ndarray
    caption: str
    alt: str


def tiles(shown: Iterable[Tile], side: int = 132) -> str:
    """Pictures in rows, each ``side`` pixels wide."""
    figures = "".join(
        f'<figure><img src="{png(tile.image)}" alt="{escape(tile.alt)}"{_small(tile.image, side)}>'
        f"<figcaption>{escape(tile.caption)}</figcaption></figure>"
        for tile in shown
    )
    # On a phone four small ones stand in a row, or two large ones.
    return f'<div class="et-tiles" style="--side:{side}px;--narrow:{25 if side < 160 else 50}%">{figures}</div>'


def _small(image: np.ndarray, side: int) -> str:
    # A browser would blur what it enlarges.
    return ' class="et-small"' if image.shape[1] < side else ""


def png(image: np.ndarray) -> str:
    """A picture, uint8 ``[H, W]`` or ``[H, W, 3]``, as an address that holds it."""
    body = io.BytesIO()
    Image.fromarray(image).save(body, "PNG")
    return f"data:image/png;base64,{base64.b64encode(body.getvalue()).decode()}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of text under their headings."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return scrolled(
        f'<table class="et-table"><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
        caption,
    )


def _cell(text: str) -> str:
    # A program has no spaces: it may go on in the next line where a step or an argument ends.
    return escape(text).replace("|", "|<wbr>").replace(",", ",<wbr>")


def scrolled(html: str, name: str) -> str:
    """Markup that may be wider than the page, in a place that scrolls by mouse, touch and keyboard."""
    return f'<div class="et-scroll" role="region" tabindex="0" aria-label="{escape(name)}">{html}</div>'


def percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def note(text: str) -> str:
    """A line beside the matter."""
    return f'<p class="et-note">{escape(text)}</p>' if text else ""
