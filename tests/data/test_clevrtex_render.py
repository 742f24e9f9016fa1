"""CLEVRTex-like scenes: what is drawn, what a folder holds after a stop or a fault, and Blender's own pictures."""

import dataclasses
import importlib.util
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from etude.cli import main
from etude.core.errors import Interrupted, UserError
from etude.core.files import sha256
from etude.data.render import driver
from etude.data.render.driver import Done, Job, Options, files, render, splits, write_scene
from etude.data.render.scene import (
    CAMERA,
    CAMERA_JITTER,
    CROP,
    CROP_SENSOR,
    FRAME,
    LAMP_JITTER,
    LAMPS,
    LENS,
    MARGIN,
    PATTERNS,
    PUBLISHED,
    RADII,
    REACH,
    SENSOR,
    SHAPES,
    Scene,
    drawings,
)

GOLDEN = (9, "cylinder", (-0.65375, 0.461813, 0.4), (7.741596, -6.780791, 5.227593), (0.134044, 0.306669, 0.193783))

numbers = st.integers(0, 10**6)
seeds = st.integers(0, 2**40)


def first(seed: int, number: int, **keywords: Any) -> Scene:
    return next(drawings(seed, number, **keywords))


def write_fake(job: Job, number: int) -> None:
    """What Blender would write, without it."""
    size = job.settings.size
    value = (job.settings.seed + number) % 256
    image, mask = np.full((size, size, 3), value, np.uint8), np.zeros((size, size), np.uint8)
    write_scene(job.out, number, image, mask, {"number": number})


