"""Pictures inside the page: small enough to carry, each with words for those who do not see it."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from etude.core.errors import UserError

# By file name what the studies' pictures show, where two differ after the study's.
_SHOWS = {
    "alphabets": "the embeddings of unseen characters in the plane, one panel an alphabet, one colour a character",
    "cells": "the found cells as graphs of operations",
    "compositions": "validation scenes above, scenes composed from a library of slots below",
    "confusion": "confusion matrix of the test split: true classes down, predicted ones across",
    "curves": "training and validation over the steps",
    "darts/curves": "loss, accuracy and learning rate over the steps",
    "denoising": "a picture on its way out of the noise, and what the network took it for at each moment",
    "denoising-ancestral": "a picture on its way out of the noise by ancestral sampling",
    "digits": "real digits above, drawn ones below",
    "episode": "an episode of unseen classes: examples on the left, queries framed by the class they were taken for",
    "errors": "how far each pixel of the outputs is off",
    "gates": "histograms of the gates over time for each norm: 1 is batch, 0 is instance normalisation",
    "grad-cam": "photographs of each class with the regions that decided for it marked by Grad-CAM",
    "grad-cam-means": "mean Grad-CAM map of each class over its recognised test pictures",
    "growth": "the cells that the search would have chosen at some evaluations",
    "mixtures": "what each operation weighs on each edge at the last evaluation",
    "pix2pix/translations": "one row a pair: input, truth, output, and how far the output is off",
    "slots/attention": "what share of a picture each slot takes, one row an iteration",
    "slots/parts": "one scene: each slot's mask, what it would paint everywhere, and where it does",
    "slots/reconstructions": "one column a scene: the picture, its reconstruction, the true masks, the slots' masks",
    "slots/slots": "one row a scene: the picture, its reconstruction, and what each slot adds to it",
    "slotdiffusion/attention": "what share of a picture each slot takes, one row an iteration",
    "slotdiffusion/reconstructions": "pictures, and what comes back of them",
    "slotdiffusion/slots": "one row a scene: the picture, its reconstruction, and what each slot looks at",
    "dcgan/samples": "what the same noise draws at several moments of the training",
    "text2math/attention": "the weights of a problem's words at every token of its program",
    "text2math/lengths": "how many steps the programs of dev have, known and predicted",
    "text2math/operators": "the operators most often written in another's place",
    "text2math/steps": "execution accuracy of dev by the number of steps of the known program",
    "watch": "skips and entropy of the cells over the search, and the largest eigenvalue",
}

_MOST_PIXELS = 64_000_000


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    path: Path
    alt: str
    uri: str
    """``data:image/...``"""
    width: int
    height: int


def read_picture(path: Path, study: str, widest: int, words: str = "") -> Picture:
    """Read a picture, make it no wider than ``widest`` pixels, and encode it, whichever way takes less.

    Args:
        path: a PNG file.
        study: whose it is.
        widest: pixels.
        words: what it shows, if its name does not tell.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        # Pillow knows more formats, some of which start other programs.
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels")
            opened.load()
            image = opened.convert("RGBA")
    # Pillow's decoders answer broken bytes with nearly every kind of exception.
    except Exception as error:
        raise UserError(f"{path} cannot be read as a picture ({error})") from error
    # Figures are drawn for white paper.
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    image, kind = paper.convert("RGB"), "png"
    smaller = image.width > widest
    if smaller:
        image = image.resize((widest, max(1, round(image.height * widest / image.width))), Image.Resampling.LANCZOS)
    if max(image.size) <= 16383:  # WebP has no larger ones.
        encoded = io.BytesIO()
        image.save(encoded, "webp", quality=82, method=4)
        if smaller or len(encoded.getvalue()) < len(content):
            content, kind = encoded.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    told = shows(study, path.stem) or words or re.sub(r"[-_]", " ", path.stem)
    run = f", run {path.parents[1].name}" if path.parent.name == "figures" else ""
    return Picture(path, f"{study}{run}: {told}", uri, image.width, image.height)


def shows(study: str, stem: str) -> str:
    """What a study's picture of this name shows, in words; empty where it is not known."""
    name = re.sub(r"-\d+$", "", stem)
    return _SHOWS.get(f"{study}/{name}", _SHOWS.get(name, ""))
