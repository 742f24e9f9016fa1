"""Every reader and every input of a prediction, each with files that it takes.

A target is asked to read one file; what belongs beside it is made once. `TARGETS` has them by name.
"""

import contextlib
import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tests.fuzz import mutations
from tests.fuzz.mutations import Pick
from tests.report import folders as runs_by_hand

from etude import cli, registry, studies
from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.config import read_yaml, to_dict
from etude.core.errors import Refused, UserError
from etude.core.files import sha256, write_json
from etude.data import cache as decoded_cache
from etude.data import cifar10, clevrtex, fetch, folders, mathqa, mnist, omniglot, pairs
from etude.data.images import read_image


@dataclass(frozen=True)
class Target:
    """Something that reads a file."""

    name: str
    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    """Files that it takes."""
    mutate: Callable[[Pick, bytes], bytes]
    read: Callable[[Path], object]
    """Reads a file, or raises `UserError`."""


TARGETS: dict[str, Target] = {}


def target(name: str, suffix: str, seeds: Callable[[], Sequence[bytes]], mutate: Callable[[Pick, bytes], bytes]) -> Any:
    """Makes a target of a reading function."""

    def made(read: Callable[[Path], object]) -> Callable[[Path], object]:
        TARGETS[name] = Target(name, suffix, cache(seeds), mutate, read)
        return read

    return made


@cache
def place() -> Path:
    """A folder for what targets need beside the file; it stays until the process ends."""
    kept = tempfile.TemporaryDirectory(prefix="etude-fuzz-", ignore_cleanup_errors=True)
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[Any] = []


@contextlib.contextmanager
def fresh() -> Any:
    """A folder for one reading, with a cache of its own."""
    with (
        tempfile.TemporaryDirectory(dir=place()) as folder,
        mock.patch.dict("os.environ", {"ETUDE_CACHE": f"{folder}/cache"}),
    ):
        yield Path(folder)


