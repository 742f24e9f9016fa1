"""Which library comes with weights. tests/studies/slots/test_library.py has the rest."""

from pathlib import Path

import pytest

from etude.scenes.slot_library import beside


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("weights", "library"),
    [
        ("run/weights.safetensors", "run/figures/library.safetensors"),
        ("run/checkpoints/weights.safetensors", "run/figures/library.safetensors"),
        ("run/checkpoints/step-00000002/weights.safetensors", "run/figures/library.safetensors"),
        ("shipped/weights/slots.safetensors", "shipped/library/slots.safetensors"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_it_is_found(weights: str, library: str, absolute: bool) -> None:
    path = touch(weights)
    path = path.absolute() if absolute else path
    assert beside(path) is None
    expected = touch(library)
    found = beside(path)
    assert found is not None
    assert found.samefile(expected)


def test_it_is_found_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone says no less than a whole path."""
    touch("shipped/weights/slots.safetensors")
    expected = touch("shipped/library/slots.safetensors").absolute()
    monkeypatch.chdir("shipped/weights")
    assert beside(Path("slots.safetensors")) == expected
    monkeypatch.chdir(tmp_path)
    touch("run/checkpoints/step-00000002/weights.safetensors")
    expected = touch("run/figures/library.safetensors").absolute()
    monkeypatch.chdir("run/checkpoints/step-00000002")
    assert beside(Path("weights.safetensors")) == expected


def test_that_of_the_same_name_comes_first() -> None:
    weights = touch("run/weights/slots.safetensors")
    touch("run/figures/library.safetensors")
    touch("run/library/other.safetensors")
    assert beside(weights) == Path("run/figures/library.safetensors").absolute()
    touch("run/library/slots.safetensors")
    found = beside(weights)
    assert found is not None
    assert found.samefile("run/library/slots.safetensors")


def test_what_is_no_library_of_the_run() -> None:
    """A folder of that name, or files further away."""
    weights = touch("far/run/checkpoints/step-00000002/weights.safetensors")
    touch("far/figures/library.safetensors")
    Path("far/run/figures/library.safetensors").mkdir(parents=True)
    assert beside(weights) is None
