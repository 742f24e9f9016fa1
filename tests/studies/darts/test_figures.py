"""Pictures of cells and runs: what is drawn is what was found; `etude show darts CELL`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image
from tests.studies.darts.common import SMALL, cell_file, make, make_retrain

from etude import registry
from etude.studies.darts import figures
from etude.studies.darts.genotype import OPERATIONS, Genotype, as_text, known_cells, parse, read

SHORT = {
    "max_pool_3x3": "max 3", "avg_pool_3x3": "avg 3", "skip_connect": "skip", "sep_conv_3x3": "sep 3",
    "sep_conv_5x5": "sep 5", "dil_conv_3x3": "dil 3", "dil_conv_5x5": "dil 5",
}  # fmt: skip


def not_blank(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 10, path


# --- runs ---


def test_a_search_leaves_its_pictures_and_its_cell(searched: Path) -> None:
    names = {path.name for path in (searched / "figures").iterdir()}
    assert names == {"genotype.json", "cells.png", "curves.png", "watch.png", "mixtures.png", "growth.png"}
    for path in (searched / "figures").glob("*.png"):
        not_blank(path)
    found = json.loads((searched / "summary.json").read_text())["extra"]["genotype"]
    assert json.loads((searched / "figures" / "genotype.json").read_text()) == found
    assert read(searched) == parse(found, "summary")


def test_a_retraining_leaves_its_pictures(searched: Path, retrained: Path) -> None:
    assert {path.name for path in (retrained / "figures").iterdir()} == {"cells.png", "curves.png"}
    for path in (retrained / "figures").iterdir():
        not_blank(path)
    summary = json.loads((retrained / "summary.json").read_text())
    assert parse(summary["extra"]["genotype"], "summary") == read(searched)
    assert {row["cell"] for row in summary["results"]} == {"found"}


def test_the_cell_that_a_rule_kept_is_the_one_that_is_drawn(tmp_path: Path) -> None:
    task = make()
    small = parse(SMALL, "small")
    task.history = {
        1: {"step": 1.0, "skips": 1.0, "genotype": as_text(small)},
        2: {"step": 2.0, "skips": 1.0, "genotype": as_text(task.model.genotype), "kept": as_text(small)},
    }
    figures.draw(task, tmp_path, METRICS)
    assert read(tmp_path / "genotype.json") == small != task.model.genotype


def lines(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


METRICS: list[dict[str, Any]] = [
    {"step": 5, "train/loss": 2.0, "train/alpha_loss": 2.5, "train/accuracy": 20.0, "train/rate": 0.02},
    {
        "step": 10, "train/loss": 1.0, "train/alpha_loss": 1.5, "train/accuracy": 40.0, "train/rate": 0.01,
        "val/loss": 1.25, "val/accuracy": 35.0, "alpha/loss": 1.2, "alpha/accuracy": 36.0, "val/skips": 1.0,
        "val/reduction_skips": 3.0, "val/entropy": 2.0, "val/reduction_entropy": 1.9,
    },
]  # fmt: skip


def test_curves_of_a_search(tmp_path: Path, drawn: list[Figure]) -> None:
    """At step 2 alpha waits."""
    waits = {"step": 2, "train/loss": 3.0, "train/alpha_loss": 0.0}
    figures.search_curves(tmp_path / "curves.png", [waits, *METRICS])
    loss, accuracy, rate = map(lines, drawn[0].axes)
    assert loss == {
        "weights' half, in training": ([2, 5, 10], [3.0, 2.0, 1.0]), "alpha's half, in training": ([5, 10], [2.5, 1.5]),
        "alpha's half": ([10], [1.2]), "val": ([10], [1.25]),
    }  # fmt: skip
    assert accuracy == {
        "weights' half, in training": ([5, 10], [20, 40]), "alpha's half": ([10], [36]), "val": ([10], [35]),
    }  # fmt: skip
    assert rate == {"weights": ([5, 10], [0.02, 0.01])}


def test_what_is_watched(tmp_path: Path, drawn: list[Figure]) -> None:
    """The eigenvalue has a panel where it was measured."""
    figures.watch_curves(tmp_path / "watch.png", METRICS)
    figures.watch_curves(tmp_path / "more.png", [*METRICS, {"step": 20, "val/eigenvalue": 0.5}])
    skips, entropy = map(lines, drawn[0].axes)
    assert skips == {"normal": ([10], [1.0]), "reduction": ([10], [3.0])}
    assert entropy == {"normal": ([10], [2.0]), "reduction": ([10], [1.9])}
    assert lines(drawn[1].axes[2]) == {"Hessian": ([20], [0.5])}


def test_weights_of_the_last_evaluation(tmp_path: Path, drawn: list[Figure]) -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(8), (2, 5))
    row = {
        f"mixture/{kind}/{edge}/{name}": table[number, edge, place]
        for number, kind in enumerate(("normal", "reduction"))
        for edge in range(5)
        for place, name in enumerate(OPERATIONS)
    }
    older = dict.fromkeys(row, 0.5)
    figures.mixtures(
        tmp_path / "mixtures.png", [{"step": 5, **older}, {"step": 10, **row}, {"step": 12}], figures.edge_names(2)
    )
    panels = drawn[0].axes[:2]
    for number, ax in enumerate(panels):
        np.testing.assert_allclose(np.asarray(ax.get_images()[0].get_array()), table[number])
        assert [label.get_text() for label in ax.get_yticklabels()] == [
            "k-2 to 0", "k-1 to 0", "k-2 to 1", "k-1 to 1", "0 to 1",
        ]  # fmt: skip
        assert [label.get_text() for label in ax.get_xticklabels()] == ["none", *SHORT.values()]
        assert "step 10" in ax.get_title()
    figures.mixtures(tmp_path / "none.png", [{"step": 5}], figures.edge_names(2))
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("count", "steps"), [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (51, [0, 10, 20, 30, 40, 50])])
def test_growth_from_the_first_to_the_last(count: int, steps: list[int], tmp_path: Path, drawn: list[Figure]) -> None:
    small = parse(SMALL, "small")
    figures.growth(tmp_path / "growth.png", [(step, small) for step in range(count)])
    titles = [ax.get_title() for ax in drawn[0].axes]
    assert titles == [f"{kind}, step {step}" for kind in ("normal", "reduction") for step in steps]


# --- cells ---


def arcs(ax: Axes) -> set[tuple[float, float, str]]:
    """From, to, colour."""
    found = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    return {(arc._posA_posB[0][0], arc._posA_posB[1][0], to_hex(arc.get_edgecolor())) for arc in found}  # type: ignore


@pytest.mark.parametrize("name", ["darts-v1", "darts-v2", "pc-darts"])
def test_a_drawn_cell_has_its_edges(name: str, tmp_path: Path, drawn: list[Figure]) -> None:
    genotype = read(name)
    figures.cells(tmp_path / "cells.png", genotype, name)
    not_blank(tmp_path / "cells.png")
    colours: dict[str, set[str]] = {}
    for ax, cell in zip(drawn[0].axes, (genotype.normal, genotype.reduction), strict=True):
        expected = [(edge.source, 2 + node, edge.operation) for node, of in enumerate(cell) for edge in of]
        found = arcs(ax)
        assert {(start, end) for start, end, _ in found} == {(start, end) for start, end, _ in expected}
        texts = [text.get_text() for text in ax.texts]
        for operation, short in SHORT.items():
            assert texts.count(short) == sum(edge[2] == operation for edge in expected)
        assert texts[:7] == ["k-2", "k-1", "0", "1", "2", "3", "k = 0 | 1 | 2 | 3"]
        for start, end, operation in expected:
            colours.setdefault(operation, set()).update(c for a, b, c in found if (a, b) == (start, end))
    assert all(len(of_one) == 1 for of_one in colours.values())
    assert len({next(iter(of_one)) for of_one in colours.values()}) == len(colours), "an operation has its colour"


def test_cells_of_one_node(tmp_path: Path) -> None:
    one = parse(SMALL, "small")
    figures.cells(tmp_path / "one.png", Genotype(one.normal[:1], one.reduction[:1]), "one")
    not_blank(tmp_path / "one.png")


# --- etude show ---

V2 = """\
normal cell
  node 0 = sep_conv_3x3 of k-2 + sep_conv_3x3 of k-1
  node 1 = sep_conv_3x3 of k-2 + sep_conv_3x3 of k-1
  node 2 = sep_conv_3x3 of k-1 + skip_connect of k-2
  node 3 = skip_connect of k-2 + dil_conv_3x3 of 0
  2 skip_connect, 5 sep_conv_3x3, 1 dil_conv_3x3
