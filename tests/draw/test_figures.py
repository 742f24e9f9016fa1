"""Pictures are whole or absent, and show what they are given. Sheets and colours of segments: tests/studies/slots."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from etude.core.errors import UserError
from etude.draw import figures


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in their order."""
    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **more: seen.append(self) or save(self, *given, **more))
    return seen


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def shown(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.get_images()]


# --- figures ---


def test_a_figure_has_its_size_and_leaves_the_style(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    with figures.figure(tmp_path / "a.png", 2.0, 1.0) as page:
        page.subplots().plot([0, 1], [1, 0])
        assert mpl.rcParams["axes.grid"]
    assert dict(mpl.rcParams) == before
    assert pixels(tmp_path / "a.png").shape == (110, 220, 3)
    assert len(np.unique(pixels(tmp_path / "a.png"))) > 10


def test_a_figure_whose_block_fails_is_not_saved(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError), figures.figure(tmp_path / "a.png", 2.0, 1.0):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    assert dict(mpl.rcParams) == before


def test_curves(tmp_path: Path, saved: list[Figure]) -> None:
    lines = {"training": ([1, 2, 3], [3.0, 2.0, 1.0]), "validation": ([3], [2.0])}
    figures.curves(tmp_path / "a.png", [("Loss", "nats", lines), ("Nothing yet", "dB", {"PSNR": ([], [])})])
    left, right = saved[0].axes
    assert (left.get_title(), left.get_ylabel(), left.get_xlabel()) == ("Loss", "nats", "step")
    drawn = {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in left.get_lines()}
    assert drawn == lines
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert right.get_legend() is None, "nothing to tell apart"
    assert pixels(tmp_path / "a.png").size


# --- pictures ---


def test_a_grid_shows_its_pictures_as_they_are(tmp_path: Path, saved: list[Figure]) -> None:
    grey = np.full((4, 4), 130, np.uint8)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    figures.grid(tmp_path / "a.png", [("first", [grey, red]), ("second", [red])], ["left", "right"])
    (page,) = saved
    a, b, c, d = page.axes
    assert [ax.get_title() for ax in page.axes] == ["left", "right", "", ""]
    assert [ax.get_ylabel() for ax in page.axes] == ["first", "", "second", ""]
    for ax, images in ((a, [grey]), (b, [red]), (c, [red]), (d, [])):
        assert len(shown(ax)) == len(images)
        assert all(np.array_equal(mine, wanted) for mine, wanted in zip(shown(ax), images, strict=True))
        assert list(ax.get_xticks()) == list(ax.get_yticks()) == []
    found = {tuple(colour) for colour in pixels(tmp_path / "a.png").reshape(-1, 3).tolist()}
    assert {(130, 130, 130), (255, 0, 0)} <= found, "one grey is not stretched to black or white"


def test_a_grid_of_one_picture_without_titles(tmp_path: Path) -> None:
    figures.grid(tmp_path / "a.png", [("", [np.zeros((3, 5), np.uint8)])])
    assert (pixels(tmp_path / "a.png") == 0).all(-1).mean() > 0.1


def test_a_sheet_of_one_and_of_many_columns() -> None:
    images = torch.arange(2, dtype=torch.uint8)[:, None, None].expand(2, 1, 2)
    assert figures.sheet(images, 1, 9).tolist() == [[0, 0], [9, 9], [1, 1]]
    assert figures.sheet(images, 3, 9).tolist() == [[0, 0, 9, 1, 1, 9, 9, 9]]
    assert figures.sheet(images[:1], 1).tolist() == [[0, 0]]


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_colours_of_segments_are_kept(kind: type) -> None:
    """Whatever else is in the picture, and however it is stored; after twenty they begin again."""
    alone, among = (figures.coloured(np.array([row], kind))[0] for row in ([7], [0, 7, 27, 47, 255]))
    assert (alone.dtype, alone.shape) == (np.uint8, (1, 3))
    assert np.array_equal(among[1], alone[0])
    assert np.array_equal(among[2], alone[0])
    assert np.array_equal(among[3], alone[0])
    assert not np.array_equal(among[0], figures.coloured(np.array([[20]], kind))[0, 0])


# --- files ---


def test_a_picture_is_put_in_its_place(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.png"
    figures.save_figure(target, lambda to: figures.grid(to, [("", [np.zeros((3, 3), np.uint8)])]))
    assert pixels(target).size
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_a_draw_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_text("old")

    def fails(to: Path) -> None:
        to.write_text("half of it")
        raise UserError("no memory")

    with pytest.raises(UserError, match="no memory"):
        figures.save_figure(target, fails)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target], "and nothing beside it"
    figures.save_figure(target, lambda to: Image.new("RGB", (2, 2)).save(to))
    assert pixels(target).shape == (2, 2, 3)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        figures.save_figure(tmp_path / "file" / "a.png", lambda to: Image.new("RGB", (2, 2)).save(to))
    assert "\n" not in str(caught.value)
