"""Pictures of any size through a network of one: no seams, names and order kept, one line for every fault."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.studies.pix2pix import common
from tests.studies.resnet.common import BROKEN, ODD, picture, pixels

from etude import cli
from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.config import to_dict
from etude.core.errors import Refused, UserError
from etude.studies.pix2pix import predict as module
from etude.studies.pix2pix.predict import Options, predict, starts, tell, tiled, translated
from etude.studies.pix2pix.study import STUDY


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator alone, in half precision, as it ships."""
    task = common.make()
    for step in range(3):
        task.train_step(step)
    path = tmp_path_factory.mktemp("exported") / "tiny.safetensors"
    header = WeightsHeader("pix2pix", to_dict(task.config), task.finish())
    save_weights(path, task.exported, header, half=True)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def identity(tiles: np.ndarray) -> np.ndarray:
    return tiles


# --- tiles ---


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([8, 16, 32]), st.integers(0, 16))
def test_a_network_that_changes_nothing_gives_the_picture_back(
    height: int, width: int, size: int, overlap: int
) -> None:
    image = noise(height, width)
    made, count = tiled(image, identity, size, min(overlap, size // 2))
    assert np.array_equal(made, image)
    assert count >= (height // size) * (width // size)


@given(st.integers(0, 300), st.sampled_from([8, 16, 64]), st.integers(0, 32))
def test_tiles_cover_and_overlap(more: int, size: int, overlap: int) -> None:
    overlap, length = min(overlap, size // 2), size + more
    found = starts(length, size, overlap)
    assert (found[0], found[-1]) == (0, length - size)
    gaps = np.diff(found)
    assert (gaps <= size - overlap).all()
    assert (gaps > 0).all()


def test_no_seams() -> None:
    """Tiles that disagree by a constant are blended: no step is larger than the ramp's."""

    class Drifting:
        made = 0

        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            levels = 100 + 33 * (np.arange(self.made, self.made + len(tiles)) % 2)
            self.made += len(tiles)
            return np.broadcast_to(levels[:, None, None, None], tiles.shape).astype(np.uint8)

    made, count = tiled(noise(32, 100), Drifting(), 32, 16)
    assert count == 6
    line = made[0, :, 0].astype(int)
    assert set(made[:, 0, 0].tolist()) == {100}
    assert line.max() - line.min() > 25
    assert np.abs(np.diff(line)).max() <= 4
    cut, _ = tiled(noise(32, 100), Drifting(), 32, 0)
    assert np.abs(np.diff(cut[0, :, 0].astype(int))).max() > 10, "without an overlap there are seams"


def test_a_small_picture_is_padded_with_its_mirror_image() -> None:
    seen: list[np.ndarray] = []

    def watch(tiles: np.ndarray) -> np.ndarray:
        seen.append(tiles)
        return tiles

    image = noise(5, 40)
    made, count = tiled(image, watch, 32, 8)
    assert np.array_equal(made, image)
    assert count == 2
    assert np.array_equal(seen[0][0, 5:10], image[::-1, :32])


def test_memory_is_that_of_the_picture_and_a_row_of_tiles() -> None:
    image = noise(2000, 400)
    tracemalloc.start()
    tiled(image, identity, 64, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A sum over the whole picture alone would take 12.8 MB.
    assert peak < image.nbytes + 6e6


def test_whole() -> None:
    image = np.full((30, 90, 3), 77, np.uint8)
    made, count = translated(image, lambda tiles: tiles + 1, 16, 4, "whole")
    assert made.shape == image.shape
    assert (made == 78).all()
    assert count == 1


def test_at_the_scale_of_the_training_pictures() -> None:
    seen: list[np.ndarray] = []

    def watch(tiles: np.ndarray) -> np.ndarray:
        seen.append(tiles)
        return tiles

    image = np.repeat(np.repeat(noise(16, 24), 4, 0), 4, 1)
    made, count = translated(image, watch, 16, 4, scale=0.25)
    assert (made.shape, count) == (image.shape, 2)
    # The middle of each block of one colour keeps it.
    assert np.abs(seen[0][0].astype(int) - image[2::4, 2:66:4]).mean() < 40
    assert translated(noise(16, 24), watch, 16, 4, scale=0.01)[0].shape == (16, 24, 3), "never less than a pixel"
    assert translated(noise(8, 8), watch, 16, 4, scale=4.0)[1] == 9


def test_the_weights_say_the_scale(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, header = read_weights(exported)
    assert header.extra["scale"] == 1.0
    save_weights(
        Path("half.safetensors"), common.make().exported, WeightsHeader("pix2pix", header.config, {"scale": 0.5})
    )
    Image.fromarray(noise(128, 192)).save("x.png")
    x = (Path("x.png"),)
    counts = [
        predict(weights, None, Options(inputs=x, output=Path(name), scale=scale))[0].tiles
        for name, weights, scale in (
            ("a", Path("half.safetensors"), None),
            ("b", Path("half.safetensors"), 1.0),
            ("c", exported, None),
        )
    ]
    assert counts == [2, 15, 15]
    assert tensors


# --- files ---


def test_pictures_of_many_sizes(exported: Path) -> None:
    Path("in").mkdir()
    sizes = {"d": (64, 64), "b": (20, 90), "a": (130, 70), "c": (1, 1)}
    for name, (height, width) in sizes.items():
        Image.fromarray(noise(height, width)).save(f"in/{name}.png")
    Image.fromarray(noise(64, 64, 3)).save("first.jpg")
    answers = predict(exported, None, Options(inputs=(Path("first.jpg"), Path("in")), output=Path("out")))
    assert [Path(row.image).name for row in answers] == ["first.jpg", "a.png", "b.png", "c.png", "d.png"]
    for row in answers:
        assert Path(row.output) == Path("out") / f"{Path(row.image).stem}.png"
        assert pixels(row.output).shape[:2] == pixels(row.image).shape[:2] == (row.height, row.width)
    assert [row.tiles for row in answers] == [1, 8, 2, 1, 1]
    assert "in/a.png -> out/a.png (70 x 130, 8 tiles)" in tell(answers)
    # The same answers again, one at a time; another seed is other noise.
    once = predict(exported, None, Options(inputs=(Path("in/d.png"),), output=Path("again")))
    assert np.array_equal(pixels(once[0].output), pixels("out/d.png"))
    other = predict(exported, None, Options(inputs=(Path("in/d.png"),), output=Path("other"), seed=1))
    assert not np.array_equal(pixels(other[0].output), pixels("out/d.png"))


def test_a_shipped_file_is_the_generator_alone_and_small(exported: Path) -> None:
    tensors, header = read_weights(exported, study="pix2pix")
    assert all(name.startswith("generator.") for name in tensors)
    assert header.config["data"]["direction"] == "AtoB"
    # The laptop preset's, in half precision.
    count = sum(
        p.numel() for p in common.make(model__size=128, model__width=16, model__widest=6).generator.parameters()
    )
    assert 2 * count < 3.5e6


def test_the_command_line(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(64, 64)).save("x.png")
    assert cli.main(["predict", str(exported), "x.png", "--output", "out", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["image"], row["output"]) for row in rows] == [("x.png", "out/x.png")]
    weights = STUDY.shipped_weights
    if weights is not None:
        assert weights.stat().st_size < 4_000_000


def test_odd_pictures_are_translated(exported: Path) -> None:
    Path("in").mkdir()
    for name, write in ODD.items():
        write(Path("in") / name)
    answers = predict(exported, None, Options(inputs=(Path("in"),), output=Path("out")))
    assert len(answers) == len(ODD)
    rotated = next(row for row in answers if row.image.endswith("rotated.jpg"))
    assert (rotated.width, rotated.height) == (20, 40), "upright"


# --- faults ---


def refused(exported: Path, options: Options, *says: str) -> None:
    with pytest.raises(UserError) as caught:
        predict(exported, None, options)
    text = str(caught.value)
    assert "\n" not in text
    for part in says:
        assert part in text, text


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_and_gigantic_pictures(name: str, exported: Path) -> None:
    write, says = BROKEN[name]
    write(Path(name))
    refused(exported, Options(inputs=(Path(name),), output=Path("out")), name, says)
    picture(1, 20, 24).save("good.png")
    bad, good = predict(exported, None, Options(inputs=(Path(name), Path("good.png")), output=Path("out")))
    assert isinstance(bad, Refused)
    assert says in bad.error
    assert not isinstance(good, Refused)
    assert [path.name for path in Path("out").iterdir()] == ["good.png"]


def test_other_faults(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(1, 64, 64).save("x.png")
    out = Path("out")
    refused(exported, Options(output=out), "no pictures to translate")
    refused(exported, Options(inputs=(Path("x.png"),)), "name a folder with --output")
    refused(exported, Options(inputs=(Path("y.png"),), output=out), "y.png does not exist")
    refused(exported, Options(inputs=(Path("x.png"),), output=out, overlap=33), "an overlap of 33", "0 to 32")
    refused(exported, Options(inputs=(Path("x.png"),), output=Path()), "written over the picture itself")
    picture(2, 64, 64).save("x.jpg")
    refused(exported, Options(inputs=(Path("x.png"), Path("x.jpg")), output=out), "would both write x.png")
    refused(exported, Options(inputs=(Path("x.png"), Path("x.png")), output=out), "x.png is named twice")
    for scale in (0.0, -1.0, 17.0, float("nan")):
        refused(exported, Options(inputs=(Path("x.png"),), output=out, scale=scale), "a scale of", "at most 16")
    refused(exported, Options(inputs=(Path("x.png"),), output=out, scale=16.0, max_pixels=9999), "16 times that a side")
    assert not out.exists(), "nothing is written before a fault"
    predict(exported, None, Options(inputs=(Path("x.png"),), output=out))
    before = (out / "x.png").read_bytes()
    refused(exported, Options(inputs=(Path("x.jpg"),), output=out), "out/x.png exists", "--force")
    assert (out / "x.png").read_bytes() == before
    predict(exported, None, Options(inputs=(Path("x.jpg"),), output=out, force=True))
    assert (out / "x.png").read_bytes() != before
    Path("empty").mkdir()
    refused(exported, Options(inputs=(Path("empty"),), output=out), "holds no image")
    Path("file").touch()
    refused(exported, Options(inputs=(Path("x.png"),), output=Path("file")), "file")
    refused(exported, Options(inputs=(Path("x.png"),), output=Path("new"), max_pixels=100), "more than 100")
    assert module.__doc__


def test_weights_that_do_not_fit(exported: Path) -> None:
    picture(1, 64, 64).save("x.png")
    tensors, header = read_weights(exported)
    config: dict[str, Any] = header.config | {"model": header.config["model"] | {"size": 128}}
    task = common.make()
    save_weights(Path("other.safetensors"), task.exported, WeightsHeader("pix2pix", config, {}))
    refused(Path("other.safetensors"), Options(inputs=(Path("x.png"),), output=Path("out")), "does not fit the network")
    save_weights(Path("resnet.safetensors"), task.exported, WeightsHeader("resnet", header.config, {}))
    refused(Path("resnet.safetensors"), Options(inputs=(Path("x.png"),), output=Path("out")), "of the study 'resnet'")
    assert tensors
