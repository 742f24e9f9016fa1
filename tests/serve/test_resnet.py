"""The tab of resnet: its functions, and the page as a person uses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.errors import UserError
from etude.data import classify as data_classify
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.resnet import page as resnet

SAMPLES = Path(data_classify.__file__).parent / "samples" / "cifar10"
FROG, SHIP = SAMPLES / "frog.png", SAMPLES / "ship.png"


def test_the_answer_is_that_of_predict(tmp_path: Path):
    from etude import registry
    from etude.studies.resnet.predict import Options, predict

    weights = registry.load("resnet").shipped_weights
    assert weights is not None
    [expected] = predict(weights, None, Options(inputs=(FROG,)))
    seen = resnet.classify(Site(tmp_path), SHIPPED, str(FROG))
    assert next(iter(seen.probabilities)) == expected.label == "frog"
    assert seen.probabilities == expected.probabilities
    assert list(seen.probabilities.values()) == sorted(seen.probabilities.values(), reverse=True)
    assert seen.image_HWC.shape == (32, 32, 3)


def test_another_class_another_map(tmp_path: Path):
    site = Site(tmp_path)
    frog, bird = (resnet.look(site, SHIPPED, str(FROG), name) for name in ("frog", "bird"))
    assert frog.shape == bird.shape == (320, 320, 3)
    assert frog.dtype == np.uint8
    assert (frog != bird).any()


def test_norms_beside_each_other(tmp_path: Path, make_run: Any):
    make_run(tmp_path, "resnet", "mine", like_shipped=True)
    make_run(tmp_path, "resnet", "without-weights", ended=True)
    rows = resnet.by_norm(Site(tmp_path), str(FROG))
    assert [row[:3] for row in rows] == [["bn", "mine", "frog"], ["bn", SHIPPED, "frog"]]
    heads, *lines = resnet.published_norms()
    assert heads[0] == "norm"
    assert [line[0] for line in lines] == ["bn-torch", "bn", "in", "bin", "ln", "gn", "none"]
    assert all(any(cell for cell in line[1:]) for line in lines)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_wrong_files(tmp_path: Path, content: bytes):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^photo\.png "):
        resnet.classify(Site(tmp_path), SHIPPED, str(path))


def test_as_a_person_does(visit: Any, expect: Any, tmp_path: Path):
    page = visit("resnet")
    page.locator("input[type=file]").first.set_input_files(FROG)
    top = page.get_by_test_id("label-output-value")
    expect(top).to_have_text("frog")
    shown = page.get_by_role("img", name="Grad-CAM")
    before = shown.get_attribute("src")
    # Another class of the menu, another map.
    page.get_by_role("combobox", name="Grad-CAM of").click()
    page.get_by_role("option", name="bird").click()
    expect(shown).not_to_have_attribute("src", before)
    page.get_by_role("button", name="Six norms side by side").click()
    page.get_by_role("button", name="Ask the networks of all norms").click()
    expect(page.get_by_text("etude study resnet norms")).to_be_visible()
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    page.get_by_role("button", name="Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(wrong)
    expect(page.get_by_text("notes.png is not an image of a known format")).to_be_visible()
    assert "Traceback" not in page.content()


def test_by_keyboard_alone(visit: Any, expect: Any):
    page = visit("resnet")
    page.get_by_role("tab", name="resnet", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.title") == "horse":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("label-output-value")).to_have_text("horse")


def test_two_visitors_at_once(visit: Any, expect: Any):
    one, two = visit("resnet"), visit("resnet")
    one.locator("input[type=file]").first.set_input_files(FROG)
    two.locator("input[type=file]").first.set_input_files(SHIP)
    expect(one.get_by_test_id("label-output-value")).to_have_text("frog")
    expect(two.get_by_test_id("label-output-value")).to_have_text("ship")
