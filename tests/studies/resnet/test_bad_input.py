"""What a user may do wrong with the residual networks: one line that names the fault and the fix, and nothing left."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.studies.resnet.common import BROKEN, ODD, TINY, class_folders, picture, zipped

BIRDS = {"crow": 6, "egret": 6}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ETUDE_MIRROR", raising=False)
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def birds(here: Path) -> Path:
    return class_folders(here / "birds", BIRDS)


FOLDER = ("--data.source", "folder", "--data.folder", "birds", "--model.num-classes", "2", "--batch.size", "4")


def run(*words: str) -> tuple[str, ...]:
    """A run of a few steps; later words win."""
    return ("run", "resnet", "smoke", "--model.norm", "bn", *TINY, *words)


def nothing_left() -> None:
    assert list(Path("runs").glob("*/*")) == []


# --- settings ---


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model.n", "0"), ("model.n must be at least 1, not 0",)),
        (("--model.n", "-3"), ("model.n must be at least 1",)),
        (("--model.num-classes", "1"), ("model.num_classes must be at least 2",)),
        (("--model.num-classes", "26"), ("up to 25 classes", "give a smaller --model.num-classes")),
        (("--model.norm", "bm"), ("no norm 'bm'; did you mean 'bn'?", "path/to/file.py:Name")),
        (("--model.norm", "mine.py:Norm"), ("no file mine.py",)),
        (("--model.shortcut", "identity"), ("--model.shortcut", "pad", "projection")),
        (("--batch.size", "241"), ("a batch of 241 is larger than the 240 training pictures", "smaller --batch.size")),
        (("--batch.size", "1"), ("bn over a batch of 1 has nothing to average over", "raise --batch.size")),
        (("--batch.size", "1", "--model.norm", "bn-torch"), ("bn-torch over a batch of 1", "--model.norm gn")),
        (("--batch.size", "1", "--model.norm", "bin"), ("bin over a batch of 1", "--model.norm gn")),
        (("--batch.size", "6", "--batch.parts", "6"), ("bn over a batch of 1",)),
        (("--batch.size", "6", "--batch.parts", "4"), ("batch.size must be a multiple of batch.parts (4), not 6",)),
        (("--model.norm", "in", "--data.size", "4"), ("data.size must be at least 5, not 4",)),
        (("--cam-classes", "disc", "circle"), ("--cam-classes", "no class 'circle'", "known: cross, disc, square")),
        (("--cam-classes", "sqare"), ("no class 'sqare'; did you mean 'square'?",)),
        (("--data.source", "folder"), ("data.folder must be a path (--data.folder)",)),
        (("--data.source", "cifar10", "--data.size", "24"), ("data.size must be 32, 16 or 8 for CIFAR-10, not 24",)),
        (("--data.source", "cifar-10"), ("--data.source", "cifar10")),
        (("--data.source", "cifar10-jpeg", "--data.size", "32"), ("cifar10_jpeg.npz", "ETUDE_MIRROR")),
        (("--optim.lr", "fast"), ("--optim.lr", "fast")),
        (("--optim.schedule", "steps"), ("--optim.schedule", "step")),
        (("--augment.pads", "4"), ("no flag --augment.pads; did you mean '--augment.pad'?",)),
    ],
)
def test_settings_that_make_no_sense(words: tuple[str, ...], says: tuple[str, ...], here: Path, refused: Any) -> None:
    refused(*run(*words), says=says)
    nothing_left()


def test_a_batch_of_one_where_the_norm_allows_it(here: Path, etude: Any) -> None:
    assert etude(*run("--batch.size", "1", "--model.norm", "ln")).status == 0


# --- folders ---


def no_image(birds: Path) -> tuple[str, ...]:
    shutil.rmtree(birds / "crow")
    (birds / "crow").mkdir()
    (birds / "crow" / "notes.txt").write_text("x")
    return "crow holds no image", "put images into it, or remove it"


def one_class(birds: Path) -> tuple[str, ...]:
    shutil.rmtree(birds / "crow")
    return "has only one class, 'egret'", "one sub-folder a class"


def flat(birds: Path) -> tuple[str, ...]:
    for folder in list(birds.iterdir()):
        shutil.rmtree(folder)
    picture(1).save(birds / "1.png")
    return "holds images but no sub-folders", "one sub-folder a class"


def too_few(birds: Path) -> tuple[str, ...]:
    for path in sorted((birds / "crow").iterdir())[1:]:
        path.unlink()
    return ("crow",)


def missing(birds: Path) -> tuple[str, ...]:
    shutil.rmtree(birds)
    return "birds does not exist here", "--data.folder"


def a_file(birds: Path) -> tuple[str, ...]:
    shutil.rmtree(birds)
    birds.write_text("x")
    return "is neither a folder nor a zip file", "give a folder"


def classes_that_differ(birds: Path) -> tuple[str, ...]:
    for split, name in (("train", "crow"), ("val", "kite")):
        class_folders(birds, {name: 2, "egret": 2}, split)
    for name in BIRDS:
        shutil.rmtree(birds / name)
    return "train has no class 'kite', which another split has", "give every split the same class folders"


@pytest.mark.parametrize("spoil", [no_image, one_class, flat, too_few, missing, a_file, classes_that_differ])
def test_folders_that_are_no_data_set(spoil: Callable[[Path], tuple[str, ...]], birds: Path, refused: Any) -> None:
    refused(*run(*FOLDER), says=spoil(birds))
    nothing_left()


def test_another_r_than_the_folder_has(birds: Path, refused: Any) -> None:
    refused(
        *run(*FOLDER, "--model.num-classes", "25"),
        says=("birds, 16 px: 2 classes, and the network has 25", "give --model.num-classes 2"),
    )
    nothing_left()


def test_a_batch_larger_than_the_folder(birds: Path, refused: Any) -> None:
    refused(
        *run(*FOLDER, "--batch.size", "32"),
        says=("a batch of 32 is larger than the 8 training pictures", "--batch.size"),
    )
    nothing_left()


def test_a_class_that_the_folder_has_not(birds: Path, refused: Any) -> None:
    refused(*run(*FOLDER, "--cam-classes", "crows"), says=("no class 'crows'; did you mean 'crow'?", "--cam-classes"))
    nothing_left()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_stop_the_run_before_it_begins(name: str, birds: Path, refused: Any) -> None:
    make, fault = BROKEN[name]
    make(birds / "egret" / name)
    refused(*run(*FOLDER), says=("1 of 13 images cannot be read", f"egret/{name}", fault, "--data.skip-corrupt"))
    nothing_left()


@pytest.mark.filterwarnings("default")
def test_broken_pictures_are_left_out_on_request(birds: Path, etude: Any) -> None:
    for name, (make, _) in BROKEN.items():
        make(birds / "egret" / name)
    answer = etude(*run(*FOLDER, "--data.skip-corrupt", "--name", "some"))
    assert answer.status == 0
    warning = answer.err.splitlines()[0]
    assert warning.startswith("etude: warning: birds: 6 of 18 images cannot be read")
    assert all(f"egret/{name}" in warning for name in BROKEN)
    (line,) = {row["protocol"] for row in json.loads(Path("runs/resnet/some/summary.json").read_text())["results"]}
    assert line.endswith("up to 2 epochs of 8, chosen on validation")


def test_pictures_of_every_kind_are_trained_on(birds: Path, etude: Any) -> None:
    """Grey, CMYK, turned by the camera, animated, see-through, of one pixel."""
    for name, make in ODD.items():
        make(birds / "crow" / name)
    (birds / "crow" / "phone.heic").touch()
    shutil.copy(birds / "crow" / "00.png", birds / "egret" / "again.png")
    answer = etude(*run(*FOLDER, "--name", "odd"))
    assert answer.status == 0, answer.err
    assert "Traceback" not in answer.err
    summary = json.loads(Path("runs/resnet/odd/summary.json").read_text())
    assert summary["extra"] == {"classes": ["crow", "egret"], "pictures": "birds, 16 px"}
    assert summary["overrides"]["data.folder"] == "birds"
    # What was read is told, and kept.
    found = summary["inventory"]
    assert sum(found["kept"].values()) == 13 + len(ODD)
    assert found["left_out"] == {"of a format that is not read": {"count": 1, "such_as": ["crow/phone.heic"]}}
    assert found["equal"]["in two classes"]["count"] == 2
    assert found["lines"]
    assert answer.err.splitlines()[: len(found["lines"])] == found["lines"]
    checked = etude("check", *run(*FOLDER, "--training-only")[1:])
    assert re.search(r"left out +1 of a format that is not read \(crow/phone\.heic\)", checked.out)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", ("split.json is no split file", "--data.split-file")),
        ("[]", ("split.json is no split file", "delete it to draw a new split")),
        ('{"format": 9, "splits": {}}', ("another format",)),
        ('{"format": 1, "splits": {"train": [], "val": []}}', ("split.json", "--data.split-file")),
        ('{"format": 1, "splits": {"train": ["x.png"], "val": [], "test": []}}', ("split.json", "x.png")),
    ],
)
def test_split_files_that_do_not_serve(body: str, says: tuple[str, ...], birds: Path, refused: Any) -> None:
    Path("split.json").write_text(body)
    refused(*run(*FOLDER, "--data.split-file", "split.json"), says=says)
    nothing_left()
    assert Path("split.json").read_text() == body


def test_a_split_file_that_is_a_folder(birds: Path, refused: Any) -> None:
    refused(*run(*FOLDER, "--data.split-file", "birds"), says=("birds",))
    nothing_left()


def test_a_zip_file_cut_short(birds: Path, refused: Any) -> None:
    whole = zipped(birds, Path("whole.zip")).read_bytes()
    Path("cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(*run(*FOLDER, "--data.folder", "cut.zip"), says=("cut.zip", "copy or pack it again"))
    nothing_left()


# --- checkpoints ---


@pytest.fixture
def edited(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the finished run with settings of its config.yaml changed by hand."""

    def edit(**changes: object) -> Path:
        path = shutil.copytree(finished, tmp_path / "edited")
        text = (path / "config.yaml").read_text()
        for name, value in changes.items():
            text, count = re.subn(rf"(?m)^(    {name}:) .*$", rf"\1 {value}", text)
            assert count == 1, name
        (path / "config.yaml").write_text(text)
        return path

    return edit