class Fake:
    """Counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, job: Job, number: int) -> None:
        self.asked.append(number)
        write_fake(job, number)


def run(out: Path, count: int, *, work: Any = write_fake, **keywords: Any) -> Done:
    return render(Options(out=out, count=count, **({"size": 32} | keywords)), work, ThreadPoolExecutor)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# --- scenes ---


@given(seeds, numbers)
def test_a_scene_is_as_published(seed: int, number: int) -> None:
    scene = first(seed, number)
    assert 3 <= len(scene.objects) <= 10
    assert [thing.number for thing in scene.objects] == list(range(1, len(scene.objects) + 1))
    for thing in scene.objects:
        assert thing.shape in PUBLISHED
        assert thing.radius == RADII[thing.size]
        assert thing.scale == pytest.approx(thing.radius / (math.sqrt(2) if thing.shape == "cube" else 1))
        x, y, z = thing.position
        assert max(abs(x), abs(y)) <= REACH
        assert z == thing.scale, "primitives are two units high: it stands on the ground"
        assert 0 <= thing.yaw_degrees <= 360
    for one, other in itertools.combinations(scene.objects, 2):
        assert math.dist(one.position[:2], other.position[:2]) - one.radius - other.radius > MARGIN
    assert all(abs(now - was) <= CAMERA_JITTER for now, was in zip(scene.camera, CAMERA, strict=True))
    for lamp, before in zip(scene.lamps, LAMPS, strict=True):
        assert all(abs(now - was) <= LAMP_JITTER for now, was in zip(lamp.position, before.position, strict=True))
        assert (lamp.name, lamp.watts, lamp.side) == (before.name, before.watts, before.side)
    for material in (scene.ground, *(thing.material for thing in scene.objects)):
        assert material.pattern in PATTERNS
        assert material.name == material.pattern
        assert material.scale > 0
        assert 0 <= material.roughness <= 1
        assert material.metallic in (0, 1)
        assert all(0 <= part <= 1 for colour in material.colours for part in colour)


@given(seeds, numbers)
def test_a_scene_is_determined_by_seed_and_number(seed: int, number: int) -> None:
    scene = first(seed, number)
    assert scene == first(seed, number)
    for other in (first(seed + 1, number), first(seed, number + 1)):
        assert [thing.position for thing in other.objects] != [thing.position for thing in scene.objects]


@given(numbers)
def test_later_drawings_keep_the_number_of_objects(number: int) -> None:
    tries = list(itertools.islice(drawings(0, number), 4))
    assert len({len(scene.objects) for scene in tries}) == 1
    assert len({scene.objects[0].position for scene in tries}) == 4
    assert [scene.attempt for scene in tries] == sorted({scene.attempt for scene in tries})


@given(numbers)
def test_shapes_and_textures_are_chosen_from_what_is_given(number: int) -> None:
    names = ["wood.png", "stone/granite.jpg"]
    scene = first(3, number, shapes=("cone", "torus"), textures=names)
    assert {thing.shape for thing in scene.objects} <= {"cone", "torus"}
    materials = [scene.ground, *(thing.material for thing in scene.objects)]
    assert all((material.pattern, material.name in names) == ("image", True) for material in materials)
    # A folder of pictures changes no place.
    assert [thing.position for thing in scene.objects] == [
        thing.position for thing in first(3, number, shapes=("cone", "torus")).objects
    ]


def test_everything_is_drawn_and_evenly() -> None:
    scenes = [first(0, number) for number in range(400)]
    counts = np.bincount([len(scene.objects) for scene in scenes], minlength=11)
    assert (counts[:3] == 0).all()
    assert counts[3:].min() > 25, "of 50"
    things = [thing for scene in scenes for thing in scene.objects]
    for drawn, known in (("shape", PUBLISHED), ("size", RADII)):
        share = np.array([sum(getattr(thing, drawn) == name for thing in things) for name in known]) / len(things)
        np.testing.assert_allclose(share, 1 / len(known), atol=0.09)
    assert {thing.material.pattern for thing in things} == {scene.ground.pattern for scene in scenes} == set(PATTERNS)


def test_scenes_are_the_same_for_ever() -> None:
    # A folder is added to by later versions: another drawing needs another FORMAT.
    scene = first(0, 0)
    assert len(scene.objects) == GOLDEN[0]
    assert scene.objects[0].shape == GOLDEN[1]
    np.testing.assert_allclose(scene.objects[0].position, GOLDEN[2], atol=1e-6)
    np.testing.assert_allclose(scene.camera, GOLDEN[3], atol=1e-6)
    np.testing.assert_allclose(scene.ground.colours[0], GOLDEN[4], atol=1e-6)


def test_the_square_sensor_sees_the_middle_of_the_frame() -> None:
    # A direction x / z meets column (0.5 + x / z * lens / sensor) * width, square pixels; the crop starts at 64 of 320.
    start = (FRAME[0] - CROP) / 2
    for direction in np.linspace(-0.25, 0.25, 11):
        column = (0.5 + direction * LENS / SENSOR) * FRAME[0]
        assert (0.5 + direction * LENS / CROP_SENSOR) * CROP == pytest.approx(column - start)
        # Rows have the same pixels a unit, and the middle one in the middle.
        row = FRAME[1] / 2 + direction * LENS / SENSOR * FRAME[0]
        assert CROP / 2 + direction * LENS / CROP_SENSOR * CROP == pytest.approx(row - (FRAME[1] - CROP) / 2)


# --- the folder ---


def test_a_folder_is_made(tmp_path: Path) -> None:
    out = tmp_path / "new" / "set"
    assert run(out, 12) == Done(rendered=12, kept=0)
    assert (out / "0" / "CLEVRTEX_render_000011_flat.png").is_file()
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["count"], meta["settings"]["size"], meta["splits"]["test"]) == (12, 32, [0, 1])
    sums = json.loads((out / "checksums.json").read_text())
    assert sums == {name: sha256(out / name) for name in contents(out) if name.startswith("0/")}
    assert len(sums) == 36
    with Image.open(files(out, 3)[1]) as mask:
        assert mask.mode == "L"


def test_the_thousand_and_first_scene_has_a_folder_of_its_own() -> None:
    assert [path.as_posix() for path in files(Path("x"), 1000)] == [
        "x/1/CLEVRTEX_render_001000.png", "x/1/CLEVRTEX_render_001000_flat.png", "x/1/CLEVRTEX_render_001000.json",
    ]  # fmt: skip


@given(st.integers(1, 10**6))
def test_splits_share_all_scenes(count: int) -> None:
    parts = splits(count)
    assert [parts["test"][0], parts["val"][0], parts["train"][0]] == [0, parts["test"][1], parts["val"][1]]
    assert parts["train"][1] == count
    if count >= 3:
        assert all(end > start for start, end in parts.values())
    if count >= 10:
        assert parts["test"][1] == count // 10


def test_what_is_done_stays(tmp_path: Path) -> None:
    run(tmp_path, 4)
    before, again = contents(tmp_path), Fake()
    assert run(tmp_path, 4, work=again) == Done(rendered=0, kept=4)
    assert again.asked == []
    assert contents(tmp_path) == before
    assert run(tmp_path, 7, work=again) == Done(rendered=3, kept=4)
    assert again.asked == [4, 5, 6]
    after = contents(tmp_path)
    assert {name: after[name] for name in before if name.startswith("0/")} == {
        name: body for name, body in before.items() if name.startswith("0/")
    }
    assert len(json.loads(after["checksums.json"])) == 21
    assert json.loads(after["meta.json"])["splits"]["train"] == [2, 7]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_half_written_scenes_are_rendered_again(tmp_path: Path, kind: int) -> None:
    run(tmp_path, 4)
    whole = contents(tmp_path)
    lost = files(tmp_path, 2)[kind]
    lost.rename(lost.with_name(f".{lost.name}.abc.tmp"))
    work = Fake()
    assert run(tmp_path, 4, work=work) == Done(rendered=1, kept=3)
    assert work.asked == [2]
    assert contents(tmp_path) == whole, "what was left half-written is swept away"


def test_no_checksums_before_the_end(tmp_path: Path) -> None:
    def broken(job: Job, number: int) -> None:
        if number == 5:
            raise UserError("no room")
        write_fake(job, number)

    run(tmp_path, 3)
    with pytest.raises(UserError, match="no room"):
        run(tmp_path, 8, work=broken)
    assert not (tmp_path / "checksums.json").exists()
    assert run(tmp_path, 8) == Done(rendered=3, kept=5)
    assert len(json.loads((tmp_path / "checksums.json").read_text())) == 24


def test_jobs_change_nothing(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=20)

    def work(job: Job, number: int) -> None:
        together.wait()
        write_fake(job, number)

    run(tmp_path / "one", 6)
    assert run(tmp_path / "three", 6, work=work, jobs=3).rendered == 6
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_ctrl_c_leaves_what_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = driver.wait, itertools.count()

    def interrupted(running: Any, **keywords: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(running, **keywords)

    monkeypatch.setattr(driver, "wait", interrupted)
    with pytest.raises(Interrupted, match=r"stopped with 4 of 9 scenes: the same command goes on"):
        run(tmp_path, 9)
    monkeypatch.setattr(driver, "wait", real)
    assert run(tmp_path, 9) == Done(rendered=5, kept=4)


def test_a_dead_process_is_one_line(tmp_path: Path) -> None:
    class Dead(ThreadPoolExecutor):
        def submit(self, *words: Any, **keywords: Any) -> Any:
            future: Future[None] = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    with pytest.raises(UserError, match=r"Blender ended without a word.*the same command goes on"):
        render(Options(out=tmp_path, count=2, size=32), write_fake, Dead)


# --- faults ---


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"size": 64}, "made with size 32, not 64"),
        ({"seed": 1}, "made with seed 0, not 1"),
        ({"samples": 20}, "made with samples 12, not 20"),
        ({"shapes": SHAPES}, "made with shapes cube cylinder sphere monkey, not cube"),
        ({"textures": "textures"}, "made with other textures"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    textured(tmp_path / "textures")
    out = tmp_path / "out"
    run(out, 2)
    before = contents(out)
    if "textures" in other:
        other = {"textures": tmp_path / other["textures"]}
    with pytest.raises(UserError, match=said):
        run(out, 2, **other)
    assert contents(out) == before


def textured(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "deep/b.jpg")):
        Image.new("RGB", (8, 8), (40 * number, 90, 10)).save(folder / name)
    return folder


def test_textures_are_called_as_they_are_written(tmp_path: Path) -> None:
    name = "cafe\u0301.png"
    (textured(tmp_path / "x") / "a.png").rename(tmp_path / "x" / name)
    run(tmp_path / "out", 1, textures=tmp_path / "x")
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["textures"] == [name, "deep/b.jpg"]


def test_textures_are_known_by_what_they_show(tmp_path: Path) -> None:
    folder = textured(tmp_path / "textures")
    run(tmp_path / "out", 1, textures=folder)
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["textures"] == ["a.png", "deep/b.jpg"]
    folder.rename(tmp_path / "moved")
    assert run(tmp_path / "out", 2, textures=tmp_path / "moved").rendered == 1
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "moved" / "a.png")
    with pytest.raises(UserError, match="made with other textures"):
        run(tmp_path / "out", 3, textures=tmp_path / "moved")


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "{}", '{"settings": [], "count": 2}', '{"settings": {}, "count": "2"}', "\x00"]
)
def test_a_damaged_record_is_refused(tmp_path: Path, body: str) -> None:
    run(tmp_path, 2)
    (tmp_path / "meta.json").write_text(body)
    with pytest.raises(UserError, match=r"meta\.json is damaged: give another --out"):
        run(tmp_path, 2)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds other things \(thesis.tex\) and no meta.json"):
        run(tmp_path, 2)
    with pytest.raises(UserError, match="is a file: give a folder with --out"):
        run(tmp_path / "thesis.tex", 2)
    with pytest.raises(UserError, match=r"cannot (write|be read)|Not a directory"):
        run(tmp_path / "thesis.tex" / "below", 2)
    assert list(contents(tmp_path)) == ["thesis.tex"]


def test_a_lower_count_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 5)
    with pytest.raises(UserError, match=r"holds scene 4, and --count 3 ends before it: give at least --count 5"):
        run(tmp_path, 3)


def test_a_folder_is_one_command_s(tmp_path: Path) -> None:
    said: list[str] = []

    def work(job: Job, number: int) -> None:
        try:
            run(tmp_path, 1)
        except UserError as error:
            said.append(str(error))
        write_fake(job, number)

    run(tmp_path, 1, work=work)
    assert len(said) == 1
    assert "in use by another process" in said[0]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"count": 0}, "--count must be at least 1, not 0"),
        ({"count": -3}, "--count must be at least 1"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"samples": 0}, "--samples must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"size": 31}, "--size must be from 32 to 512 pixels, not 31"),
        ({"size": 513}, "--size must be from 32 to 512"),
        ({"shapes": ()}, "--shapes needs at least one"),
        ({"shapes": ("cube", "cube")}, "names a shape twice"),
        ({"textures": Path("nowhere")}, "no textures folder nowhere"),
        ({"textures": Path("empty")}, "empty holds no picture"),
        ({"textures": Path("a.png")}, "a.png is a file: give the folder"),
        ({"textures": Path("damaged")}, "b.png is not an image of a known format"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("none")
    textured(Path("damaged"))
    Path("damaged/b.png").write_text("no picture")
    Image.new("RGB", (4, 4)).save("a.png")
    with pytest.raises(UserError, match=said) as caught:
        run(tmp_path / "out", **({"count": 2} | keywords))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("clevrtex", "--count", "0", "--out", "out"), "--count must be at least 1"),
        (("clevrtex", "--count", "2"), "--out"),
        (("clevrtex", "--out", "out"), "--count"),
        (("clevr", "--count", "2", "--out", "out"), "clevr"),
        (("clevrtex", "--count", "two", "--out", "out"), "two"),
        (("clevrtex", "--count", "2", "--out", "out", "--shapes", "teapot"), "teapot"),
        (("clevrtex", "--count", "2", "--out", "out", "--sise", "64"), "no flag --sise"),
    ],
)
def test_the_command_says_faults_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "render", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_without_blender_the_fix_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bpy" else real(name, *rest))
    assert main(["data", "render", "clevrtex", "--count", "2", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Python 3.11" in line
    assert "uv sync --extra render" in line
    assert not (tmp_path / "out").exists()


def test_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "render", "--help"]) == 0
    assert "--textures" in capsys.readouterr().out


# --- Blender ---

needs_blender = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("bpy", "OpenEXR")),
    reason="no Blender: `uv sync --extra render`",
)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny scenes, one of pictures' textures."""
    folder = tmp_path_factory.mktemp("render")
    textured(folder / "textures")
    # Each process starts the packages of Blender anew, and those warn.
    options = Options(out=folder / "out", count=2, size=64, samples=2, textures=folder / "textures")
    assert render(options) == Done(rendered=2, kept=0)
    return folder


