"""Objects found in pictures, slots moved between them, scenes composed; one line for every fault."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.studies.predicting import answers, call, files, photo, refused
from tests.studies.resnet.common import BROKEN, ODD, pixels
from tests.studies.slots.common import build, draw, network, one_line, saved, settings
from torch import Tensor

from etude.cli.app import main
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.nn.pixels import prepare
from etude.scenes import prediction
from etude.scenes.edits import Edit, edited, parse_edit, shares_of
from etude.scenes.scores import segments
from etude.studies.slots.predict import Options, predict, tell

K, S = 3, 8
TINY = [
    *("--loop.max-steps", "2", "--loop.eval-every", "1", "--loop.log-every", "1", "--model.size", "16"),
    *("--model.num-slots", "3", "--model.slot-size", "8", "--model.features", "8", "--model.hidden", "8"),
    *("--model.decoder-width", "4", "--data.most", "20", "--batch.size", "4"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "slots.safetensors"
    made = build(network(), 5 * draw(40, S, dtype=torch.float32), 0)
    made.save(path, "slots", to_dict(settings()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["run", "slots", "smoke", "--name", "tiny", "--runs", str(runs), *TINY]) == 0
    return runs / "slots" / "tiny"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- finding ---


def test_objects_of_a_picture(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    (row,) = answers(capsys, weights, path, "--output", "out")
    assert (row["image"], row["output"]) == ("a.png", "out/a-slots.png")
    assert set(files("out")) == {"a-slots.png", "a-mask.png"}
    mask = pixels("out/a-mask.png")
    assert (mask.shape, mask.dtype) == ((16, 16), np.uint8)
    with torch.no_grad():
        image = prepare(torch.from_numpy(pixels(path))[None])
        made, named = network().eval()(image, spread=0.0, iterations=2)
    assert np.array_equal(mask, segments(named["masks"])[0].numpy())
    counts = np.bincount(mask.ravel(), minlength=K) / mask.size
    assert row["shares"] == {str(slot): pytest.approx(counts[slot]) for slot in range(K) if counts[slot] >= 0.005}
    assert row["slots"] == len(row["shares"])
    assert sum(row["shares"].values()) == pytest.approx(1, abs=0.005 * K)
    assert list(row["shares"].values()) == sorted(row["shares"].values(), reverse=True)
    off = ((made - image) / 2).square().sum().item()
    assert row["mse"] == pytest.approx(off, rel=1e-4)
    sheet = pixels("out/a-slots.png")
    assert sheet.shape[1] > 2 * sheet.shape[0], "a row: the picture, what is made of it, three slots"
    assert len(np.unique(sheet.reshape(-1, sheet.shape[-1]), axis=0)) > 10


def test_it_is_told_to_people(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(weights, photo("a.png"), "--output", "out") == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "a.png -> out/a-slots.png (" in said
    assert "squared error" in said
    assert tell([]) == ""


def test_a_folder_and_a_picture(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than one batch, in order; a picture's answer does not depend on what is beside it."""
    monkeypatch.setattr(prediction, "BATCH", 3)
    Path("in").mkdir()
    for number in range(4):
        photo(f"in/{number:02d}.png", number)
    rows = answers(capsys, weights, photo("first.png", 50), "in", "--output", "out")
    assert [row["image"] for row in rows] == ["first.png", *(f"in/{number:02d}.png" for number in range(4))]
    assert len(files("out")) == 10
    (alone,) = answers(capsys, weights, "in/03.png", "--output", "alone")
    assert np.array_equal(pixels("alone/03-mask.png"), pixels("out/03-mask.png"))
    assert alone["mse"] == pytest.approx(rows[-1]["mse"], rel=1e-4)


