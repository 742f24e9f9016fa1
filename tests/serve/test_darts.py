"""The tab of darts: a search over its evaluations, known cells, trained networks."""

from pathlib import Path
from typing import Any

import pytest

from etude.core.errors import UserError
from etude.serve.kit.site import Site
from etude.studies.darts import page as darts
from etude.studies.darts.genotype import OPERATIONS, edges

CIFAR = Path(darts.__file__).parents[1] / "data" / "samples" / "cifar10"


def evaluation(step: int, best: str) -> dict[str, Any]:
    """A line of metrics.jsonl in which one operation outweighs the others on every edge."""
    row: dict[str, Any] = {"step": step, "seconds": float(step), "val/accuracy": 40.0 + step, "val/skips": 0.0}
    for kind in ("normal", "reduction"):
        for number in range(len(edges(4))):
            weights = {name: 0.3 if name == best else 0.1 for name in OPERATIONS}
            row |= {f"mixture/{kind}/{number}/{name}": weight for name, weight in weights.items()}
    return row


ROWS = [{"step": 5, "seconds": 1.0, "train/loss": 2.0}, evaluation(10, "sep_conv_3x3"), evaluation(20, "skip_connect")]


def test_a_search_at_its_evaluations(tmp_path: Path, make_run: Any):
    make_run(tmp_path, "darts", "going", rows=ROWS)
    make_run(tmp_path, "darts", "young", rows=ROWS[:1])
    site = Site(tmp_path)
    assert darts.searches(site) == ["going"]
    first, last = darts.search_at(site, "going", 1), darts.search_at(site, "going", 99)
    assert first[2] == "Step 10: accuracy of the mixture 50.0 %, skips 0."
    assert last[2].startswith("Step 20")
    assert first[3] == 2
    assert first[0].shape == last[0].shape
    assert (first[0] != last[0]).any()
    assert (first[1] != last[1]).any()
    for name in ("young", "absent", "../darts/going", None):
        with pytest.raises(UserError, match="no search"):
            darts.search_at(site, name, 1)


def test_the_cell_is_read_off_as_a_search_does():
    cell = darts._cell(evaluation(10, "sep_conv_3x3"), "normal")
    assert [len(node) for node in cell] == [2, 2, 2, 2]
    assert {edge.operation for node in cell for edge in node} == {"sep_conv_3x3"}


def test_known_cells():
    assert darts.cell_names() == ["darts-v1", "darts-v2", "found", "pc-darts"]
    image, line = darts.known_cell("darts-v2")
    assert image.ndim == 3
    # Liu et al. 2019: 3.3 million.
    assert "3,349,342 parameters" in line or "3,3" in line
    with pytest.raises(UserError):
        darts.known_cell("../study")


def test_a_search_is_no_network(tmp_path: Path, make_run: Any):
    make_run(tmp_path, "darts", "search", rows=ROWS, ended=True)
    make_run(tmp_path, "darts", "retrained", preset="retrain-smoke", ended=True)
    site = Site(tmp_path, fits={"darts": darts.is_network})
    assert "search" not in site.choices("darts")
    assert "retrained" in site.choices("darts")


def test_as_a_person_does(visit: Any, expect: Any, runs: Path, make_run: Any):
    make_run(runs, "darts", "a-search", rows=ROWS)
    page = visit("darts")
    expect(page.get_by_text("Step 20: accuracy of the mixture")).to_be_visible()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("Step 10: accuracy of the mixture")).to_be_visible()
    page.get_by_role("tab", name="Known cells").click()
    expect(page.get_by_text("A network of 20 cells of 36 channels has")).to_be_visible()
    line = page.get_by_text("The normal cell has")
    before = line.inner_text()
    page.get_by_role("combobox", name="Cell").click()
    page.get_by_role("option", name="pc-darts").click()
    expect(line).not_to_have_text(before)
    page.get_by_role("tab", name="Classify").click()
    page.get_by_title("ship").last.click()
    expect(page.get_by_test_id("label-output-value").last).to_be_visible()
