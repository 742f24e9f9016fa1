"""The tab of dcgan: its functions, and the page as a person uses it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from etude.core.errors import UserError
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.dcgan import page as dcgan
from etude.studies.dcgan.predict import Options, predict, walk


def test_what_is_drawn_is_what_predict_draws(tmp_path: Path):
    from etude import registry

    weights = registry.load("dcgan").shipped_weights
    assert weights is not None
    predict(weights, None, Options(digit=4, count=6, seed=3, output=tmp_path / "fours.npy"))
    drawn = dcgan.draw(Site(tmp_path), SHIPPED, "4", 6, 3)
    np.testing.assert_array_equal(drawn, np.load(tmp_path / "fours.npy"))


def test_a_walk_begins_and_ends_at_its_noises(tmp_path: Path):
    site = Site(tmp_path)
    frames = dcgan.walked(site, SHIPPED, "7", (1, 2), 5)
    assert frames.shape == (5, 32, 32)
    for place, seed in ((0, 1), (-1, 2)):
        alone = dcgan.draw(site, SHIPPED, "7", 1, seed)[0]
        # The same numbers in another batch.
        assert np.abs(frames[place].astype(int) - alone).max() <= 1
    assert (frames[0] != frames[2]).any()


def test_the_arc_keeps_the_length_of_noise():
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 256, generator=draw)
    lengths = walk(one, two * one.norm() / two.norm(), 9).norm(dim=1)
    torch.testing.assert_close(lengths, one.norm().expand(9))
    torch.testing.assert_close(walk(one, one, 3), one.expand(3, -1))
    assert walk(one, -one, 3).isfinite().all()


@pytest.mark.parametrize(("digit", "count", "seed"), [("10", 1, 0), ("x", 1, 0), ("4", 0, 0), ("4", 101, 0),
                                                      ("4", 1.5, 0), ("4", 1, -1), ("4", 1, 2**40)])  # fmt: skip
def test_what_cannot_be_drawn(tmp_path: Path, digit: str, count: float, seed: float):
    with pytest.raises(UserError):
        dcgan.draw(Site(tmp_path), SHIPPED, digit, count, seed)


def test_sheet_and_film():
    images = np.zeros((5, 32, 32), np.uint8)
    assert dcgan.sheet(images, 3).shape == (129, 194)
    images[1:, 8:24, 8:24] = np.arange(50, 250, 50, dtype=np.uint8)[:, None, None]
    film = Image.open(io.BytesIO(dcgan.moving(images)))
    # There and back, the ends once.
    assert getattr(film, "n_frames", 1) == 8


def test_as_a_person_does(visit: Any, expect: Any):
    page = visit("dcgan")
    drawn, strip = page.get_by_role("img", name="The drawn digits"), page.get_by_role("img", name="One digit becoming")
    expect(drawn).to_be_visible()
    expect(strip).to_be_visible()
    before, walked = drawn.get_attribute("src"), strip.get_attribute("src")
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(drawn).not_to_have_attribute("src", before)
    page.get_by_label("To the noise of seed").fill("9")
    page.get_by_role("button", name="Walk").press("Enter")
    expect(strip).not_to_have_attribute("src", walked)
    expect(page.get_by_role("img", name="The walk there and back")).to_be_visible()
