"""Networks as ONNX graphs, each held against PyTorch before its file is left.

The extra ``onnx`` brings the exporter and the runtime; nothing here is needed for anything else.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.core.errors import UserError, extra
from etude.core.files import write_atomic
from etude.nn.pixels import StandardizedColours

OPSET = 20
"""The operators of every graph are those of ONNX 1.15, of the end of 2023."""
TOLERANCE = 1e-4
"""The largest difference from PyTorch that is let through, as a share of an output's largest value or of 1."""
LEVELS = 1
"""The tolerance of bytes: rounding may fall to either side."""


@dataclass(frozen=True)
class Graph:
    """A network with what prepares its inputs and finishes its outputs."""

    module: nn.Module
    """The network in evaluation mode; takes the inputs in their order and returns a tuple of the outputs. ``len`` of a
    tensor would make its first dimension a constant."""
    inputs: Mapping[str, Tensor]
    """Examples to check with."""
    outputs: tuple[str, ...]
    about: Mapping[str, str]
    """Descriptions of each input and output: shape, type, range, preparation."""
    free: Mapping[str, Mapping[int, Any]]
    """The dimensions of inputs that may have any size: a name, or a `torch.export.Dim` with its limits."""
    others: Sequence[tuple[Tensor, ...]] = ()
    """Further inputs to check with, of other sizes."""
    name: str = "model"
    """The stem of its file's name."""
    tolerance: float = TOLERANCE
    """See `TOLERANCE`."""


class Classifies(nn.Module):
    """Pictures as bytes ``[N, H, W, 3]`` to logits and probabilities ``[N, R]``."""

    def __init__(self, model: StandardizedColours) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        logits_NR = self.model(self.model.prepare(pictures_NHWC))[0]
        return logits_NR, logits_NR.softmax(-1)


def classifier(model: StandardizedColours, size: int, *, free_size: bool) -> Graph:
    """The graph of a network that takes pictures of ``size`` pixels a side, or of any ``free_size``, to classes."""
    draw = torch.Generator().manual_seed(0)

    def pictures(count: int, height: int, width: int) -> Tensor:
        return torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8)

    others = [(pictures(1, size, size),), (pictures(5, size, size),)]
    if free_size:
        others.append((pictures(2, size + 5, 2 * size),))
    shape = f"[N, H, W, 3], RGB, trained on {size} x {size}" if free_size else f"[N, {size}, {size}, 3], RGB"
    about = {
        "pictures": f"uint8 {shape}; each colour is standardised in the graph",
        "logits": "float32 [N, R]",
        "probabilities": "float32 [N, R], in the order of the extra's `classes`",
    }
    free = {0: "N"} | ({1: "H", 2: "W"} if free_size else {})
    # Of one size for height and width the exporter would take them for one number.
    example = pictures(3, size, size + 2 if free_size else size)
    outputs = ("logits", "probabilities")
    return Graph(Classifies(model), {"pictures": example}, outputs, about, {"pictures": free}, others)


def require_onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime; a `UserError` that names the extra where one is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter's
    except ImportError as error:
        raise UserError(f"ONNX needs more packages ({error}): {extra('onnx')}") from error
    return onnx, onnxruntime


def write_graph(path: Path, graph: Graph, about: Mapping[str, str]) -> float:
    """Write an ONNX file once it agrees with PyTorch on all of the graph's inputs; ``about`` is in its metadata, too.

    Returns:
        The largest absolute difference of a floating-point output.

    Raises:
        UserError: the extra is missing, the graph has no ONNX form, or the two differ by more than the
            graph's tolerance.
    """
    onnx, _ = require_onnx()
    program = _program(graph)
    about = {**about, "opset": str(OPSET), **{f"about {name}": text for name, text in graph.about.items()}}
    program.model.metadata_props.update(about)
    # Where in the source a node comes from: paths of this machine.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.doc_string = graph.about[value.name]
    found: list[float] = []

    def write(temporary: Path) -> None:
        program.save(str(temporary), external_data=False)
        onnx.checker.check_model(str(temporary))
        found.append(difference(temporary, graph, path))

    write_atomic(path, write)
    return found[0]


def _program(graph: Graph) -> Any:
    shapes = tuple(dict(graph.free.get(name, {})) for name in graph.inputs)
    # The exporter talks of its steps, and of what it does not need.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                graph.module, tuple(graph.inputs.values()), input_names=list(graph.inputs),
                output_names=list(graph.outputs), opset_version=OPSET, dynamo=True, dynamic_shapes=shapes,
                verbose=False,
            )  # fmt: skip
    # A user's own part may hold anything.
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"the {graph.name} has no ONNX form ({type(error).__name__}: {reason})") from error
    finally:
        logging.disable(logging.NOTSET)


@torch.inference_mode()
def difference(file: Path, graph: Graph, path: Path) -> float:
    """The largest difference of a floating-point output of a graph's ``file`` from PyTorch's.

    Raises:
        UserError: an output differs by too much; the error calls the file ``path``.
    """
    _, onnxruntime = require_onnx()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for given in (tuple(graph.inputs.values()), *graph.others):
        wanted = graph.module(*(x.clone() for x in given))
        feed = {name: x.numpy() for name, x in zip(graph.inputs, given, strict=True)}
        made = session.run(list(graph.outputs), feed)
        for name, ours, theirs in zip(graph.outputs, wanted, made, strict=True):
            exact = ours.double().numpy()
            if exact.shape != theirs.shape:
                raise UserError(f"{path} is not left: its {name} is {theirs.shape}, PyTorch's {exact.shape}")
            apart = float(np.abs(exact - theirs.astype(np.float64)).max(initial=0.0))
            largest_value = max(1.0, float(np.abs(exact).max(initial=0.0)))
            allowed = LEVELS if ours.dtype == torch.uint8 else graph.tolerance * largest_value
            # So written that NaN is refused.
            if not apart <= allowed:
                raise UserError(
                    f"{path} is not left: its {name} differs from PyTorch's by {apart:.3g}, more than {allowed:.3g}"
                )
            largest = max(largest, apart) if ours.is_floating_point() else largest
    return largest