def command(*words: object) -> None:
    """The command line; a refusal by it must be one line and status 2, and is raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in words])
    told = err.getvalue()
    if status == 0:
        return
    assert status == 2, (status, told)
    last = told.splitlines()[-1]
    assert last.startswith("etude: "), told
    assert all(line.startswith("etude: ") for line in told.splitlines()), told
    raise UserError(last)


# --- pictures ---


def _picture(mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def _saved(kind: str, mode: str = "RGB", **more: Any) -> bytes:
    to = io.BytesIO()
    picture = Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20)) if mode == "I;16" else _picture(mode)
    picture.save(to, kind, **more)
    return to.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


_PNGS = ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")


def pngs() -> list[bytes]:
    return [_saved("PNG", mode) for mode in _PNGS] + [_saved("PNG", exif=_exif())]


def few() -> list[bytes]:
    return [_saved("PNG", mode) for mode in ("RGB", "P")]


def jpegs() -> list[bytes]:
    return [_saved("JPEG", mode, **more) for mode, more in
            (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"exif": _exif(), "progressive": True}))]  # fmt: skip


def others() -> list[bytes]:
    frames = [_picture("P") for _ in range(3)]
    made = [_saved("GIF", "P", save_all=True, append_images=frames), _saved("BMP"), _saved("BMP", "P"), _saved("PPM")]
    made += [_saved("TIFF", "RGB", compression=kind) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")]
    return [*made, _saved("TIFF", "I;16"), _saved("WEBP"), _saved("WEBP", "RGBA", lossless=True)]


def _read_picture(path: Path) -> None:
    for more in ({"mode": "RGB"}, {"mode": "L"}, {"mode": "RGB", "min_side": 8}):
        read_image(path, **more)


target("picture png", ".png", pngs, mutations.png_garbled)(_read_picture)
target("picture jpeg", ".jpg", jpegs, mutations.garbled)(_read_picture)
target("picture others", ".tif", others, mutations.garbled)(_read_picture)


@target("picture mask", "_flat.png", lambda: [_saved("PNG", mode) for mode in ("L", "P", "1")], mutations.png_garbled)
def _mask(path: Path) -> None:
    clevrtex._read_mask(path, path, None)


@target("picture of a report", ".png", pngs, mutations.png_garbled)
def _of_a_report(path: Path) -> None:
    from etude.draw.pictures import read_picture

    read_picture(path, "resnet", 900)


# --- inputs of predictions ---


def _weights(study: str) -> Path:
    found = registry.load(study).shipped_weights
    assert found is not None
    return found


@target("predict resnet", ".png", few, mutations.png_garbled)
def _predict_resnet(path: Path) -> None:
    from etude.studies.resnet.predict import Options, predict

    predict(_weights("resnet"), None, Options(inputs=(path,)))


@cache
def _cells() -> Path:
    """Weights of a small network of cells; none come with the package."""
    from etude.studies.darts.retrain_task import build_network

    config = registry.load("darts").preset("retrain-smoke").build()
    file = place() / "cells.safetensors"
    header = WeightsHeader("darts", to_dict(config), {})
    save_weights(file, {"model": build_network(config)}, header)  # pyright: ignore[reportArgumentType]
    return file


@target("predict darts", ".png", few, mutations.png_garbled)
def _predict_darts(path: Path) -> None:
    from etude.studies.darts.predict import Options, predict

    predict(_cells(), None, Options(inputs=(path,)))


@target("predict protonet", ".png", few, mutations.png_garbled)
def _predict_protonet(path: Path) -> None:
    from etude.studies.protonet.predict import Options, predict

    predict(_weights("protonet"), None, Options(queries=(path,), support=omniglot.sample_folder() / "support"))


@cache
def _translator() -> Any:
    from etude.studies.pix2pix.predict import load

    return load(_weights("pix2pix"))


@target("predict pix2pix", ".png", few, mutations.png_garbled)
def _predict_pix2pix(path: Path) -> None:
    from etude.studies.pix2pix.predict import translated

    # The smaller one as it is, so that it is padded; the network's own size takes a second.
    translated(read_image(path, "RGB"), lambda tiles: tiles, 256, 32, scale=_translator().scale)


@cache
def _slots() -> Any:
    from etude.studies.slots.predict import Painter, read_model

    return Painter(read_model(_weights("slots"))[0], 0)


@target("predict slots", ".png", few, mutations.png_garbled)
def _predict_slots(path: Path) -> None:
    painter = _slots()
    painter.find([clevrtex.read_picture(path, painter.config.size, 64_000_000)])


@target("predict slotdiffusion", ".png", few, mutations.png_garbled)
def _predict_slotdiffusion(path: Path) -> None:
    # To draw takes long, and sees no file.
    clevrtex.read_picture(path, 64, 64_000_000)


_PROBLEMS = [
    {"Problem": "what is 20 % of 50 ?", "linear_formula": "divide(n0,const_100)|multiply(n1,#0)|", "answer": 10.0,
     "predicted": "multiply(n0,n1)|", "predicted_answer": 3.5},
    {"Problem": "a train of 120 m runs at 54 km / hr", "linear_formula": "add(n0,n1)|", "answer": 174,
     "predicted": "", "predicted_answer": None},
]  # fmt: skip


@cache
def _solver() -> Any:
    from etude.studies.text2math.predict import Options, Solver

    return Solver(_weights("text2math"), Options(beam=1))


def _solve(given: str) -> None:
    from etude.studies.text2math.predict import objects_in, tell

    rows = objects_in(given)[:2]
    if rows:
        tell([answer for answer in _solver().solve(rows) if not isinstance(answer, Refused)])


target("predict text2math json", ".json", lambda: [json.dumps(_PROBLEMS).encode()], mutations.json_garbled)(
    lambda path: _solve(str(path))
)
target(
    "predict text2math txt",
    ".txt",
    lambda: [b"what is 20 % of 50 ?\nof 3 / 4 and 1,000.5 how many ?"],
    mutations.text_garbled,
)(lambda path: _solve(str(path)))


@target(
    "predict text2math words",
    ".words",
    lambda: [b"what is 20 % of 50 ?", "three\u00bd of \u4e09 10".encode()],
    mutations.text_garbled,
)
def _words(path: Path) -> None:
    # As bytes of another encoding become on the command line.
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    _solve(text)


@target("eval text2math", ".json", lambda: [json.dumps(_PROBLEMS).encode()], mutations.json_garbled)
def _scored(path: Path) -> None:
    from etude.studies.text2math.evaluate import Options, evaluate

    evaluate(None, Options(problems=path))


def _drawn() -> list[bytes]:
    from etude.studies.protonet.page import examples

    return [examples(0).encode()]


@target("drawings of the page", ".json", _drawn, mutations.json_garbled)
def _drawings(path: Path) -> None:
    from etude.studies.protonet.page import drawings

    drawings(path.read_text(encoding="utf-8", errors="replace"))


@target(
    "cell",
    ".json",
    lambda: [(Path(studies.__path__[0]) / "darts/genotypes/darts-v2.json").read_bytes()],
    mutations.json_garbled,
)
def _cell(path: Path) -> None:
    from etude.studies.darts.genotype import read

    found = read(path)
    if len(found.normal) <= 8 and len(found.reduction) <= 8:
        command("show", "darts", path)


# --- weights ---


def _slot_library() -> Path:
    return Path(studies.__path__[0]) / "slotdiffusion/library/laptop.safetensors"


def _using(study: str) -> Callable[[Path], object]:
    """What each study does with a weights file of a stranger's."""

    def read(path: Path) -> None:
        with fresh() as folder:
            picture = folder / "picture.png"
            _picture(size=(64, 64)).save(picture)
            words: dict[str, Sequence[object]] = {
                "resnet": (picture,),
                "darts": (picture,),
                "protonet": ("--support", omniglot.sample_folder() / "support", picture),
                "pix2pix": (picture, "--output", folder / "out"),
                "slots": (picture, "--output", folder / "out"),
                "slotdiffusion": (
                    "--compose",
                    "1",
                    "--steps",
                    "1",
                    "--output",
                    folder / "out",
                    "--library",
                    _slot_library(),
                ),
                "dcgan": ("--count", "1", "--output", folder / "out.png"),
                "text2math": ("what is 20 % of 50 ?", "--beam", "1"),
            }
            command("predict", path, *words[study])

    return read


