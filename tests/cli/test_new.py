"""`etude new`: the files of a study, and names that are none. That what it lays out runs is tested with the docs."""

from pathlib import Path

import pytest

from etude import registry
from etude.cli.new import layout
from etude.core.errors import UserError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The parts of a checkout that the verb reads and writes."""
    here, there = Path(registry.__file__).parent, tmp_path / "src" / "etude"
    (there / "runs").mkdir(parents=True)
    (there / "runs" / "template").symlink_to(here / "runs" / "template")
    (there / "registry.py").write_text((here / "registry.py").read_text())
    (tmp_path / "pyproject.toml").touch()
    return there


def test_a_study_is_laid_out(package: Path) -> None:
    folder = layout("kmeans", package)
    assert {path.name for path in folder.iterdir()} >= {"study.py", "task.py", "model.py", "figures.py", "README.md"}
    assert "class KmeansTask" in (folder / "task.py").read_text()
    assert not any("NAME" in path.read_text() for path in folder.iterdir())
    assert '"darts", "kmeans")' in (package / "registry.py").read_text()


@pytest.mark.parametrize("name", ["Kmeans", "k-means", "9lives", "class", "k means", "../x", "\u00e9tude"])
def test_a_name_that_cannot_be_is_refused(package: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be a study's name"):
        layout(name, package)
    assert not (package / "studies").exists()


def test_a_name_that_is_taken_is_refused(package: Path) -> None:
    with pytest.raises(UserError, match="choose another name"):
        layout("resnet", package)


def test_an_installed_package_is_left_alone(package: Path) -> None:
    (package.parents[1] / "pyproject.toml").unlink()
    with pytest.raises(UserError, match="clone it"):
        layout("kmeans", package)
    assert "kmeans" not in (package / "registry.py").read_text()
