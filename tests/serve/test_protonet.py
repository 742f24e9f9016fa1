"""The tab of protonet: its functions, and characters drawn by mouse and keyboard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.errors import UserError
from etude.data import images
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.protonet import page as protonet

SUPPORT = Path(images.__file__).parent / "samples" / "omniglot" / "support"


def test_the_examples_are_recognised(tmp_path: Path):
    site = Site(tmp_path)
    pictures = protonet.drawings(protonet.examples())
    assert len(pictures) == 6
    assert all(picture is not None for picture in pictures)
    found = protonet.compare(site, SHIPPED, pictures)
    assert found.label == min(found.distances, key=found.distances.__getitem__)
    assert len(found.distances) == 5
    # A class's own drawing lies on its prototype.
    same = protonet.compare(site, SHIPPED, [*pictures[:5], pictures[3]])
    assert same.label == "class 4"
    assert same.distances["class 4"] == pytest.approx(0, abs=1e-3)
    assert len({protonet.examples(turn) for turn in range(18)}) == 18


def test_fewer_classes_and_strangers(tmp_path: Path):
    site = Site(tmp_path)
    *classes, query = protonet.drawings(protonet.examples())
    assert protonet.compare(site, SHIPPED, [*[None] * 5, query]) is None
    assert protonet.compare(site, SHIPPED, [*classes, None]) is None
    found = protonet.compare(site, SHIPPED, [None, classes[1], None, None, classes[4], query])
    assert set(found.distances) == {"class 2", "class 5"}
    noise = np.random.default_rng(0).integers(0, 256, (105, 105)).astype(np.uint8)
    assert "none of them" in protonet.prediction_html(protonet.compare(site, SHIPPED, [*classes, noise]))
    assert "Draw at least one" in protonet.prediction_html(None)


@pytest.mark.parametrize("text", [
    "no json", "{}", "[1, 2]", "7", json.dumps(["x"] * 7), json.dumps(["https://example.org/a.png"]),
    json.dumps(["data:image/png;base64,***"]), json.dumps(["data:image/png;base64," + "A" * 500_000]),
    json.dumps(["data:image/png;base64,AAAA"]), json.dumps([["deep"]]), "[" * 100_000,
])  # fmt: skip
def test_what_the_page_does_not_send(text: str):
    with pytest.raises(UserError):
        protonet.drawings(text)


def draw(page: Any, board: int, *strokes: tuple[tuple[float, float], ...]) -> None:
    """Strokes by mouse on one of the six boards, from 0 to 1."""
    canvas = page.locator("#boards canvas").nth(board)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for first, *rest in strokes:
        page.mouse.move(box["x"] + first[0] * box["width"], box["y"] + first[1] * box["height"])
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        page.mouse.up()


CROSS = (((0.2, 0.5), (0.8, 0.5)), ((0.5, 0.2), (0.5, 0.8)))
SQUARE = (((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75), (0.25, 0.25)),)


def test_characters_drawn_by_mouse(visit: Any, expect: Any, tmp_path: Path):
    page = visit("protonet")
    answer = page.get_by_text("The query is nearest to")
    expect(answer).to_be_visible()
    page.get_by_role("button", name="Clear all").click()
    expect(page.get_by_text("Draw at least one class")).to_be_visible()
    draw(page, 0, *CROSS)
    draw(page, 1, *SQUARE)
    draw(page, 5, *CROSS)
    expect(page.get_by_role("row", name="class 1")).to_be_visible()
    expect(page.get_by_role("row", name="class 2")).to_be_visible()
    expect(answer).to_contain_text("class 1")
    # Another query moves the distances.
    page.get_by_role("button", name="Clear query").click()
    expect(page.get_by_text("Draw at least one class")).to_be_visible()
    draw(page, 5, *SQUARE)
    expect(answer).to_contain_text("class 2")
    page.get_by_label("Upload a picture of class 3").set_input_files(next(SUPPORT.glob("*/*.png")))
    expect(page.get_by_role("row", name="class 3")).to_be_visible()
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    page.get_by_label("Upload a picture of class 4").set_input_files(wrong)
    expect(page.get_by_role("alert").filter(has_text="notes.png is not an image")).to_be_visible()


def test_examples_by_keyboard_alone(visit: Any, expect: Any):
    page = visit("protonet")
    table = page.locator(".distances")
    expect(table).to_be_visible()
    before = table.inner_text()
    page.locator("#boards .clear").last.focus()
    # Past the upload of the query.
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText").strip() == "Another example"
    page.keyboard.press("Enter")
    expect(table).not_to_have_text(before, use_inner_text=True)
