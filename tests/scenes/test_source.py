"""Which scenes are read. tests/studies/slots/test_task.py has generated and released ones."""

import subprocess
import sys
from typing import Any

import pytest

from etude.core.errors import UserError
from etude.data import clevrtex
from etude.scenes.source import SceneConfig, load_scenes


def test_scenes_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    found = clevrtex.generated(16, {"train": 8, "val": 1, "test": 1})
    monkeypatch.setattr(clevrtex, "scenes", lambda *given: seen.append(given) or found)
    read = load_scenes(SceneConfig(source="folder", folder="my scenes", most=70), 24)
    assert read.about == found.about
    assert read.splits["train"].images_NHWC is found.splits["train"].images_NHWC
    assert load_scenes(SceneConfig(source="folder", folder="a.zip"), 32, batch=8).about == found.about
    assert seen == [("my scenes", 24, 70), ("a.zip", 32, 0)]


def test_a_batch_of_more_than_there_are() -> None:
    says = "a batch of 9 is larger than the 8 training scenes: give a smaller --batch.size"
    with pytest.raises(UserError, match=says):
        load_scenes(SceneConfig(source="generated", most=10), 16, batch=9)


def test_the_least_there_can_be() -> None:
    found = load_scenes(SceneConfig(source="generated", most=10), 16)
    assert {split: len(part) for split, part in found.splits.items()} == {"train": 8, "val": 1, "test": 1}
    assert found.splits["train"].images_NHWC.shape == (8, 16, 16, 3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "folder"}, "data.folder must be a path"),
        ({"most": 9}, "data.most must be 0, or at least 10, not 9"),
        ({"most": -1}, "data.most must be 0, or at least 10, not -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SceneConfig(**settings)
    assert SceneConfig(folder="ignored").source == "clevrtex"


def test_settings_are_read_without_pytorch() -> None:
    """`etude list` and `--help` read them, and must not wait."""
    code = "import sys, etude.scenes.source; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
