"""What a folder or zip file is taken for: its pictures, splits and classes, and what is left out and why."""

import zipfile
from pathlib import Path

import pytest

from etude.core.errors import UserError
from etude.data.images import read_image
from etude.data.prediction import picture_files
from etude.data.tree import Inventory, Picture, class_folders, inventory, opened

AROUND = {
    "notes.txt": "no picture",
    "loose.png": "beside the folders that are read",
    "train/owl/notes.txt": "no picture",
    "train/owl/.hidden.png": "hidden",
    "__MACOSX/owl/x.png": "hidden",
}
PLACES = [f"{part}/{name}/{number}.PNG" for part in ("train", "valid") for name in ("owl", "wren") for number in (1, 2)]


@pytest.fixture(params=["folder", "zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Pictures in splits and classes with other files around."""
    for name in (*PLACES, *AROUND):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if request.param == "folder":
        return tmp_path / "tree"
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for file in sorted((tmp_path / "tree").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "tree").as_posix())
    return tmp_path / "tree.zip"


def listed(path: Path, *, classes: bool) -> Inventory:
    with opened(path) as tree:
        return inventory(tree, classes=classes)


def test_what_is_read_and_what_is_left_out(path: Path) -> None:
    found = listed(path, classes=True)
    assert found.splits == {"train": "train", "valid": "val"}
    assert found.pictures[0] == Picture("train/owl/1.PNG", "train/owl/1.PNG", "train", "owl")
    assert [picture.name for picture in found.pictures] == sorted(PLACES, key=lambda name: (name.split("/")[1], name))
    # A hidden folder is not entered.
    assert found.left_out == {name.removesuffix("/owl/x.png"): why for name, why in AROUND.items()}


def test_pairs_lie_in_the_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/b.png", "train/a.png", "test/c.png", "loose.png", "other/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = listed(tmp_path, classes=False)
    assert [(picture.name, picture.part) for picture in found.pictures] == [
        ("test/c.png", "test"), ("train/a.png", "train"), ("train/b.png", "train")
    ]  # fmt: skip
    assert found.left_out == {"loose.png": "beside the folders that are read"}


def test_a_link_to_a_folder_around_it_has_an_end(tmp_path: Path) -> None:
    for name in ("owl", "wren"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "up").symlink_to(tmp_path)
    assert len(listed(tmp_path, classes=True).pictures) == 2


def test_a_broken_link_is_told_of_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    [path] = picture_files([tmp_path])
    with pytest.raises(UserError, match=r"a\.png does not exist"):
        read_image(path, "RGB")


def test_a_support_has_no_class_of_the_systems_own(tmp_path: Path) -> None:
    for name in ("owl/1.png", "wren/1.png", "__MACOSX/1.png", ".git/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert list(class_folders(tmp_path)) == ["owl", "wren"]
