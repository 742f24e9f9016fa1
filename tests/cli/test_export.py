"""`etude export`: files, folders and ONNX graphs, the latter run on what a user has."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from tests.cli.faults import fault

from etude import registry
from etude.cli import main
from etude.core.checkpoint import read_weights
from etude.core.config import override
from etude.core.errors import UserError
from etude.core.study import Study
from etude.data import cifar10, omniglot
from etude.data.clevrtex import read_picture
from etude.data.images import read_image
from etude.nn.graph import write_graph
from etude.studies.dcgan.classifier import classify
from etude.studies.protonet.predict import prepare
from etude.studies.slotdiffusion.vae import VAE


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def opened(path: Path | str) -> Callable[..., list[np.ndarray]]:
    """What an ONNX file answers with, by its runtime alone."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *given: session.run(None, dict(zip(names, given, strict=True)))


# --- files ---


def test_a_file(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ("--loop.max-steps", "2", "--loop.eval-every", "2", "--evaluation.val-episodes", "5")
    tiny = (*tiny, "--evaluation.episodes", "5", "--evaluation.pool-episodes", "5")
    assert main(["run", "protonet", "smoke", "--name", "tiny", *tiny]) == 0
    assert main(["export", "runs/protonet/tiny"]) == 0
    half, header = read_weights(Path("protonet-tiny.safetensors"))
    assert {value.dtype for value in half.values() if value.is_floating_point()} == {torch.float16}
    assert "protonet-tiny.safetensors exists" in fault(capsys, "export", "runs/protonet/tiny")
    assert main(["export", "runs/protonet/tiny", "--fp32", "--force"]) == 0
    whole, _ = read_weights(Path("protonet-tiny.safetensors"))
    assert all(torch.equal(whole[name].to(half[name].dtype), half[name]) for name in whole)
    # Out of a file, the same again.
    assert main(["export", "protonet-tiny.safetensors", "--out", "again.safetensors"]) == 0
    again, about = read_weights(Path("again.safetensors"))
    assert about == header
    assert all(torch.equal(again[name], half[name]) for name in half)
    # As a folder; nothing is written over.
    assert main(["export", "runs/protonet/tiny", "--out", "hub"]) == 0
    assert "hub is not empty" in fault(capsys, "export", "protonet", "--out", "hub")
    assert main(["export", "protonet", "--out", "hub", "--force"]) == 0
    Path("file").touch()
    assert "file is a file" in fault(capsys, "export", "protonet", "--out", "file")
    assert "is stored in half precision" in fault(capsys, "export", "protonet", "--out", "new", "--fp32")
    monkeypatch.setattr(Study, "shipped_weights", None)
    assert "no weights come with 'darts'" in fault(capsys, "export", "darts", "--out", "new")
    # A checkpoint's own file holds what only training needs, and its run says which network is meant.
    assert main(["export", "hub", "--out", "from-a-folder"]) == 0
    assert not Path("new").exists()


def test_what_has_no_graph(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fault(capsys, "export", "text2math", "--onnx")
    assert "the study 'text2math' has no ONNX form (a beam search" in line
    assert "has no ONNX form" in fault(capsys, "export", "text2math", "--onnx", "--out", "hub")
    assert list(here.iterdir()) == []


def test_without_the_extra(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "`uv sync --extra onnx`" in fault(capsys, "export", "protonet", "--onnx", "--out", "hub")
    assert list(here.iterdir()) == []


# --- graphs of the shipped weights ---


def test_resnet_on_photographs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The graph takes pixels and says what `etude predict` says."""
    assert main(["export", "resnet", "--out", "hub", "--onnx"]) == 0
    said = capsys.readouterr().err
    assert "hub/model.onnx" in said
    assert "largest difference from PyTorch" in said
    files = sorted(cifar10.sample_folder().glob("*.png"))
    pixels_NHWC = np.stack([read_image(path, "RGB") for path in files])
    _, probabilities_NR = opened("hub/model.onnx")(pixels_NHWC)
    answers = predicted(capsys, "hub", *map(str, files))
    assert [answer["index"] for answer in answers] == probabilities_NR.argmax(1).tolist()
    wanted = np.array([list(answer["probabilities"].values()) for answer in answers])
    assert np.abs(probabilities_NR - wanted).max() < 1e-5
    # The names of the classes and what a picture is stand in the file.
    told = {item.key: item.value for item in onnx.load("hub/model.onnx").metadata_props}
    assert json.loads(told["extra"])["classes"][0] == "airplane"
    assert told["about pictures"].startswith("uint8 [N, H, W, 3], RGB, trained on 32 x 32")
    card = Path("hub/README.md").read_text()
    assert "## model.onnx" in card
    assert "- onnx" in card


def test_protonet_on_drawings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "protonet", "--out", "few.onnx"]) == 0
    assert sorted(path.name for path in here.iterdir()) == ["few-classify.onnx", "few.onnx"]
    folder = omniglot.sample_folder()
    answers = predicted(capsys, "protonet", "--support", str(folder / "support"), str(folder / "queries"))

    def drawing(path: Path) -> np.ndarray:
        return prepare(read_image(path, "L"), 28, "auto")

    kinds = sorted((folder / "support").iterdir())
    support_NKHW = np.stack([np.stack([drawing(path) for path in sorted(kind.iterdir())]) for kind in kinds])
    queries_QHW = np.stack([drawing(path) for path in sorted((folder / "queries").iterdir())])
    distances_QN, probabilities_QN = opened("few-classify.onnx")(support_NKHW, queries_QHW)
    wanted = np.array([list(answer["distances"].values()) for answer in answers])
    assert np.abs(distances_QN - wanted).max() < 1e-3
    assert [kinds[best].name for best in probabilities_QN.argmax(1)] == [answer["label"] for answer in answers]
    (z_ND,) = opened("few.onnx")(queries_QHW)
    assert z_ND.shape == (len(queries_QHW), 64)


def test_dcgan_draws_what_it_is_told(here: Path) -> None:
    assert main(["export", "dcgan", "--out", "digits.onnx"]) == 0
    noise_NZ = np.random.default_rng(0).standard_normal((20, 100), dtype=np.float32)
    pictures_NHW, values_NHW = opened("digits.onnx")(noise_NZ, np.full(20, 4))
    assert pictures_NHW.dtype == np.uint8
    assert (classify(torch.from_numpy(pictures_NHW)) == 4).sum() >= 19
    assert np.abs((values_NHW + 1) * 127.5 - pictures_NHW).max() <= 0.51


def test_pix2pix_as_the_command_line(here: Path) -> None:
    """A picture of the network's size, at the scale of training, is one tile."""
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save("aerial.png")
    assert main(["predict", "pix2pix", "aerial.png", "--output", "maps", "--scale", "1"]) == 0
    assert main(["export", "pix2pix", "--out", "maps.onnx"]) == 0
    made_NHWC, _ = opened("maps.onnx")(pixels_HWC[None])
    wanted_HWC = read_image(Path("maps/aerial.png"), "RGB")
    assert np.abs(made_NHWC[0].astype(int) - wanted_HWC).max() <= 1


def test_slots_of_a_scene(here: Path, root: Path) -> None:
    scene = root / "src/etude/data/samples/clevrtex/0/CLEVRTEX_render_000003.png"
    assert main(["predict", "slots", str(scene), "--output", "found"]) == 0
    assert main(["export", "slots", "--out", "scene.onnx"]) == 0
    slots_NKS, masks_NKHW, made_NHWC = opened("scene.onnx")(read_picture(scene, 64, 10**8)[None])
    mask_HW = np.array(Image.open(f"found/{scene.stem}-mask.png"))
    # Where two slots share a pixel evenly, rounding chooses.
    assert (masks_NKHW[0].argmax(0) == mask_HW).mean() > 0.999
    again_NHWC, _, _ = opened("scene-decoder.onnx")(slots_NKS[:, ::-1].copy())
    assert np.abs(again_NHWC.astype(int) - made_NHWC).max() <= 1


# --- graphs of small networks ---


def small(name: str, preset: str, **settings: Any) -> tuple[Any, dict[str, Any], Any]:
    """A study's export module, fresh networks and their configuration."""
    study = registry.load(name)
    config = override(study.preset(preset).build(), {key.replace("__", "."): v for key, v in settings.items()})
    module = study.module("export")
    torch.manual_seed(0)
    networks = module.networks(config, {})
    for network in networks.values():
        network.eval()
    return module, networks, config


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_autoencoder_of_slotdiffusion(kind: str) -> None:
    settings = {"vae__width": 8, "vae__blocks": 1, "vae__multipliers": [1, 2], "vae__kind": kind, "vae__codes": 64}
    module, networks, config = small("slotdiffusion", "vae-smoke", **settings)
    vae = networks["vae"]
    assert isinstance(vae, VAE)
    encoder, decoder = module.graphs(config, networks)
    # The halves are those that `VAE` has.
    with torch.no_grad():
        pictures_NHWC = encoder.inputs["pictures"]
        (z,) = encoder.module(pictures_NHWC)
        torch.testing.assert_close(z, vae.encode(pictures_NHWC.permute(0, 3, 1, 2) / 127.5 - 1))
        _, values = decoder.module(z)
        torch.testing.assert_close(values, vae.decode(z))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_all_of_slotdiffusion(kind: str, tmp_path: Path) -> None:
    module, networks, config = small("slotdiffusion", "smoke", vae__kind=kind)
    for graph in module.graphs(config, networks):
        write_graph(tmp_path / f"{graph.name}.onnx", graph, {})
    # Of any number and size.
    shape = onnx.load(tmp_path / "decoder.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_param for dim in shape.dim] == ["N", "", "h", "w"]


def test_the_slots_of_slotdiffusion() -> None:
    module, networks, config = small("slotdiffusion", "smoke")
    graphs = {graph.name: graph for graph in module.graphs(config, networks)}
    assert graphs.keys() == {"encoder", "decoder", "slots"}
    with torch.no_grad():
        slots, masks = graphs["slots"].module(*graphs["slots"].inputs.values())
    torch.testing.assert_close(masks.sum(1), torch.ones_like(masks[:, 0]))
    assert slots.shape[1:] == (config.model.num_slots, config.model.slot_size)


def test_a_network_of_found_cells(tmp_path: Path) -> None:
    module, networks, config = small("darts", "retrain-smoke")
    (graph,) = module.graphs(config, networks)
    assert write_graph(tmp_path / "cells.onnx", graph, {}) < 1e-4
    module, networks, config = small("darts", "smoke")
    with pytest.raises(UserError, match="a search's network is thrown away"):
        module.graphs(config, networks)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "in", "bin", "ln", "gn", "none", "bn-torch"])
def test_every_norm(norm: str, tmp_path: Path) -> None:
    module, networks, config = small("resnet", "smoke", model__norm=norm, model__groups=4)
    (graph,) = module.graphs(config, networks)
    write_graph(tmp_path / "norm.onnx", graph, {})