for _study in registry.NAMES:
    _seed = _cells if _study == "darts" else (lambda study=_study: _weights(study))
    target(
        f"weights {_study}", ".safetensors", lambda seed=_seed: [seed().read_bytes()], mutations.safetensors_garbled
    )(_using(_study))


@target(
    "slot library",
    ".safetensors",
    lambda: [(Path(studies.__path__[0]) / "slots/library/laptop.safetensors").read_bytes()],
    mutations.safetensors_garbled,
)
def _library(path: Path) -> None:
    with fresh() as folder:
        command("predict", "slots", "--compose", "1", "--library", path, "--output", folder / "out")


@cache
def _prototypes() -> bytes:
    file = place() / "prototypes.safetensors"
    command("predict", "protonet", "--support", omniglot.sample_folder() / "support", "--save-prototypes", file)
    return file.read_bytes()


@target("prototypes", ".safetensors", lambda: [_prototypes()], mutations.safetensors_garbled)
def _by_prototypes(path: Path) -> None:
    with fresh() as folder:
        _picture().save(folder / "picture.png")
        command("predict", "protonet", "--prototypes", path, folder / "picture.png")


@cache
def _exported() -> Path:
    folder = place() / "exported"
    command("export", "protonet", "--out", folder)
    return folder


@target("exported config", ".json", lambda: [(_exported() / "config.json").read_bytes()], mutations.json_garbled)
def _load(path: Path) -> None:
    with fresh() as folder:
        shutil.copytree(_exported(), folder / "given")
        shutil.copy(path, folder / "given" / "config.json")
        command("load", folder / "given", "--runs", folder / "runs")


def _small_vae() -> Any:
    from etude.studies.slotdiffusion.vae import VAE

    with torch.random.fork_rng():
        return VAE("kl", width=8, multipliers=(1, 2), latent_channels=2, num_blocks=1)


def _vaes() -> list[bytes]:
    to = io.BytesIO()
    torch.save(_small_vae().state_dict(), to)
    return [to.getvalue()]


@target("autoencoder", ".pth", _vaes, mutations.zip_garbled)
def _vae(path: Path) -> None:
    from etude.studies.slotdiffusion.vae_files import load_vae

    load_vae(path)


def _resumes() -> list[bytes]:
    to = io.BytesIO()
    torch.save({"optimizers": {"model": {"state": {0: {"step": torch.ones(3)}}}}, "loop": {"step": 3}}, to)
    return [to.getvalue()]


@target("resume file", ".pt", _resumes, mutations.zip_garbled)
def _resume(path: Path) -> None:
    from etude.core.checkpoint import read_resume

    read_resume(path)


# --- run folders ---


@cache
def _run() -> Path:
    """A finished run of protonet, with weights."""
    path = place() / "runs" / "protonet" / "one"
    runs_by_hand.finish(path)
    tensors = path / "checkpoints" / "step-00000300"
    tensors.mkdir(parents=True)
    shutil.copy(_weights("protonet"), tensors / "weights.safetensors")
    _, header = read_weights(_weights("protonet"))
    body = read_yaml(path / "config.yaml") | {"config": header.config}
    from etude.core.config import to_yaml

    (path / "config.yaml").write_text(to_yaml(body))
    (path / "checkpoints" / "best.json").write_text('{"step": 300, "metric": "val/accuracy", "value": 99.0}')
    (tensors / "resume.pt").write_bytes(_resumes()[0])
    digests = {name: sha256(tensors / name) for name in ("weights.safetensors", "resume.pt")}
    write_json(tensors / "manifest.json", {"format": 1, "step": 300, "sha256": digests})
    return path


