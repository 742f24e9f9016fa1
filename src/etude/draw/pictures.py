"""Pictures inside the page: small enough to carry, each with words for those who do not see it."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from etude.core.errors import UserError

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


def read_picture(path: Path, study: str, widest: int, shows: str = "") -> Picture:
    """Read a PNG file, make it no wider than ``widest`` pixels, and encode it, whichever way takes less.

    ``shows`` says what it shows, where its file's name does not tell.

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
    shows = shows or re.sub(r"[-_]", " ", path.stem)
    run = f", run {path.parents[1].name}" if path.parent.name == "figures" else ""
    return Picture(path, f"{study}{run}: {shows}", uri, image.width, image.height)
