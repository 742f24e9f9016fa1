"""Graphs for ONNX: what is written agrees with PyTorch, and what does not is not left."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.nn.graph import OPSET, Graph, write_graph


class Doubles(nn.Module):
    """Twice a number, and what a graph is told to be off by."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off

    def forward(self, x_N: Tensor) -> tuple[Tensor, Tensor]:
        y_N = 2 * x_N + (self.off if torch.compiler.is_exporting() else 0.0)
        return y_N, y_N.clamp(0, 255).to(torch.uint8)


def graph(module: nn.Module, **settings: Any) -> Graph:
    free: Mapping[str, Mapping[int, Any]] = {"x": {0: "N"}}
    about = {"x": "float32 [N]", "y": "float32 [N], doubled", "bytes": "uint8 [N]"}
    x_N = torch.tensor([1.0, 2.0, 3.0])
    return Graph(module.eval(), {"x": x_N}, ("y", "bytes"), about, free, [(x_N[:1],), (x_N.repeat(5),)], **settings)


def test_a_graph_says_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "doubles.onnx"
    assert write_graph(path, graph(Doubles()), {"study": "none", "config": json.dumps({"a": 1})}) == 0
    model = onnx.load(path)
    assert {item.domain: item.version for item in model.opset_import}[""] == OPSET
    told = {item.key: item.value for item in model.metadata_props}
    assert told["study"] == "none"
    assert told["opset"] == str(OPSET)
    assert told["about x"] == "float32 [N]"
    assert [value.doc_string for value in model.graph.output] == ["float32 [N], doubled", "uint8 [N]"]
    # Any number of them, and no path of the machine that wrote it.
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": torch.arange(9.0).numpy()})
    assert y.tolist() == [2.0 * number for number in range(9)]


@pytest.mark.parametrize(("off", "says"), [(1e-2, "its y differs from PyTorch's by 0.01"), (float("nan"), "its y")])
def test_what_differs_is_not_left(tmp_path: Path, off: float, says: str) -> None:
    path = tmp_path / "doubles.onnx"
    with pytest.raises(UserError, match=says) as caught:
        write_graph(path, graph(Doubles(off)), {})
    assert f"{path} is not left" in str(caught.value)
    assert not list(tmp_path.iterdir())
    # What stood there stays.
    path.write_text("before")
    with pytest.raises(UserError, match="is not left"):
        write_graph(path, graph(Doubles(off)), {})
    assert path.read_text() == "before"


def test_a_tolerance_of_its_own(tmp_path: Path) -> None:
    found = write_graph(tmp_path / "doubles.onnx", graph(Doubles(1e-2), tolerance=1e-2), {})
    assert found == pytest.approx(1e-2, rel=1e-3)


class Asks(nn.Module):
    """Looks at a value, which a graph cannot."""

    def forward(self, x_N: Tensor) -> tuple[Tensor, Tensor]:
        y_N = x_N + 1 if x_N.sum().item() > 0 else x_N
        return y_N, y_N


def test_what_has_no_form_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model has no ONNX form") as caught:
        write_graph(tmp_path / "x.onnx", graph(Asks()), {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="uv sync --extra onnx"):
        write_graph(tmp_path / "x.onnx", graph(Doubles()), {})