def _with(path: Path, at: str) -> Callable[..., Any]:
    """A copy of the run with another file in it."""
    folder = path.parent / f"{path.stem}-runs" / "protonet" / "one"
    shutil.copytree(_run(), folder)
    shutil.copy(path, folder / at)
    return lambda: shutil.rmtree(folder.parents[1])


def _in_a_run(at: str) -> Callable[[Path], object]:
    """All that reads a run's folder: the report, a prediction, the page."""

    def read(path: Path) -> None:
        done = _with(path, at)
        run = path.parent / f"{path.stem}-runs" / "protonet" / "one"
        try:
            faults: list[UserError] = []
            for words in (
                ("report", run, "--out", path.parent / "report.html"),
                ("report", run, "--out", path.parent / "report.md"),
                ("compare", "protonet", "--runs", run.parents[1]),
                ("predict", run, "--support", omniglot.sample_folder() / "support", _glyph()),
                ("export", run / "checkpoints" / "step-00000300" / "weights.safetensors", "--out",
                 path.parent / "out.safetensors", "--force"),
            ):  # fmt: skip
                try:
                    command(*words)
                except UserError as error:
                    faults.append(error)
            _on_the_page(run.parents[1])
            if faults:
                raise faults[0]
        finally:
            done()

    return read


@cache
def _glyph() -> Path:
    return min((omniglot.sample_folder() / "queries").glob("*.png"))


def _on_the_page(runs: Path) -> None:
    from etude.serve import runs as page
    from etude.serve.kit.site import Site

    found = page.find(runs)
    page.overview(found)
    for run in found:
        page.panels(run)
        page.numbers_of(run)
        page.pictures_of(run, runs)
        for name in page.metric_names([run]):
            page.beside([run], name)
    site = Site(runs)
    for choice in site.choices("protonet"):
        with contextlib.suppress(UserError):
            site.weights("protonet", choice)


for _at, _mutate in {
    "config.yaml": mutations.yaml_garbled,
    "metrics.jsonl": mutations.lines_garbled,
    "summary.json": mutations.json_garbled,
    "environment.json": mutations.json_garbled,
    "checkpoints/best.json": mutations.json_garbled,
    "checkpoints/step-00000300/manifest.json": mutations.json_garbled,
}.items():
    target(f"run {_at}", ".file", lambda at=_at: [(_run() / at).read_bytes()], _mutate)(_in_a_run(_at))


@target(
    "reference",
    ".toml",
    lambda: [(Path(studies.__path__[0]) / "dcgan/reference.toml").read_bytes()],
    mutations.text_garbled,
)
def _reference(path: Path) -> None:
    from etude.report.reference import compare, read_reference

    compare("dcgan", read_reference(path), {"one": runs_by_hand.summary(runs_by_hand.row())})


@target("metrics of a resume", ".jsonl", lambda: [(_run() / "metrics.jsonl").read_bytes()], mutations.lines_garbled)
def _rewound(path: Path) -> None:
    from etude.core.run_folder import RunFolder

    with fresh() as folder:
        shutil.copy(path, folder / "metrics.jsonl")
        RunFolder(folder).rewind_metrics(200)


# --- data sets ---


def _packed(files: dict[str, bytes]) -> bytes:
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return to.getvalue()


def _rolled(files: dict[str, bytes]) -> bytes:
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w") as archive:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return gzip.compress(to.getvalue(), 1)


@target(
    "folder zip",
    ".zip",
    lambda: [_packed({f"birds/{kind}/{n}.png": pngs()[n] for kind in "ab" for n in (0, 1, 2)})],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.png_garbled),
)
def _birds(path: Path) -> None:
    with fresh():
        folders.split(folders.read(path, size=8), None, val_share=0.3, test_share=0.3, seed=0)


@cache
def _birds_read() -> Any:
    (place() / "birds.zip").write_bytes(TARGETS["folder zip"].seeds()[0])
    with fresh():
        read = folders.read(place() / "birds.zip", size=8)
        split = place() / "split.json"
        folders.split(read, split, val_share=0.3, test_share=0.3, seed=0)
    return read, split.read_bytes()