@pytest.mark.parametrize("verb", ["eval", "export"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm": "gn", "groups": 4}, ("was trained with model.",)),
        ({"norm": "ln"}, ("was trained with model.norm bn, and config.yaml says ln", "put that back")),
        ({"norm": "bn-torch"}, ("was trained with model.norm bn, and config.yaml says bn-torch",)),
        ({"n": 2}, ("was trained with model.n 1, and config.yaml says 2",)),
        ({"num_classes": 5}, ("was trained with model.num_classes 4, and config.yaml says 5",)),
        ({"shortcut": "projection"}, ("was trained with model.shortcut pad",)),
        ({"n": 0}, ("config.yaml", "model.n must be at least 1, not 0")),
    ],
)
def test_a_checkpoint_of_another_network(
    verb: str, changes: dict[str, Any], says: tuple[str, ...], edited: Any, refused: Any, here: Path
) -> None:
    refused(verb, edited(**changes), says=says)
    assert list(here.iterdir()) == []


def test_a_run_that_was_begun_with_another_network(edited: Any, refused: Any) -> None:
    path = edited(norm="bn-torch")
    (path / "summary.json").unlink()
    before = {file: file.read_bytes() for file in (path / "checkpoints").rglob("*") if file.is_file()}
    refused("resume", path, says=("model.norm is bn there and bn-torch here",))
    assert {file: file.read_bytes() for file in (path / "checkpoints").rglob("*") if file.is_file()} == before
    assert not (path / "summary.json").exists()


def test_prediction_goes_by_the_weights_not_by_the_edited_file(
    edited: Any, finished: Path, etude: Any, tmp_path: Path
) -> None:
    picture(3).save(tmp_path / "x.png")
    path = edited(norm="ln")
    one, two = (etude("predict", run_, tmp_path / "x.png", "--json") for run_ in (path, finished))
    assert one.status == two.status == 0
    assert one.out == two.out


def test_eval_compares_each_split_with_its_own(finished: Path, etude: Any) -> None:
    answer = etude("eval", finished, "--json")
    rows = json.loads(answer.out)
    assert len(rows) == 15
    assert all(row["value"] == row["in_summary"] for row in rows)
    assert len({row["value"] for row in rows if row["metric"] == "loss"}) == 3, "else any split would do"
