"""Pictures inside the page."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report.folders import picture

from etude import registry
from etude.core.errors import UserError
from etude.draw.pictures import read_picture


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_wide_picture_is_made_smaller(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 400, 100)
    made = read_picture(tmp_path / "a.png", "protonet", 200)
    assert (made.width, made.height) == (200, 50) == decoded(made.uri).size
    assert len(made.uri) < (tmp_path / "a.png").stat().st_size


def test_a_small_one_is_kept(tmp_path: Path) -> None:
    """Of single dots the PNG is smaller than a WebP."""
    dots = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(dots.astype(np.uint8)).save(tmp_path / "a.png")
    made = read_picture(tmp_path / "a.png", "protonet", 200)
    assert base64.b64decode(made.uri.removeprefix("data:image/png;base64,")) == (tmp_path / "a.png").read_bytes()


def test_what_is_clear_is_white(tmp_path: Path) -> None:
    """Dark labels on nothing would not be seen on a dark page."""
    Image.new("RGBA", (300, 300), (0, 0, 0, 0)).save(tmp_path / "a.png")
    made = decoded(read_picture(tmp_path / "a.png", "protonet", 100).uri).convert("RGB")
    assert made.getpixel((50, 50)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_broken_one_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture") as caught:
        read_picture(tmp_path / "a.png", "protonet", 200)
    assert "\n" not in str(caught.value)


def test_a_cut_one_is_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 200, 200)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.png cannot be read as a picture"):
        read_picture(tmp_path / "a.png", "protonet", 100)


def test_words(tmp_path: Path) -> None:
    picture(tmp_path / "r1" / "figures" / "episode.png")
    picture(tmp_path / "norms_birds.png")
    assert read_picture(tmp_path / "r1" / "figures" / "episode.png", "protonet", 99, "said").alt == (
        "protonet, run r1: said"
    )
    assert read_picture(tmp_path / "norms_birds.png", "resnet", 99).alt == "resnet: norms birds"


def test_every_study_says_what_its_pictures_show() -> None:
    for name in registry.NAMES:
        assert registry.load(name).shows(Path("curves.png"))
    pix2pix = registry.load("pix2pix")
    assert pix2pix.shows(Path("translations-12.png")) == pix2pix.shows(Path("translations-1.png")) != ""
    assert pix2pix.shows(Path("other.png")) == ""
