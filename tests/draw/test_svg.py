"""Curves: what is drawn lies where it should, and is said in words."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etude.draw import svg
from etude.draw.svg import Panel


def parsed(panel: Panel) -> ET.Element:
    return ET.fromstring(svg.draw(panel))


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in element.attrib["d"][1:].split("L")]  # type: ignore[misc]


def lines(drawn: ET.Element) -> list[list[tuple[float, float]]]:
    """The curves; the legend's samples are drawn with h."""
    paths = [e for e in drawn.iter("path") if "line" in e.attrib["class"] and "h" not in e.attrib["d"]]
    return [points(path) for path in paths]


def test_quantities_share_a_panel() -> None:
    rows = [
        {"step": 1, "seconds": 1.0, "train/rate": 0.1, "train/loss": 2.0, "odd": 3.0, "gates/a/0": 1.0, "gates/a/1": 1},
        {"step": 2, "seconds": 2.0, "train/loss": 1.0, "val/loss": 1.5, "val/ari": 0.2},
    ]
    found, others = svg.panels(rows)
    assert found == [
        Panel("loss", {"train": ([1, 2], [2.0, 1.0]), "val": ([2], [1.5])}),
        Panel("ari", {"val": ([2], [0.2])}),
        Panel("rate", {"train": ([1], [0.1])}),
    ]
    assert others == 3
    assert svg.panels([]) == ([], 0)


def test_a_panel_by_hand() -> None:
    drawn = parsed(Panel("val_loss", {"train": ([0, 50, 100], [0.0, 1.0, 2.0]), "<b>": ([100], [2.0])}))
    (line,) = lines(drawn)
    left, right = 52, svg.WIDTH - 22
    top, bottom = 42, svg.HEIGHT - 34
    assert line == [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    (dot,) = drawn.iter("circle")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == (right, top)
    said = [text.text for text in drawn.iter("text")]
    assert said[0] == "val loss"
    assert {"train", "<b>", "step", "0", "50", "100", "0.5", "1", "2"} <= set(said)
    assert drawn.attrib["role"] == "img"
    assert drawn.attrib["aria-label"] == (
        "Curve of val loss: train 0 at step 0 to 2 at step 100, lowest 0, highest 2; <b> 2 at step 100"
    )


def test_lines_are_told_apart_without_colour() -> None:
    drawn = parsed(Panel("loss", {name: ([1, 2], [1.0, 2.0]) for name in "abcdefgh"}))
    kinds = [e.attrib["class"] for e in drawn.iter("path") if e.attrib["class"].startswith("line")]
    assert kinds[::2] == [f"line l{number % 6}" for number in range(8)]


def test_a_wide_range_is_logarithmic() -> None:
    drawn = parsed(Panel("loss", {"train": ([0, 1, 2], [1e-3, 1.0, 1e3])}))
    (line,) = lines(drawn)
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2)
    assert any(text.text == "loss (log scale)" for text in drawn.iter("text"))
    for values in ([0.0, 1e6], [-1.0, 1e6], [1.0, 999.0]):
        assert "log scale" not in svg.draw(Panel("loss", {"train": ([0, 1], values)}))


def test_many_points_keep_their_extremes() -> None:
    ys = [math.sin(x / 50) for x in range(5000)]
    ys[1234], ys[4321] = 9.0, -9.0
    (line,) = lines(parsed(Panel("loss", {"train": (list(range(5000)), ys)})))
    assert 100 < len(line) < 200
    heights = [y for _, y in line]
    assert min(heights) == 42
    assert max(heights) == svg.HEIGHT - 34
    assert line[-1][0] == svg.WIDTH - 22, "the line ends where the run does"


@example([0.0, 5e-324])
@example([1e-320, 1e299])
@example([-1e299, 1e299])
@example([1e16, 1e16 + 2])
@settings(max_examples=30)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=400))
def test_any_numbers_make_a_picture_within_its_frame(values: list[float]) -> None:
    drawn = parsed(Panel("loss", {"train": (list(range(len(values))), values)}))
    for line in lines(drawn):
        assert all(52 <= x <= svg.WIDTH - 22 and 42 <= y <= svg.HEIGHT - 34 for x, y in line)
    assert "nan" not in ET.tostring(drawn, "unicode")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234567, "0.01235"), (12.3456, "12.35"), (12345.6, "12,346"), (1.2e-7, "1.2e-7"), (-3e9, "-3e9")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert svg.short(value) == text
    assert re.fullmatch(r"[-\d.,e]+", text)


def test_the_style_sheet_has_a_rule_for_all_that_is_drawn() -> None:
    many = Panel("loss", {str(number): ([1, 2], [1.0, 2.0]) for number in range(9)} | {"one": ([1], [1.0])})
    classes = {name for element in parsed(many).iter() for name in element.attrib.get("class", "").split()}
    assert classes >= {"plot", "head", "grid", "axis", "line", "l0", "l5"}
    assert [name for name in sorted(classes) if not re.search(rf"\.{name}\b", svg.STYLE)] == []