@pytest.mark.slow
@needs_blender
def test_masks_are_what_the_record_says(rendered: Path) -> None:
    for number in range(2):
        image_path, mask_path, json_path = files(rendered / "out", number)
        about = json.loads(json_path.read_text())
        with Image.open(image_path) as image, Image.open(mask_path) as mask:
            assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (64, 64), "L", (64, 64))
            mask_HW, image_HW3 = np.array(mask), np.array(image)
        counts = np.bincount(mask_HW.ravel(), minlength=len(about["objects"]) + 1)
        assert counts.tolist()[1:] == [thing["pixels"] for thing in about["objects"]]
        assert counts[0] > 0
        assert 20 < image_HW3.mean() < 240
        assert image_HW3.std() > 5
        for thing in about["objects"]:
            assert thing["frame_pixels"] >= 200
            assert thing["material"]["name"] in ("a.png", "deep/b.jpg")
            # A whole object has the pixels of its frame, at another number of pixels a unit.
            if thing["pixels"] > 30 and not _at_edge(mask_HW == thing["number"]):
                assert thing["pixels"] == pytest.approx(thing["frame_pixels"] * (64 / CROP) ** 2, rel=0.15)
                assert math.dist(_middle(mask_HW == thing["number"]), _projected(thing, about["camera"], 64)) < 6


