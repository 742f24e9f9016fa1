"""The tab of resnet, as a person uses it."""

from pathlib import Path
from typing import Any

from etude.data import classify

SAMPLES = Path(classify.__file__).parent / "samples" / "cifar10"


def test_a_photograph_is_named_and_looked_into(visit: Any, expect: Any):
    page = visit("resnet")
    page.locator("input[type=file]").first.set_input_files(SAMPLES / "frog.png")
    expect(page.get_by_test_id("label-output-value")).to_have_text("frog")
    expect(page.get_by_role("img", name="Where the network looked")).to_be_visible()
