"""A pickle at every place that etude reads is never executed: it is refused in one line, or passed over.

The pickles would make a folder. Beside that, the interpreter tells of every name that a pickle looks up.
"""

import contextlib
import functools
import gzip
import http.server
import io
import json
import os
import pickle
import shutil
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fuzz.targets import TARGETS, command, place

from etude import registry
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.core.files import sha256, write_json
from etude.core.run_folder import RunFolder, RunRecord
from etude.data import NAMES as DATASETS
from etude.data import load as dataset
from etude.data import omniglot

pytest.importorskip("gradio", reason="the page is an extra: `uv sync --extra web`")

_looked_up: list[str] = []
_listening = False


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if _listening and event == "pickle.find_class":
        _looked_up.append(".".join(map(str, args[:2])))


sys.addaudithook(_listen)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles in all the clothes that files of machine learning have."""
    trap = Trap(marker)
    made = {f"protocol {number}": pickle.dumps(trap, number) for number in (0, 2, 4)}
    made |= {"gzip": gzip.compress(made["protocol 4"]), "zlib": zlib.compress(made["protocol 4"])}
    for name, save in {
        "npy": lambda to: np.save(to, np.array([trap], object), allow_pickle=True),
        "npz": lambda to: np.savez(to, words=np.array([trap], object), vectors=np.array([trap], object)),
        "torch": lambda to: torch.save({"state_dict": trap}, to),
        "old torch": lambda to: torch.save(trap, to, _use_new_zipfile_serialization=False),
    }.items():
        to = io.BytesIO()
        save(to)
        made[name] = to.getvalue()
    return made


KINDS = tuple(payloads(Path("marker")))


@contextlib.contextmanager
def nothing_runs(marker: Path, told: list[str] | None = None) -> Iterator[None]:
    """Fails where a pickle looked up a name or ran; with a list, writes down the names instead."""
    global _listening  # noqa: PLW0603 - a hook cannot be taken out
    _looked_up.clear()
    _listening = True
    try:
        yield
    finally:
        _listening = False
    if told is not None:
        told += _looked_up
        return
    assert _looked_up == []
    assert not marker.exists()


def _unpickled(kind: str, body: bytes) -> None:
    if kind in ("npy", "npz"):
        found = np.load(io.BytesIO(body), allow_pickle=True)
        _ = found["words"] if kind == "npz" else found
    elif "torch" in kind:
        torch.load(io.BytesIO(body), weights_only=False)
    else:
        pickle.loads({"gzip": gzip.decompress, "zlib": zlib.decompress}.get(kind, bytes)(body))


def test_the_trap_springs(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    marker = tmp_path / "marker"
    for kind, body in payloads(marker).items():
        with nothing_runs(marker, told := []):
            _unpickled(kind, body)
        assert any(name.endswith(".mkdir") for name in told)
        assert marker.exists()
        marker.rmdir()


# A metrics.jsonl, a note of the cache or an environment that cannot be read is said, and the rest is used.
PASSED_OVER = {
    "run metrics.jsonl", "run environment.json", "metrics of a resume", "cache npy", "cache note", "page request",
    "pairs listing", "run checkpoints/step-00000300/manifest.json", "run summary.json",
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_in_place_of_any_file_that_is_read(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.seeds()
    bodies = payloads(tmp_path / "marker")
    # A run is read by many commands.
    kinds = ("protocol 0", "protocol 4", "torch") if name.startswith("run ") else KINDS
    for number, kind in enumerate(kinds):
        body = bodies[kind]
        path = tmp_path / f"{number}{target.suffix}"
        path.write_bytes(body)
        refusal = None
        with nothing_runs(tmp_path / "marker"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                target.read(path)
            except UserError as error:
                refusal = str(error)
        # The ASCII one may be a word problem.
        if name not in PASSED_OVER and not (name.startswith("predict text2math") and kind == "protocol 0"):
            assert refusal is not None, kind
            assert len(refusal.splitlines()) == 1, kind


# --- what is no single file ---


def _refused(*words: object) -> str:
    try:
        command(*words)
    except UserError as error:
        return str(error)
    raise AssertionError(f"{words} was taken")


@pytest.mark.parametrize("kind", KINDS)
def test_within_an_archive_and_a_picture_folder(kind: str, tmp_path: Path) -> None:
    body = payloads(tmp_path / "marker")[kind]
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        for name in ("cat/1.png", "cat/2.jpg", "cat/3.gif", "dog/1.tif", "dog/2.webp", "dog/3.bmp"):
            archive.writestr(name, body)
    with zipfile.ZipFile(tmp_path / "birds.zip") as archive:
        archive.extractall(tmp_path / "birds")
    with nothing_runs(tmp_path / "marker"):
        for path in (tmp_path / "birds.zip", tmp_path / "birds"):
            said = _refused("check", "resnet", "smoke", "--data.source", "folder", "--data.folder", path)
            assert "cannot be read" in said
        assert "known format" in _refused("predict", "resnet", tmp_path / "birds" / "cat")


@pytest.mark.parametrize("kind", KINDS)
def test_as_weights_in_all_their_places(kind: str, tmp_path: Path) -> None:
    body = payloads(tmp_path / "marker")[kind]
    exported, vae = tmp_path / "exported", tmp_path / "vae"
    exported.mkdir()
    vae.mkdir()
    (exported / "config.json").write_text('{"format": 1, "library_name": "etude", "study": "protonet"}')
    (exported / "model.safetensors").write_bytes(body)
    (vae / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(body)
    for ending in ("pth", "ckpt", "safetensors", "pt"):
        (tmp_path / f"x.{ending}").write_bytes(body)
    with nothing_runs(tmp_path / "marker"):
        _refused("load", exported, "--runs", tmp_path / "runs")
        _refused("predict", exported, "x.png")
        for ending in ("pth", "ckpt", "safetensors", "pt"):
            _refused("predict", tmp_path / f"x.{ending}")
            _refused("check", "slotdiffusion", "smoke", "--vae.weights", tmp_path / f"x.{ending}")
        _refused("check", "slotdiffusion", "smoke", "--vae.weights", vae)
        _refused("run", "darts", "retrain-smoke", "--genotype", tmp_path / "x.pt", "--runs", tmp_path / "runs")


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_folder_without_weights_of_ours(kind: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text("{}")
    (tmp_path / "given" / "pytorch_model.bin").write_bytes(payloads(tmp_path / "marker")[kind])
    with nothing_runs(tmp_path / "marker"):
        assert "may run code" in _refused("load", tmp_path / "given", "--runs", tmp_path / "runs")


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_resume_file_of_a_run(kind: str, tmp_path: Path) -> None:
    """Under digests that are right, as whoever made the file would write them."""
    config = to_dict(registry.load("protonet").preset("smoke").build())
    run = RunFolder.create(tmp_path / "one", RunRecord("protonet", "smoke", "smoke", {}, config))
    folder = run.checkpoints().path(2)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"not looked at before")
    (folder / "resume.pt").write_bytes(payloads(tmp_path / "marker")[kind])
    digests = {name: sha256(folder / name) for name in ("weights.safetensors", "resume.pt")}
    write_json(folder / "manifest.json", {"format": 1, "step": 2, "sha256": digests})
    with nothing_runs(tmp_path / "marker"):
        said = _refused("resume", run.path)
    assert "resume.pt" in said
    assert "could run code" in said or "truncated or broken" in said


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_inception_network(kind: str, tmp_path: Path) -> None:
    from etude.metrics.fid import _network

    path = tmp_path / "inception.pt"
    path.write_bytes(payloads(tmp_path / "marker")[kind])
    with nothing_runs(tmp_path / "marker"), pytest.raises(UserError, match="is not the Inception network"):
        _network(path)


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_bert(kind: str, tmp_path: Path) -> None:
    from etude.studies.text2math.bert import BertEncoder, Pieces
    from etude.studies.text2math.study import ModelConfig

    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9,
              "intermediate_size": 8}  # fmt: skip
    for name in ("pytorch_model.bin", "model.safetensors", "config.json", "tokenizer.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
        (folder / name).write_bytes(payloads(tmp_path / "marker")[kind])
        with nothing_runs(tmp_path / "marker"):
            for read in (
                lambda folder=folder: BertEncoder(ModelConfig(encoder="bert", bert=str(folder), tuned=True)),
                lambda folder=folder: Pieces(str(folder)).read("a"),
            ):
                with contextlib.suppress(UserError):
                    read()
        if name != "tokenizer.json":
            with pytest.raises(UserError, match="no BERT"):
                BertEncoder(ModelConfig(encoder="bert", bert=str(folder), tuned=True))


def test_a_bert_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """And nobody is asked on the terminal whether it may run."""
    from etude.studies.text2math.bert import BertEncoder
    from etude.studies.text2math.study import ModelConfig

    (tmp_path / "bert").mkdir()
    code = f"open({str(tmp_path / 'marker')!r}, 'w')\n"
    for name in ("modeling.py", "configuration.py"):
        (tmp_path / "bert" / name).write_text(code)
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no BERT"):
        BertEncoder(ModelConfig(encoder="bert", bert=str(tmp_path / "bert"), tuned=True))
    assert not (tmp_path / "marker").exists()


# --- data sets ---


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, and no way to the homes of the data sets."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class _Same(http.server.BaseHTTPRequestHandler):
    """Answers every request with one body."""

    def __init__(self, body: bytes, *args: Any) -> None:
        self.body = body
        super().__init__(*args)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


def _read(name: str) -> None:
    """Read a data set as the studies do."""
    from etude.data import cifar10, clevrtex, mathqa, mnist, pairs

    readers: dict[str, Callable[[], object]] = {
        "cifar10": lambda: cifar10.load("test"),
        "clevrtex": lambda: clevrtex.released(8, most=10),
        "mathqa": lambda: (mathqa.official_rows("dev"), mathqa.glove(["a"], 50)),
        "mnist": lambda: mnist.load("test"),
        "omniglot": lambda: omniglot.load("test"),
        "pairs": lambda: pairs.archive("maps", 8, 8),
        "inception": lambda: command("data", "get", "inception"),
    }
    readers[name]()


@pytest.mark.parametrize("where", ["mirror", "cache", "url"])
@pytest.mark.parametrize("name", DATASETS)
def test_in_place_of_a_data_set(name: str, where: str, unreachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, body in payloads(unreachable / "marker").items():
        if where == "url":
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Same, body))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("ETUDE_MIRROR", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
        else:
            folder = unreachable / where
            for source in dataset(name).sources:
                (folder / source.dataset / source.filename).parent.mkdir(parents=True, exist_ok=True)
                (folder / source.dataset / source.filename).write_bytes(body)
            monkeypatch.setenv("ETUDE_MIRROR", str(unreachable / "mirror")) if where == "mirror" else None
        with nothing_runs(unreachable / "marker"), pytest.raises(UserError) as caught:
            _read(name)
        assert len(str(caught.value).splitlines()) == 1, kind
        shutil.rmtree(unreachable / "cache", ignore_errors=True)
        if where == "url":
            server.shutdown()
            server.server_close()


def test_every_data_set_is_among_them() -> None:
    assert set(DATASETS) == {"cifar10", "clevrtex", "inception", "mathqa", "mnist", "omniglot", "pairs"}
    assert place().is_dir()
    assert set(registry.NAMES) <= {name.removeprefix("weights ") for name in TARGETS}