@target("split file", ".json", lambda: [_birds_read()[1]], mutations.json_garbled)
def _split(path: Path) -> None:
    folders.split(_birds_read()[0], path, val_share=0.3, test_share=0.3, seed=0)


@target(
    "pairs zip",
    ".zip",
    lambda: [_packed({f"p/{n}.png": pngs()[1] for n in range(5)})],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.png_garbled),
)
def _pairs(path: Path) -> None:
    with fresh():
        pairs.folder(str(path), "", 8, 8, val_share=0.2, test_share=0.2, seed=0)
        pairs.grey(str(path), 8, 8, val_share=0.2, test_share=0.2, seed=0)


@target(
    "pairs tar",
    ".tar.gz",
    lambda: [_rolled({f"maps/{part}/{n}.png": pngs()[1] for part in ("train", "val") for n in (0, 1)})],
    mutations.gzip_garbled,
)
def _pairs_tar(path: Path) -> None:
    with fresh(), mock.patch.object(pairs, "fetch", return_value=path):
        pairs.archive("maps", 8, 8)


@target(
    "pairs listing",
    ".json",
    lambda: [b'["train/0.png", "train/1.png", "val/0.png", "val/1.png"]'],
    mutations.json_garbled,
)
def _listing(path: Path) -> None:
    with fresh() as folder, mock.patch.object(pairs, "fetch", return_value=_seeded("pairs tar")):
        source = pairs.ARCHIVES["maps"]
        listing = folder / "cache" / "pairs" / f"{source.filename}-{decoded_cache.digest(source.sha256)[:16]}.json"
        listing.parent.mkdir(parents=True)
        shutil.copy(path, listing)
        pairs.archive("maps", 8, 8)


@cache
def _seeded(name: str) -> Path:
    path = place() / f"{name.replace(' ', '-')}{TARGETS[name].suffix}"
    path.write_bytes(TARGETS[name].seeds()[0])
    return path


def _scenes() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(10):
        files[f"s/CLEVRTEX_full_{number:06d}.png"] = _saved("PNG")
        files[f"s/CLEVRTEX_full_{number:06d}_flat.png"] = _saved("PNG", "L")
    return files


@target(
    "scenes zip",
    ".zip",
    lambda: [_packed(_scenes())],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.png_garbled),
)
def _clevrtex(path: Path) -> None:
    with fresh():
        clevrtex.scenes(str(path), 8)


@target("scenes tar", ".tar.gz", lambda: [_rolled(_scenes())], mutations.gzip_garbled)
def _clevrtex_tar(path: Path) -> None:
    with (
        fresh(), mock.patch.object(clevrtex, "fetch", return_value=path), mock.patch.object(clevrtex, "NUM_SCENES", 10),
        mock.patch.object(clevrtex, "ARCHIVES", clevrtex.ARCHIVES[:1]),
    ):  # fmt: skip
        clevrtex.released(8)


@target("scenes meta", ".json", lambda: [b'{"count": 0, "seed": 0, "textures": []}'], mutations.json_garbled)
def _meta(path: Path) -> None:
    with fresh() as folder:
        shutil.copy(path, folder / "meta.json")
        clevrtex._refuse_half_rendered(folder)
        with contextlib.suppress(UserError):
            command("data", "render", "clevrtex", "--count", "10", "--out", folder)


_COUNTS = {"train": 5, "test": 2}


def _jpeg_copies() -> bytes:
    made: dict[str, Any] = {"classes": np.array(cifar10.CLASSES)}
    for split, count in _COUNTS.items():
        to = io.BytesIO()
        Image.new("RGB", (32, 32)).save(to, "JPEG")
        made[f"{split}_jpeg"] = np.frombuffer(to.getvalue() * count, np.uint8)
        made[f"{split}_offsets"] = np.arange(count + 1) * len(to.getvalue())
        made[f"{split}_labels"] = np.arange(count, dtype=np.uint8)
    to = io.BytesIO()
    np.savez(to, **made)
    return to.getvalue()


@target("cifar npz", ".npz", lambda: [_jpeg_copies()], mutations.npz_garbled)
def _cifar_npz(path: Path) -> None:
    with (
        fresh(), mock.patch.object(cifar10, "NUM_IMAGES", _COUNTS),
        mock.patch.object(cifar10, "_jpeg_path", return_value=path)
    ):  # fmt: skip
        cifar10.load_jpeg("train")