def test_a_picture_that_is_not_square_is_cut_as_in_training(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The middle square of four fifths of the shorter side."""
    wide = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(wide).save("wide.png")
    Image.fromarray(wide[2:18, 12:28]).save("cut.png")
    one, two = answers(capsys, weights, "wide.png", "cut.png", "--output", "out")
    assert np.array_equal(pixels("out/wide-mask.png"), pixels("out/cut-mask.png"))
    assert one["mse"] == pytest.approx(two["mse"])


def test_a_large_photo_has_pixels_left_after_the_cut(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A JPEG may come at a part of its size, but not at so small a one that the cut square must be blown up again."""
    line = np.zeros((32, 48, 3), np.uint8)
    line[:, ::2] = 255
    Image.fromarray(line).save("a.jpg", quality=100, subsampling=0)
    Image.fromarray(pixels("a.jpg")).save("b.png")
    one, two = answers(capsys, weights, "a.jpg", "b.png", "--output", "out")
    assert one["mse"] == pytest.approx(two["mse"], rel=0.02)


def test_odd_pictures(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    for name, write in ODD.items():
        if name != "one.png":
            write(Path("in") / name)
    assert len(answers(capsys, weights, "in", "--output", "out")) == len(ODD) - 1


def test_the_same_seed_gives_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where slots begin by chance."""
    gaussian = saved(tmp_path / "gaussian.safetensors", model__init="gaussian", model__implicit=False)
    path = photo("a.png")
    rows = [
        answers(capsys, gaussian, path, "--output", name, "--seed", seed)[0]
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    ]
    assert files("one") == files("two")
    assert rows[0]["mse"] == rows[1]["mse"] != rows[2]["mse"]


def test_a_run_is_used_by_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    (row,) = answers(capsys, run, path, "--output", "out")
    assert row["output"] == "out/a-slots.png"
    assert len(answers(capsys, run, "--compose", 2, "--output", "composed")) == 1, "its own library"
    assert {"000.png", "001.png", "compositions.png"} == set(files("composed"))


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_pictures(weights: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write, says = BROKEN[name]
    write(Path(name))
    refused(capsys, weights, name, "--output", "out", says=(name, says))
    assert call(weights, photo("a.png", 1), name, photo("b.png", 2), "--output", "out", "--json") == 1
    said = capsys.readouterr()
    assert name in said.err
    assert says in said.err
    assert [row.get("output", "none") for row in json.loads(said.out)] == ["out/a-slots.png", "none", "out/b-slots.png"]
    assert set(files("out")) == {f"{one}-{what}.png" for one in "ab" for what in ("slots", "mask")}


def test_pictures_that_cannot_be(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20), (3, 4, 5)).save("flat.png")
    refused(capsys, weights, "flat.png", "--output", "out", says=("flat.png is of one colour",))
    refused(capsys, weights, "none.png", "--output", "out", says=("none.png does not exist",))
    photo("a.png")
    refused(capsys, weights, "x" * 300, "--output", "out", says=("cannot be read",))
    refused(capsys, weights, "a.png", "--output", "out", "--max-pixels", 100, says=("more than 100",))
    refused(capsys, weights, "--output", "out", says=("no pictures", "--compose"))
    Path("empty").mkdir()
    refused(capsys, weights, "empty", "--output", "out", says=("empty holds no image",))
    photo("a.jpg", 1)
    refused(capsys, weights, "a.png", "a.jpg", "--output", "out", says=("would both write a-slots.png",))
    refused(capsys, weights, "a.png", "a.png", "--output", "out", says=("a.png is named twice",))
    Path("file").touch()
    refused(capsys, weights, "a.png", "--output", "file", says=("file",))


@pytest.mark.parametrize("which", ["a-slots.png", "a-mask.png"])
def test_results_are_not_written_over(weights: Path, capsys: pytest.CaptureFixture[str], which: str) -> None:
    path = photo("a.png")
    Path("out").mkdir()
    (Path("out") / which).write_text("mine")
    refused(capsys, weights, path, "--output", "out", says=(f"out/{which} exists", "--force"))
    assert call(weights, path, "--output", "out", "--force") == 0
    assert pixels(f"out/{which}").size


def test_shares_by_hand() -> None:
    found = torch.zeros(20, 20, dtype=torch.int64)
    found[0, :2], found[1, :1], found[2:6] = 2, 4, 1
    # 2 pixels of 400 are just enough, one is not.
    assert shares_of(found, 6) == {"0": 317 / 400, "1": 0.2, "2": 0.005}


# --- weights ---


def test_weights_of_other_kinds(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    refused(capsys, library, path, "--output", "out", says=("is a slot library, not a network", "--library"))
    config = to_dict(settings(model__slot_size=6))
    save_weights(Path("other.safetensors"), {"model": network()}, WeightsHeader("slots", config, {}))
    refused(capsys, Path("other.safetensors"), path, "--output", "out", says=("does not fit the network",))


def test_weights_in_half_precision(capsys: pytest.CaptureFixture[str]) -> None:
    """As they ship; those of a decoder that was still coarse too."""
    path = photo("a.png")
    for coarse in (False, True):
        net = network(coarse=coarse, model__broadcast=4)
        header = WeightsHeader("slots", to_dict(settings(model__broadcast=4)), {})
        errors = []
        for half in (False, True):
            at = Path(f"{coarse}-{half}.safetensors")
            save_weights(at, {"model": net}, header, half=half)
            errors.append(answers(capsys, at, path, "--output", f"{coarse}-{half}")[0]["mse"])
        assert errors[0] == pytest.approx(errors[1], rel=0.01)
        with torch.no_grad():
            image = prepare(torch.from_numpy(pixels(path))[None])
            made, _ = net.eval()(image, spread=0.0, iterations=2)
        assert errors[0] == pytest.approx(((made - image) / 2).square().sum().item(), rel=1e-4)


# --- editing ---


def slots(first: int, count: int = 4) -> list[Tensor]:
    """Slots that tell their numbers."""
    return [torch.full((S,), float(first + number)) for number in range(count)]


def numbers(after: list[list[Tensor]]) -> list[list[int]]:
    return [[int(slot[0]) for slot in part] for part in after]


@pytest.mark.parametrize(
    ("edits", "left", "right"),
    [
        ([Edit("delete", 2)], [0, 1, 3], [10, 11, 12, 13]),
        ([Edit("delete", 0), Edit("delete", 3)], [1, 2], [10, 11, 12, 13]),
        ([Edit("move", 1)], [0, 2, 3], [10, 11, 12, 13, 1]),
        ([Edit("swap", 1, 3)], [0, 2, 3, 13], [10, 11, 12, 1]),
        ([Edit("swap", 0, 0), Edit("swap", 1, 1)], [2, 3, 10, 11], [12, 13, 0, 1]),
        ([Edit("swap", 2, 1), Edit("move", 3), Edit("delete", 0)], [1, 11], [10, 12, 13, 2, 3]),
        ([], [0, 1, 2, 3], [10, 11, 12, 13]),
    ],
)
def test_slots_change_their_pictures(edits: list[Edit], left: list[int], right: list[int]) -> None:
    given_slots = [slots(0), slots(10)]
    assert numbers(edited(given_slots, edits)) == [left, right]
    assert numbers(given_slots) == [[0, 1, 2, 3], [10, 11, 12, 13]], "what is given stays"


def test_a_slot_is_taken_out_of_one_picture() -> None:
    assert numbers(edited([slots(0)], [Edit("delete", 1)])) == [[0, 2, 3]]


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([Edit("delete", 1), Edit("delete", 1)], "delete:1: slot 1 was taken by an edit before it"),
        ([Edit("move", 1), Edit("swap", 1, 2)], "swap:1:2: slot 1 was taken by an edit before it"),
        ([Edit("swap", 1, 2), Edit("swap", 0, 2)], "swap:0:2: slot 2 was taken by an edit before it"),
        ([Edit("swap", 1, 2), Edit("delete", 1)], "delete:1: slot 1 was taken"),
        ([Edit("move", slot) for slot in range(4)], "leave a picture without a slot: keep at least one"),
        ([Edit("delete", slot) for slot in range(4)], "leave a picture without a slot"),
    ],
)
def test_edits_that_exclude_each_other(edits: list[Edit], says: str) -> None:
    with pytest.raises(UserError) as caught:
        edited([slots(0), slots(10)], edits)
    one_line(caught, says)


def test_words_of_edits() -> None:
    assert parse_edit("swap:2:5", 11, two=True) == Edit("swap", 2, 5)
    assert parse_edit("move:10", 11, two=True) == Edit("move", 10)
    assert parse_edit("delete:0", 11, two=False) == Edit("delete", 0)
    assert parse_edit("delete:007", 11, two=False) == Edit("delete", 7)


@pytest.mark.parametrize(
    ("word", "two", "says"),
    [
        ("remove:1", True, "no edit 'remove:1': there are swap:I:J, move:I and delete:I"),
        ("swap:1", True, "no edit 'swap:1'"),
        ("delete:1:2", True, "no edit 'delete:1:2'"),
        ("delete", True, "no edit 'delete'"),
        ("delete:", True, "no edit 'delete:'"),
        ("delete:-1", True, "no edit 'delete:-1'"),
        ("delete:1.0", True, "no edit 'delete:1.0'"),
        ("delete:\u0661", True, "no edit"),
        ("", True, "no edit ''"),
        ("Delete:1", True, "no edit 'Delete:1'"),
        ("delete:1\n", True, "no edit"),
        ("move:1", False, "move:1 needs a second picture: name it after the first"),
        ("swap:1:1", False, "swap:1:1 needs a second picture"),
        ("delete:11", False, "delete:11: the slots are 0 to 10"),
        ("swap:0:11", True, "swap:0:11: the slots are 0 to 10"),
        ("delete:123456789", False, "the slots are 0 to 10"),
        ("delete:" + "9" * 5000, False, "no edit 'delete:999"),
    ],
)
def test_edits_that_are_none(word: str, two: bool, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_edit(word, 11, two=two)
    one_line(caught, says)


PIECES = st.sampled_from(["swap", "move", "delete", "", "0", "3", "19", "-1", "1.5", "9" * 5000, "\u0661", "\n"])
WORDS = st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=4).map(":".join))


@given(WORDS, st.integers(2, 20), st.booleans())
def test_any_word_is_an_edit_or_one_line(word: str, num_slots: int, two: bool) -> None:
    edit, told = None, ""
    try:
        edit = parse_edit(word, num_slots, two=two)
    except UserError as error:
        told = str(error)
    assert (edit is None) == bool(told)
    assert "\n" not in told
    if edit is not None:
        assert 0 <= edit.slot < num_slots
        assert (0 <= edit.other < num_slots) == (edit.kind == "swap")
        assert two or edit.kind == "delete"


@given(st.lists(st.builds(Edit, st.sampled_from(["swap", "move", "delete"]), st.integers(0, 3), st.integers(0, 3))))
def test_no_slot_is_lost_or_made(edits: list[Edit]) -> None:
    try:
        after = numbers(edited([slots(0), slots(10)], edits))
    except UserError:
        used = [("a", edit.slot) for edit in edits] + [("b", edit.other) for edit in edits if edit.kind == "swap"]
        assert len(set(used)) < len(used) or {edit.slot for edit in edits} == set(range(4))
        return
    deleted = [edit.slot for edit in edits if edit.kind == "delete"]
    assert sorted([*after[0], *after[1], *deleted]) == [0, 1, 2, 3, 10, 11, 12, 13]


def decoded(paths: list[Path], order: list[list[tuple[int, int]]]) -> list[np.ndarray]:
    """Pictures of slots, each named by picture and number."""
    net = network().eval()
    images = prepare(torch.from_numpy(np.stack([pixels(path) for path in paths])))
    made = []
    with torch.no_grad():
        found = net.encoder(images, spread=0.0, iterations=2).slots_BKS
        for places in order:
            image, _ = net.decode(torch.stack([found[place] for place in places])[None])
            made.append(((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return made


def assert_close(path: str, wanted: np.ndarray) -> None:
    assert np.abs(pixels(path).astype(int) - wanted).max() <= 1


def test_edits_of_two_pictures(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [photo("a.png"), photo("b.png", 1)]
    rows = answers(capsys, weights, *paths, "--output", "out", "--edit", "swap:0:2", "move:1")
    assert [row["output"] for row in rows] == ["out/a-edited.png", "out/b-edited.png", "out/edit.png"]
    assert set(files("out")) == {"a-edited.png", "b-edited.png", "edit.png"}
    left, right = decoded(paths, [[(0, 2), (1, 2)], [(1, 0), (1, 1), (0, 0), (0, 1)]])
    assert_close("out/a-edited.png", left)
    assert_close("out/b-edited.png", right)
    assert pixels("out/edit.png").size


def test_an_edit_of_one_picture(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [photo("a.png")]
    rows = answers(capsys, weights, *paths, "--output", "out", "--edit", "delete:1")
    assert [row["output"] for row in rows] == ["out/a-edited.png", "out/edit.png"]
    assert_close("out/a-edited.png", decoded(paths, [[(0, 0), (0, 2)]])[0])


def test_edits_that_nobody_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one picture each object is taken out in turn, and of two the largest objects are swapped."""
    paths = [photo("a.png"), photo("b.png", 1)]
    found = answers(capsys, weights, *paths, "--output", "found")
    object_a, object_b = (int(list(row["shares"])[1]) for row in found)
    answers(capsys, weights, paths[0], "--output", "one", "--edit")
    assert set(files("one")) == {"a-edited.png", "edit.png"}
    left = [(0, slot) for slot in range(K) if slot != object_a]
    right = [(1, slot) for slot in range(K) if slot != object_b]
    assert_close("one/a-edited.png", decoded(paths, [left])[0])
    answers(capsys, weights, *paths, "--output", "two", "--edit")
    assert set(files("two")) == {"a-edited.png", "b-edited.png", "edit.png"}
    swapped = decoded(paths, [[*left, (1, object_b)], [*right, (0, object_a)]])
    assert_close("two/a-edited.png", swapped[0])
    assert_close("two/b-edited.png", swapped[1])


def test_nothing_to_edit_where_one_slot_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    net: Any = network()
    torch.nn.init.zeros_(net.decoder.last.weight)
    save_weights(Path("one.safetensors"), {"model": net}, WeightsHeader("slots", to_dict(settings()), {}))
    a, b = photo("a.png"), photo("b.png", 1)
    for paths in ((a,), (a, b)):
        refused(capsys, Path("one.safetensors"), *paths, "--output", "out", "--edit", says=("one slot has all",))
    assert call(Path("one.safetensors"), a, "--output", "out", "--edit", "delete:2") == 0


def test_edits_that_cannot_be(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (photo(f"{name}.png", seed) for seed, name in enumerate("abc"))
    out = ("--output", "out")
    refused(capsys, weights, a, *out, "--edit", "turn:1", says=("no edit 'turn:1'",))
    refused(capsys, weights, a, *out, "--edit", "delete:3", says=("delete:3: the slots are 0 to 2",))
    refused(capsys, weights, a, *out, "--edit", "move:1", says=("move:1 needs a second picture",))
    refused(capsys, weights, a, b, *out, "--edit", "swap:1:1", "move:1", says=("slot 1 was taken by an edit before",))
    refused(capsys, weights, a, *out, "--edit", "delete:0", "delete:1", "delete:2", says=("without a slot",))
    refused(capsys, weights, a, b, c, *out, "--edit", says=("--edit takes one picture or two, not 3",))
    refused(capsys, weights, *out, "--edit", "delete:1", says=("no pictures",))
    Path("out").mkdir()
    for there in ("a-edited.png", "edit.png"):
        (Path("out") / there).write_text("mine")
        refused(capsys, weights, a, *out, "--edit", "delete:1", says=(f"out/{there} exists", "--force"))
        assert call(weights, a, *out, "--edit", "delete:1", "--force") == 0
        for path in Path("out").iterdir():
            path.unlink()


# --- composing ---


def test_compositions(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = answers(capsys, weights, "--compose", 5, "--library", library, "--output", "out")
    assert row["output"] == "out/compositions.png"
    names = [f"{number:03d}.png" for number in range(5)]
    assert set(files("out")) == {*names, "compositions.png"}
    images = [pixels(f"out/{name}") for name in names]
    assert all((image.shape, image.dtype) == ((16, 16, 3), np.uint8) for image in images)
    assert len({image.tobytes() for image in images}) == 5
    # Three beside each other, and two below.
    sheet = pixels("out/compositions.png")
    assert sheet.shape == (33, 50, 3)
    assert np.array_equal(sheet[17:, 17:33], images[4])
    assert call(weights, "--compose", 5, "--library", library, "--output", "again") == 0
    assert files("again") == files("out")
    assert call(weights, "--compose", 5, "--library", library, "--output", "other", "--seed", 1) == 0
    assert files("other")["000.png"] != files("out")["000.png"]


def test_a_composition_is_a_slot_of_each_cluster(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one slot a cluster there is one picture."""
    made = build(network(), 5 * draw(K, S, dtype=torch.float32), 0)
    made.save(Path("three.safetensors"), "slots", to_dict(settings()))
    assert call(weights, "--compose", 2, "--library", "three.safetensors", "--output", "out") == 0
    with torch.no_grad():
        image, _ = network().decode(made.slots_NS[None])
    wanted = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert_close("out/000.png", wanted)
    assert_close("out/001.png", wanted)


def test_compositions_that_cannot_be(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_library = ("--library", library, "--output", "out")
    refused(capsys, weights, "--compose", 3, "--output", "out", says=("no slot library: name one with --library",))
    for count in (-1, 10_001):
        says = (f"--compose must be from 1 to 10,000, not {count}",)
        refused(capsys, weights, "--compose", count, *with_library, says=says)
    refused(capsys, weights, photo("a.png"), "--compose", 3, *with_library, says=("--compose takes its slots from",))
    refused(capsys, weights, "a.png", *with_library, says=("--library is for --compose",))
    refused(capsys, weights, "--compose", 3, "--library", "none.safetensors", says=("no weights file at none",))
    refused(capsys, weights, "--compose", 3, "--library", weights, says=("holds a network, not a slot library",))
    refused(capsys, library, "--compose", 3, *with_library, says=("is a slot library, not a network",))
    other = saved(Path("other.safetensors"), seed=1)
    refused(capsys, other, "--compose", 3, *with_library, says=("is the slot library of another model",))
    Path("out").mkdir()
    for there in ("001.png", "compositions.png"):
        (Path("out") / there).write_text("mine")
        refused(capsys, weights, "--compose", 3, *with_library, says=(f"out/{there} exists", "--force"))
        assert call(weights, "--compose", 3, *with_library, "--force") == 0
        for path in Path("out").iterdir():
            path.unlink()


def test_compose_and_edit(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An edit of pictures that are not there is refused, not passed over."""
    refused(
        capsys,
        weights,
        "--compose",
        3,
        "--library",
        library,
        "--output",
        "out",
        "--edit",
        "delete:1",
        says=("--edit changes pictures",),
    )


def test_options_as_arguments(weights: Path) -> None:
    photo("a.png")
    (row,) = predict(weights, None, Options(inputs=(Path("a.png"),), output=Path("out")))
    assert "a.png -> out/a-slots.png" in tell([row])