"""


def test_show_a_published_cell(here: Path, etude: Any) -> None:
    answer = etude("show", "darts", "darts-v2")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith(V2)
    assert "\n  5 max_pool_3x3, 3 skip_connect\n" in answer.out
    assert "3,349,342 parameters with 20 cells of 36 channels and ten classes" in answer.out
    assert answer.out.endswith("drawn: darts-v2.png\n")
    assert [path.name for path in here.iterdir()] == ["darts-v2.png"]
    not_blank(here / "darts-v2.png")


def test_show_every_published_cell(here: Path, etude: Any) -> None:
    """One of them has the name of a preset: a picture is of a cell."""
    counts = {"darts-v1": "3,169,414", "darts-v2": "3,349,342", "pc-darts": "3,634,678"}
    assert {*counts, "found"} == set(known_cells())
    for name, count in counts.items():
        answer = etude("show", "darts", name, "--out", f"new/{name}.png")
        assert answer.status == 0
        assert count in answer.out
        not_blank(here / "new" / f"{name}.png")


def test_show_a_file_and_a_run(here: Path, etude: Any, searched: Path) -> None:
    cell_file(here / "mine.json")
    answer = etude("show", "darts", "mine.json", "--out", "new/small.png")
    assert (answer.status, answer.err) == (0, "")
    assert "node 1 = dil_conv_5x5 of 0 + max_pool_3x3 of k-2" in answer.out
    assert answer.out.endswith("drawn: new/small.png\n")
    not_blank(here / "new" / "small.png")
    answer = etude("show", "darts", searched)
    assert answer.status == 0
    first = json.loads((searched / "figures" / "genotype.json").read_text())["normal"][0][0]
    assert f"node 0 = {first[0]} of k-{2 - first[1]} + " in answer.out
    not_blank(here / f"{searched.name}.png")


def test_show_a_preset_is_what_it_was(etude: Any) -> None:
    answer = etude("show", "darts", "smoke")
    assert answer.status == 0
    assert "phase: search" in answer.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("darts-v3",), ("no preset or cell 'darts-v3'", "did you mean 'darts-v", "as a JSON file")),
        (("papre",), ("no preset or cell 'papre'; did you mean 'paper'?",)),
        (("n" * 300,), ("no preset or cell 'nnn",)),
        (("darts-v2", "--out", "cell.jpg"), ("cell.jpg is no .png file: give --out NAME.png",)),
        (("darts-v2", "--out", "cell"), ("cell is no .png file",)),
        (("darts-v2", "--oat", "cell.png"), ("no flag --oat; did you mean '--out'?",)),
        ((".",), ("is no search that has ended",)),
    ],
)
def test_show_what_is_not_there(words: tuple[str, ...], says: tuple[str, ...], here: Path, refused: Any) -> None:
    refused("show", "darts", *words, says=says)
    assert list(here.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_one_line(here: Path, etude: Any) -> None:
    (here / "taken").write_text("a file")
    answer = etude("show", "darts", "darts-v2", "--out", "taken/cell.png")
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert "taken/cell.png" in answer.err


def test_the_task_draws_what_belongs_to_it(tmp_path: Path) -> None:
    task = make_retrain()
    registry.load("darts").module("figures").draw(task, tmp_path, METRICS)
    assert {path.name for path in tmp_path.iterdir()} == {"cells.png", "curves.png"}