@target(
    "cifar tar",
    ".tar.gz",
    lambda: [
        _rolled(
            {
                **{f"cifar-10-batches-bin/data_batch_{n}.bin": bytes(3073) for n in range(1, 6)},
                "cifar-10-batches-bin/test_batch.bin": bytes(2 * 3073),
            }
        )
    ],
    mutations.gzip_garbled,
)
def _cifar_tar(path: Path) -> None:
    with (
        fresh(),
        mock.patch.object(cifar10, "NUM_IMAGES", _COUNTS),
        mock.patch.object(cifar10, "fetch", return_value=path),
    ):
        cifar10.load("train")


@target(
    "mnist idx",
    ".gz",
    lambda: [gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(1568))],
    mutations.gzip_garbled,
)
def _mnist(path: Path) -> None:
    with mock.patch.object(mnist, "fetch", return_value=path):
        mnist._read(mnist.FILES["train"][0], (2, 28, 28))


@target(
    "omniglot zip",
    ".zip",
    lambda: [_packed({f"images/Latin/character01/{n:02d}.png": pngs()[4] for n in range(3)})],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.png_garbled),
)
def _omniglot(path: Path) -> None:
    with mock.patch.object(omniglot, "fetch", return_value=path):
        omniglot._decode(np.zeros((1, 20, 8, 8), np.uint8), ("Latin/character01",), 8, "area")


@target(
    "mathqa zip",
    ".zip",
    lambda: [_packed({"train.json": json.dumps(_OFFICIAL).encode()})],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.json_garbled),
)
def _mathqa(path: Path) -> None:
    from etude.studies.text2math.course_split import admitted

    with mock.patch.object(mathqa, "fetch", return_value=path), mock.patch.object(mathqa, "NUM_ROWS", {"train": 2}):
        admitted(mathqa.official_rows("train"))


_OFFICIAL = [
    {"Problem": "what is 20 % of 50 ?", "options": "a ) 10 , b ) 2", "correct": "a",
     "linear_formula": "divide(n0,const_100)|multiply(n1,#0)|"}
] * 2  # fmt: skip


@target(
    "glove zip",
    ".zip",
    lambda: [_packed({"glove.6B.50d.txt": b"a " + b"0.1 " * 49 + b"1\nof " + b"2 " * 50 + b"\n"})],
    lambda pick, body: mutations.zip_garbled(pick, body, mutations.text_garbled),
)
def _glove(path: Path) -> None:
    with mock.patch.object(mathqa, "fetch", return_value=path):
        mathqa._read(np.zeros((3, 51), np.float32), ["a", "of", "x"], 50)


def _glove_cut() -> bytes:
    to = io.BytesIO()
    np.savez(to, words=np.array(["a", "of"]), vectors=np.ones((2, 50), np.float16))
    return to.getvalue()


@target("glove npz", ".npz", lambda: [_glove_cut()], mutations.npz_garbled)
def _glove_npz(path: Path) -> None:
    with (
        mock.patch.object(mathqa, "fetch", return_value=path),
        mock.patch.object(mathqa, "_at_hand", return_value=True),
    ):
        mathqa.glove(["a", "of"], 50)


def _npy() -> bytes:
    to = io.BytesIO()
    np.save(to, np.arange(12, dtype=np.uint8).reshape(3, 4))
    return to.getvalue()


@target("cache npy", ".npy", lambda: [_npy()], mutations.npy_garbled)
def _npy_cache(path: Path) -> None:
    decoded_cache._mapped(path, (3, 4), np.dtype(np.uint8))


@target(
    "cache note", ".json", lambda: [b'{"path": "P", "size": 3, "mtime_ns": 5, "sha256": "ab"}'], mutations.json_garbled
)
def _note(path: Path) -> None:
    with fresh() as folder:
        source = fetch.Source("a", "b", "http://127.0.0.1:9/b", "0" * 64)
        file = folder / "cache" / "a" / "b"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"abc")
        note = fetch._note_place(file)
        note.parent.mkdir(parents=True)
        note.write_bytes(path.read_bytes().replace(b'"P"', json.dumps(str(file)).encode()))
        assert fetch.status(source) in ("verified", "present", "altered")
        fetch._state(file, source, "if changed")


@target(
    "page request",
    ".json",
    lambda: [b'{"data": ["a", {"path": "/uploads/x.png", "meta": {}}], "fn_index": 3}'],
    mutations.json_garbled,
)
def _request(path: Path) -> None:
    from etude.serve.app import strange_file

    strange_file(path.read_bytes(), "/uploads")
