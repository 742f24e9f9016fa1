"""``etude export RUN``: write trained weights for use elsewhere.

RUN is a run's folder, a weights file, or a study's name for the weights that come with the package. ``--out
x.safetensors`` writes one small file with what `etude predict` needs; ``--out FOLDER`` a folder in the layout of the
Hugging Face hub (model.safetensors, config.json, README.md); ``--onnx``, or ``--out x.onnx``, graphs for other
runtimes, each held against PyTorch before it is left (extra `onnx`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from etude import __version__, registry
from etude.core.config import from_dict, to_dict
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.core.summary import chosen_weights
from etude.runs import hub
from etude.runs.training import say
from etude.runs.weights import find_weights, load_trained

if TYPE_CHECKING:
    from torch import nn

    from etude.nn.graph import Graph


@dataclass(frozen=True)
class Options:
    run: Annotated[str, tyro.conf.Positional]
    """A run's folder, a weights file, or a study's name."""
    out: Path | None = None
    """A .safetensors file, an .onnx file, or a folder; STUDY-RUN.safetensors here where none is named, with --onnx
    STUDY-RUN.onnx."""
    onnx: bool = False
    """Write ONNX too, into the folder or beside the file."""
    fp32: bool = False
    """Keep single precision; half precision otherwise. ONNX computes in single precision in any case."""
    force: bool = False
    """Write over files that are there."""


def main(options: Options) -> None:
    given, weights, name = _given(options)
    out = options.out or Path(f"{name}.{'onnx' if options.onnx else 'safetensors'}")
    if out.suffix not in (".safetensors", ".onnx"):
        _write_folder(out, given, weights, name, options)
        return
    graphs = _graphs(given) if options.onnx or out.suffix == ".onnx" else []
    targets = [
        out.with_suffix(".onnx") if graph.name == "model" else out.with_name(f"{out.stem}-{graph.name}.onnx")
        for graph in graphs
    ]
    # All before the first is written.
    for target in ([out] if out.suffix == ".safetensors" else []) + targets:
        if target.exists() and not options.force:
            raise UserError(f"{target} exists: choose another --out, or --force to write over it")
    if out.suffix == ".safetensors":
        _write_weights(out, given)
    for graph, target in zip(graphs, targets, strict=True):
        _write_graph(target, graph, given)


def _given(options: Options) -> tuple[hub.Exported, Path, str]:
    """The network that is exported, the file that it is from, and its name."""
    import torch

    from etude.core.checkpoint import WeightsHeader, read_weights, tensors_of

    run_folder = os.path.isdir(options.run) and not hub.is_folder(Path(options.run))
    if options.run not in registry.NAMES and run_folder:
        study, run, summary, task = load_trained(Path(options.run))
        tensors = tensors_of(task.exported, half=not options.fp32)
        header = WeightsHeader(study.name, hub.portable(run.record.config), summary["extra"])
        # Of the run itself: a setting may have lost its folder in the header.
        config, name = run.config(study.config), f"{study.name}-{run.path.resolve().name}"
        given = hub.Exported(study, header, config, run.record.preset, tensors, summary, summary["step"])
        return given, chosen_weights(run), name
    study, weights, _ = find_weights(options.run)
    tensors, header = read_weights(weights)
    if not header.config:
        raise UserError(f"{weights} holds no network: name a run, or weights that `etude export` wrote")
    halved = any(value.dtype == torch.float16 for value in tensors.values())
    if options.fp32 and halved:
        raise UserError(f"{weights} is stored in half precision: --fp32 wants the run that it is from")
    config = from_dict(study.config, header.config, origin=str(weights))
    if not options.fp32:
        tensors = {name: v.half() if v.is_floating_point() else v for name, v in tensors.items()}
    header = WeightsHeader(study.name, hub.portable(header.config), header.extra)
    found = hub.measured(study, config)
    preset, summary = found or (hub.nearest_preset(study, config), None)
    name = study.name if options.run in registry.NAMES else f"{study.name}-{Path(options.run).resolve().stem}"
    step = summary["step"] if summary else config.loop.max_steps
    given = hub.Exported(study, header, config, preset, tensors, summary, step)
    hub.require_fit(given, weights)
    return given, weights, name


def _write_weights(file: Path, given: hub.Exported) -> None:
    from etude.core.checkpoint import write_tensors

    write_tensors(file, given.tensors, given.header)
    say(f"{file}: {file.stat().st_size:,} bytes")


def _write_folder(folder: Path, given: hub.Exported, weights: Path, name: str, options: Options) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder, or a file that ends in .safetensors or .onnx")
    if folder.is_dir() and any(folder.iterdir()) and not options.force:
        raise UserError(f"{folder} is not empty: choose another --out, or --force to write over it")
    from etude.core.checkpoint import WeightsHeader

    # Before the first file is written.
    code = hub.own_files(to_dict(given.config))
    companions = {**hub.companions(given.study, weights), **{name: Path(path) for name, path in code.items()}}
    inside = hub.portable(hub.renamed(to_dict(given.config), {path: name for name, path in code.items()}))
    given = replace(given, header=WeightsHeader(given.study.name, inside, given.header.extra)) if code else given
    graphs = _graphs(given) if options.onnx else []
    _write_weights(folder / hub.WEIGHTS, given)
    for place, origin in companions.items():
        if origin is not None:
            write_atomic(folder / place, origin.read_bytes())
    hub.write_config(folder, given)
    written: list[dict[str, Any]] = []
    for graph in graphs:
        file = folder / f"{graph.name}.onnx"
        written.append({"file": file.name, "about": graph.about, **_write_graph(file, graph, given)})
    precision = "float32" if options.fp32 else "float16, and computed with in float32"
    hub.write_hub_card(folder, name, given, precision, written)
    say(f"{folder}: {', '.join([hub.WEIGHTS, hub.CONFIG, hub.CARD, *code])}")


# --- ONNX ---


def _graphs(given: hub.Exported) -> list["Graph"]:
    """The graphs of the weights as they are stored, so that both files answer alike."""
    import torch

    from etude.core.checkpoint import load_weights
    from etude.nn.graph import require_onnx

    study = given.study
    module = study.module("export")
    if not hasattr(module, "graphs"):
        raise UserError(f"the study '{study.name}' has no ONNX form ({module.NO_GRAPHS}): export it without --onnx")
    require_onnx()
    networks: Mapping[str, nn.Module] = module.networks(given.config, given.tensors)
    load_weights(networks, given.tensors, Path(study.name))
    for network in networks.values():
        network.eval()
    with torch.random.fork_rng(devices=()):
        return module.graphs(given.config, networks)


def _write_graph(file: Path, graph: "Graph", given: hub.Exported) -> dict[str, str]:
    from etude.nn.graph import OPSET, write_graph

    about = {"library": f"etude {__version__}", "study": given.study.name}
    about |= {"config": json.dumps(given.header.config), "extra": json.dumps(given.header.extra)}
    apart = write_graph(file, graph, about)
    say(
        f"{file}: {file.stat().st_size:,} bytes, opset {OPSET}, largest difference from PyTorch {apart:.1e} "
        f"(allowed {graph.tolerance:.0e} of an output's largest value or of 1)"
    )
    return {"opset": str(OPSET), "difference": f"{apart:.1e}"}
