"""The tab of slots: what is found, what is rebuilt after changes, and a visitor who changes two pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from etude.core.errors import UserError
from etude.scenes.page import SAMPLES, changed, looked, told
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.slots.page import look, rebuilt
from etude.studies.slots.predict import Options, predict

FIRST, SECOND = (str(SAMPLES / f"CLEVRTEX_render_00000{number}.png") for number in (3, 5))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("none"))


def test_the_page_finds_what_the_command_line_finds(site: Site, tmp_path: Path):
    weights, extra = site.weights("slots", SHIPPED)
    [wanted] = predict(weights, extra, Options((Path(FIRST),), output=tmp_path / "found"))
    scene = look(site, SHIPPED, FIRST)
    assert wanted.shares is not None
    assert {str(slot): share for slot, share in scene.shares.items()} == pytest.approx(wanted.shares)
    assert list(scene.parts) == list(scene.shares)
    assert all(part.shape == scene.image_HWC.shape for part in scene.parts.values())


def test_pictures_are_rebuilt_as_by_the_command_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights, extra = site.weights("slots", SHIPPED)
    words = ("swap:1:2", "delete:4", "move:6")
    predict(weights, extra, Options((Path(FIRST), Path(SECOND)), output=tmp_path, edit=words))
    shown: list[np.ndarray] = []
    monkeypatch.setattr("etude.studies.slots.page.changed_html", lambda _, made, __: shown.extend(made) or "")
    rebuilt(site, SHIPPED, FIRST, SECOND, words)
    for path, image in zip((FIRST, SECOND), shown, strict=True):
        wanted = np.array(Image.open(tmp_path / f"{Path(path).stem}-edited.png"))
        assert np.abs(wanted.astype(int) - image).max() <= 1


def test_changes_in_words():
    assert told([]) == "No change yet."
    assert told(["delete:3", "move:1", "swap:2:5"]).splitlines() == [
        "1. Slot 3 of the first picture is taken out.",
        "2. Slot 1 of the first picture moves to the second picture.",
        "3. Slot 2 of the first picture is exchanged for slot 5 of the second.",
    ]


def test_changes_that_cannot_be_get_one_line(site: Site):
    alone = looked(look, site, SHIPPED, FIRST, None)
    with pytest.raises(UserError, match="needs a second picture: drop one beside the first"):
        changed(["move:1"], alone)
    with pytest.raises(UserError, match="slot 1 was taken by an edit before it"):
        changed(["delete:1", "delete:1"], alone)
    with pytest.raises(UserError, match="leave a picture without a slot"):
        changed([f"delete:{slot}" for slot in range(len(alone[0].slots))], alone)


def test_pictures_that_cannot_be_read_get_one_line(site: Site, tmp_path: Path):
    plain, text = tmp_path / "plain.png", tmp_path / "text.png"
    Image.new("RGB", (40, 30), "red").save(plain)
    text.write_text("no picture")
    for path, line in ((None, "no picture yet"), (plain, "plain.png is of one colour"), (text, "text.png is not an")):
        with pytest.raises(UserError, match=line) as caught:
            look(site, SHIPPED, path and str(path))
        assert str(tmp_path) not in str(caught.value)


def test_a_visitor_takes_an_object_out_and_exchanges_one(visit: Any, expect: Any, tmp_path: Path):
    expect.set_options(timeout=30_000)
    page = visit("slots")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel.get_by_alt_text("the first picture rebuilt of its slots")).to_be_visible()
    panel.get_by_label("Move it to the second picture").check()
    panel.get_by_role("button", name="Make this change").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("this needs a second picture: drop one beside the first")
    panel.get_by_label("Take it out").check()
    panel.get_by_role("button", name="CLEVRTEX_render_000007").click()
    expect(panel.get_by_alt_text("the first picture rebuilt of its slots")).to_be_visible()
    panel.get_by_role("button", name="Make this change").click()
    expect(panel.locator("#slots-edits")).to_contain_text("is taken out")
    expect(panel.get_by_alt_text("the first picture rebuilt after the changes")).to_be_visible()
    panel.get_by_role("button", name="Undo all").click()
    expect(panel.locator("#slots-edits")).to_have_text("No change yet.")
    expect(panel.get_by_alt_text("the first picture rebuilt after the changes")).to_have_count(0)
    panel.locator("input[type=file]").nth(1).set_input_files(SECOND)
    expect(panel.get_by_alt_text("the second picture rebuilt of its slots")).to_be_visible()
    panel.get_by_label("Exchange it for one of the second").check()
    panel.get_by_role("button", name="Make this change").click()
    expect(panel.locator("#slots-edits")).to_contain_text("is exchanged for slot")
    expect(panel.get_by_alt_text("the second picture rebuilt after the changes")).to_be_visible()
    # Every picture tells what it shows.
    assert panel.locator("#slots-found img:not([alt]), #slots-changed img:not([alt])").count() == 0


def test_a_file_that_is_no_picture_gets_one_line(visit: Any, expect: Any, tmp_path: Path):
    expect.set_options(timeout=30_000)
    page = visit("slots", width=390)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel.get_by_alt_text("the first picture rebuilt of its slots")).to_be_visible()
    panel.locator("input[type=file]").nth(1).set_input_files(broken)
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.png is not an image of a known format")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