def _at_edge(is_HW: np.ndarray) -> bool:
    return bool(is_HW[[0, -1]].any() or is_HW[:, [0, -1]].any())


def _middle(is_HW: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(is_HW)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def _projected(thing: dict[str, Any], camera: list[float], size: int) -> tuple[float, float]:
    """Column and row of an object's centre, by hand."""
    ahead = -np.array(camera) / np.linalg.norm(camera)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    away = np.array(thing["position"]) - camera
    scale = LENS / CROP_SENSOR / (away @ ahead)
    return float((0.5 + scale * (away @ right)) * size), float((0.5 - scale * (away @ np.cross(right, ahead))) * size)


@pytest.mark.slow
@needs_blender
def test_a_seed_gives_the_same_files(rendered: Path, tmp_path: Path) -> None:
    # In another process, as its first scene, beside another process.
    render(Options(out=tmp_path, count=2, size=64, samples=2, textures=rendered / "textures", jobs=2))
    assert contents(tmp_path) == contents(rendered / "out")


@pytest.mark.slow
@needs_blender
def test_every_shape_and_pattern_renders_and_nothing_is_left_over(tmp_path: Path) -> None:
    script = """
import numpy as np
from etude.data.render.blender import Studio
from etude.data.render.scene import SHAPES
studio = Studio(None, 32, 1)
kinds = ("objects", "lights", "materials", "images", "meshes", "node_groups")
left, seen = [], set()
for number in range(8):
    made = studio.render(1, number, SHAPES, ())
    seen |= {thing.shape for thing in made.scene.objects} | {thing.material.pattern for thing in made.scene.objects}
    left.append({kind: len(getattr(studio.bpy.data, kind)) for kind in kinds})
for shape, mesh in studio.meshes.items():
    if shape == "ground": continue
    points = np.array([vertex.co for vertex in mesh.vertices])
    assert abs(points[:, :2]).max() <= 1.001, shape
    assert np.hypot(points[:, 0], points[:, 1]).max() <= (2 ** 0.5 if shape == "cube" else 1) + 0.001, shape
    assert abs(points[:, 2].min() + 1) < 0.001, shape
print("SEEN", *sorted(seen))
print("LEFT", left[-1])
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    said = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(("SEEN", "LEFT"))}
    assert set(said["SEEN"].split()[1:]) == {*SHAPES, *PATTERNS}
    left = eval(said["LEFT"][4:])
    # The result of the last render is an image too.
    assert left["images"] <= 1
    assert left == left | {"objects": 2, "lights": 1, "materials": 0, "meshes": 1 + len(SHAPES), "node_groups": 0}


@pytest.mark.slow
@needs_blender
def test_a_real_ctrl_c_resumes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["data", "render", "clevrtex", "--count", "200", "--out", str(out), "--size", "32", "--samples", "1"]
    process = subprocess.Popen([sys.executable, "-m", "etude", *words], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not files(out, 0)[2].exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert len(said.strip().splitlines()) == 1
    done = len(list(out.glob("0/*.json")))
    assert 1 <= done < 20
    assert f"stopped with {done} of 200 scenes" in said
    assert not list(out.glob("0/.*.tmp"))


def test_dataclasses_go_to_json_and_back() -> None:
    scene = first(0, 3)
    about = dataclasses.asdict(scene)
    assert json.loads(json.dumps(about))["objects"][0]["material"]["name"] == scene.objects[0].material.name
