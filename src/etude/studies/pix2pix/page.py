"""The tab of `pix2pix`: a picture that is dropped or drawn becomes another, as by `etude predict pix2pix`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from etude import registry
from etude.core.errors import UserError
from etude.serve.kit.site import Site, answering, current_tab, first_look, picture, read

if TYPE_CHECKING:
    from etude.studies.pix2pix.predict import Translator

TITLE = "pix2pix"
MAX_PIXELS = 4_000_000
"""The most pixels of a picture on the page; larger ones take the command line minutes."""
_OVERLAP = 32
_SIDE = 512
_COLOURS = {"meadow": "#807A5C", "roofs": "#96786C", "trees": "#48623A", "asphalt": "#707072", "water": "#2C4258"}


@dataclass(frozen=True)
class Made:
    """A picture's translation, with what it took."""

    image_HWC: np.ndarray
    tiles: int
    seconds: float
    translator: "Translator"


def translate(site: Site, choice: str, image_HWC: np.ndarray | None, fit: str) -> Made:
    """The translation of a picture, uint8 ``[H, W, 3]``, by the network of a choice; for ``fit`` see the options of
    predict.py. Where nothing was drawn the picture is None, or of one colour."""
    from etude.studies.pix2pix.predict import translated

    if image_HWC is None or (image_HWC == image_HWC[0, 0]).all():
        raise UserError("nothing to see yet: drop a picture, draw one with the brush, or take a made-up town")
    height, width = image_HWC.shape[:2]
    if height * width > MAX_PIXELS:
        raise UserError(
            f"the picture is {width} x {height} pixels, more than {MAX_PIXELS:,}: make it smaller, or use `etude "
            "predict pix2pix`, which takes larger ones"
        )
    if fit not in ("tile", "whole"):
        raise UserError(f"no fit '{fit}': there are tile and whole")
    with site.using(TITLE, choice) as translator:
        began = time.monotonic()
        size, overlap = translator.config.model.size, min(_OVERLAP, translator.config.model.size // 2)
        made_HWC, count = translated(image_HWC, translator.network, size, overlap, fit, translator.scale)
        return Made(made_HWC, count, time.monotonic() - began, translator)


def told(made: Made) -> str:
    """A line on what was done."""
    height, width = made.image_HWC.shape[:2]
    count = "1 tile" if made.tiles == 1 else f"{made.tiles} tiles"
    size, learned = made.translator.config.model.size, made.translator.pairs
    of = f" The network was trained on: {learned}." if learned else ""
    return f"{width} x {height} pixels in {count} of {size} pixels, {made.seconds:.1f} s.{of}"


def town(number: int) -> np.ndarray:
    """A made-up town from above, uint8 ``[512, 512, 3]``; each number has another."""
    from etude.data.tiles import tiles

    # Half as large, and enlarged: the network shrinks it again.
    small = Image.fromarray(tiles(1, _SIDE // 2, number)[0][0].numpy())
    return np.array(small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def meadow() -> np.ndarray:
    """The canvas that a drawing begins with, uint8 ``[512, 512, 3]``: bare ground, for the network knows no white."""
    colour = bytes.fromhex(_COLOURS["meadow"][1:])
    return np.full((_SIDE, _SIDE, 3), list(colour), np.uint8)


def tab(site: Site) -> None:
    gr.Markdown(
        "A generator turns one kind of picture into another. The one that comes with etude learned from 38 pairs to "
        "turn an aerial photograph into a map."
    )
    here, number = current_tab(), gr.State(1)
    with gr.Row():
        with gr.Column():
            with gr.Tabs():
                with gr.Tab("Drop a picture", id="dropped"):
                    photo = picture("Picture", height=400)
                    another = gr.Button("Take a made-up town")
                with gr.Tab("Draw one", id="drawn"):
                    gr.Markdown(f"The brush has the colours of {', '.join(_COLOURS)}.")
                    canvas = gr.ImageEditor(
                        meadow(), label="Drawing", image_mode="RGB", sources=[], transforms=(), layers=False,
                        buttons=[], canvas_size=(_SIDE, _SIDE), fixed_canvas=True, height=400, format="png",
                        brush=gr.Brush(default_size=28, colors=list(_COLOURS.values()), color_mode="fixed",
                                       default_color=_COLOURS["asphalt"]),
                        eraser=gr.Eraser(default_size=28),
                    )  # fmt: skip
                    ask = gr.Button("Translate the drawing", variant="primary")
            choice = site.chooser(TITLE)
            fit = gr.Radio([("In tiles, at the scale it was trained at", "tile"), ("Squeezed into one tile", "whole")],
                           value="tile", label="Pictures larger than the network's size")  # fmt: skip
        with gr.Column():
            shown = gr.Image(label="What the network makes of it", alt_text="The translated picture", height=440,
                             interactive=False, buttons=["download", "fullscreen"], format="png")  # fmt: skip
            line = gr.Markdown()

    def made_of(choice: str, image: np.ndarray | None, fit: str) -> Any:
        made = translate(site, choice, image, fit)
        return made.image_HWC, told(made)

    @answering
    def dropped(choice: str, path: str | None, fit: str) -> Any:
        return made_of(choice, read(path), fit) if path else (None, "")

    @answering
    def drawn(choice: str, sketch: Mapping[str, Any] | None, fit: str) -> Any:
        return made_of(choice, sketch["composite"] if sketch else None, fit)

    gr.on([photo.change, choice.change, fit.change], dropped, [choice, photo, fit], [shown, line],
          concurrency_id=TITLE)  # fmt: skip
    ask.click(drawn, [choice, canvas, fit], [shown, line], concurrency_id=TITLE)
    first_look(here, lambda: town(0), [], [photo])
    another.click(lambda number: (town(number), number + 1), number, [photo, number], concurrency_id=TITLE)


def warm(site: Site) -> None:
    """Import and load what the first answer needs."""
    if registry.load(TITLE).shipped_weights:
        translate(site, site.choices(TITLE)[0], town(0)[:128, :128], "tile")
