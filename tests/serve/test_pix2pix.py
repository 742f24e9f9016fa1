"""The tab of pix2pix: the page translates as the command line does, and a visitor drops or draws a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from etude.core.errors import UserError
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.pix2pix import page as pix2pix
from etude.studies.pix2pix.page import told, town, translate
from etude.studies.pix2pix.predict import Options, predict


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("none"))


@pytest.mark.parametrize("fit", ["tile", "whole"])
def test_the_page_translates_as_the_command_line(site: Site, tmp_path: Path, fit: Any):
    weights, extra = site.weights("pix2pix", SHIPPED)
    image = town(3)[:300, :411]
    Image.fromarray(image).save(tmp_path / "town.png")
    [wanted] = predict(weights, extra, Options((tmp_path / "town.png",), output=tmp_path / "made", fit=fit))
    made = translate(site, SHIPPED, image, fit)
    assert np.array_equal(made.image_HWC, np.array(Image.open(tmp_path / "made" / "town.png")))
    assert made.tiles == wanted.tiles
    assert f"411 x 300 pixels in {wanted.tiles} tile" in told(made)


def test_towns_differ_and_stay():
    assert np.array_equal(town(1), town(1))
    assert (town(1) != town(2)).mean() > 0.5
    assert len(pix2pix._COLOURS) == 5


def test_what_cannot_be_translated_gets_one_line(site: Site):
    thin = np.zeros((1, pix2pix.MAX_PIXELS + 1, 3), np.uint8)
    thin[0, 0] = 255
    blank = np.full((512, 512, 3), 255, np.uint8)
    for image, fit, line in (
        (None, "tile", "nothing to see yet"), (blank, "tile", "nothing to see yet"),
        (thin, "tile", "more than 4,000,000"),
        (town(0), "squash", "no fit 'squash'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line) as caught:
            translate(site, SHIPPED, image, fit)
        assert "\n" not in str(caught.value)


def test_a_visitor_drops_a_picture_and_takes_a_town(visit: Any, expect: Any, tmp_path: Path):
    expect.set_options(timeout=30_000)
    page = visit("pix2pix", width=390)
    panel = page.get_by_role("tabpanel").filter(visible=True).first
    expect(panel.get_by_alt_text("The translated picture")).to_be_visible()
    file = panel.locator("input[type=file]").first
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    file.set_input_files(broken)
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.png is not an image of a known format")
    Image.fromarray(town(4)[:200, :260]).save(tmp_path / "photo.jpg")
    file.set_input_files(tmp_path / "photo.jpg")
    expect(panel.get_by_text("260 x 200 pixels in 2 tiles")).to_be_visible()
    expect(panel.get_by_alt_text("The translated picture")).to_be_visible()
    panel.get_by_role("button", name="Take a made-up town").click()
    expect(panel.get_by_text("512 x 512 pixels in 9 tiles")).to_be_visible()
    panel.get_by_label("Squeezed into one tile").check()
    expect(panel.get_by_text("512 x 512 pixels in 1 tile")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_visitor_draws(visit: Any, expect: Any):
    expect.set_options(timeout=30_000)
    page = visit("pix2pix")
    panel = page.get_by_role("tabpanel").filter(visible=True).first
    panel.get_by_role("tab", name="Draw one").click()
    ask = panel.get_by_role("button", name="Translate the drawing")
    ask.click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("nothing to see yet: drop a picture, draw one")
    panel.get_by_label("Brush", exact=True).first.click()
    box = panel.locator("canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y - 40)
    page.mouse.down()
    page.mouse.move(x + 50, y + 60, steps=6)
    page.mouse.up()
    page.wait_for_timeout(500)
    ask.click()
    expect(panel.get_by_text("512 x 512 pixels in 9 tiles")).to_be_visible()
    expect(panel.get_by_alt_text("The translated picture")).to_be_visible()
