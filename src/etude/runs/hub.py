"""A trained network as a folder in the layout of the Hugging Face hub, and such a folder read back.

``model.safetensors`` holds the tensors, ``config.json`` what they are, ``README.md`` the model card. A folder that is
read may come from anywhere: nothing in it is run, and nothing in it says where files are written.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from etude import __version__, registry
from etude.core.config import StudyConfig, differences, flat, from_dict, read_yaml, substance
from etude.core.errors import UserError, refuse_newer
from etude.core.files import read_json, write_atomic, write_json
from etude.core.study import Study
from etude.core.summary import committed

if TYPE_CHECKING:
    from torch import Tensor

    from etude.core.checkpoint import WeightsHeader

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_MOST_JSON = 1 << 24
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SMALL = 1 << 24
"""A network of fewer numbers is built whatever its file holds: its study says best what does not fit."""

_TEMPLATE = """\
# {{ study.title }}: {{ name }}

{{ study.title }}: {{ study.about }}. Trained with etude {{ version }}, preset `{{ preset }}`\
{% if summary %}, scale: **{{ summary.scale }}**{% endif %}.

```sh
etude predict FOLDER INPUT...    # this folder
etude load FOLDER                # makes a run of it, for `etude eval` and `etude serve`
```
{% if summary and summary.results %}
{% include "results" %} Repeat it: `{{ summary.command }}`
{% else %}
No number was measured with these weights.
{% endif %}
`config.json` has the whole configuration. Floating-point tensors are stored as {{ precision }}.
{% for graph in graphs %}
## {{ graph.file }}

ONNX, opset {{ graph.opset }}; held against PyTorch on the CPU when it was written: largest difference {{ graph.difference }}.

{% for name, text in graph.about.items() -%}
- `{{ name }}`: {{ text }}
{% endfor %}{% endfor %}"""  # noqa: E501


@dataclass(frozen=True)
class Exported:
    """Weights with what they are, from a run, a file or a folder."""

    study: Study
    header: "WeightsHeader"
    config: StudyConfig
    preset: str
    tensors: "Mapping[str, Tensor]"
    summary: Mapping[str, Any] | None = None
    """The summary of the run that they are from, where it is known."""
    step: int = 0
    """The step of the training that they are from."""


# --- writing ---


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the folders of this machine: of an absolute path the last name stays."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value

    return plain(dict(config))


def own_files(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths of the Python files that a configuration names, by the names that they get in an exported folder.

    Raises:
        UserError: two of them would get one name.
    """
    found: dict[str, str] = {}
    for value in flat(config).values():
        if isinstance(value, str) and ".py:" in value:
            path = value.rpartition(":")[0]
            if (other := found.setdefault(Path(path).name, path)) != path:
                raise UserError(f"{path} and {other} would get one name in the folder: rename one of them")
    return found


def renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A configuration whose Python files have other places, by their own."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(part) for name, part in value.items()}
        file, colon, part = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        return f"{names[file]}{colon}{part}" if file in names else value

    return moved(dict(config))


def nearest_preset(study: Study, config: StudyConfig) -> str:
    """The preset from which a configuration differs in the fewest settings."""
    return min(study.presets, key=lambda name: len(differences(study.presets[name].build(), config)))


def measured(study: Study, config: StudyConfig) -> tuple[str, Mapping[str, Any]] | None:
    """The preset and summary of the committed run with this configuration, if there is one."""
    for summary in sorted((committed() / study.name).glob("*/summary.json")):
        if not (summary.parent / "config.yaml").is_file():
            continue
        record = read_yaml(summary.parent / "config.yaml")
        try:
            other = from_dict(study.config, record["config"])
        except (UserError, KeyError):
            # A setting may have got another name since.
            continue
        # Where the data lay is no difference.
        apart = [name for name in substance(differences(other, config)) if not name.endswith("folder")]
        if config.seed == other.seed and not apart:
            return str(record["preset"]), read_json(summary)
    return None


def write_config(folder: Path, given: Exported) -> None:
    """Write ``config.json``."""
    summary = given.summary or {}
    about = {"library_name": "etude", "etude_version": __version__, "format": FORMAT, "study": given.study.name}
    about |= {"preset": given.preset, "step": given.step, "scale": summary.get("scale"), "config": given.header.config}
    write_json(folder / CONFIG, about | {"extra": given.header.extra, "results": summary.get("results", [])})


def write_hub_card(folder: Path, name: str, given: Exported, precision: str, graphs: list[dict[str, Any]]) -> None:
    """Write ``README.md``: the hub's front matter, how to use the folder, its numbers, its graphs.

    ``graphs`` has of each ONNX file ``file``, ``opset``, ``difference`` and ``about``.
    """
    # Its templates are slow to import, and only writing needs them.
    from etude.runs.card import filled

    front = yaml.safe_dump(_front_matter(name, given, onnx=bool(graphs)), sort_keys=False, allow_unicode=True)
    body = filled(
        _TEMPLATE, study=given.study, name=name, preset=given.preset, summary=given.summary, precision=precision,
        graphs=graphs, version=__version__,
    )  # fmt: skip
    write_atomic(folder / CARD, f"---\n{front}---\n\n{body.rstrip()}\n")


def _front_matter(name: str, given: Exported, *, onnx: bool) -> dict[str, Any]:
    """The fields that the hub reads of a card; see its documentation of model cards."""
    study = given.study
    # A card's results are read as evaluations, which the training split is none for.
    rows = [row for row in (given.summary or {}).get("results", []) if row["split"] != "train"]
    task = study.module("export").HUB_TASK
    source = str(getattr(getattr(given.config, "data", None), "source", ""))
    data = next((known for known in study.reads_data if source.startswith(known)), "")
    tags = [study.name, "pytorch", *(["onnx"] if onnx else [])]
    front: dict[str, Any] = {"license": "apache-2.0", "library_name": "etude", "pipeline_tag": task, "tags": tags}
    front |= {"datasets": [data]} if data else {}
    results = [
        {
            "task": {"type": task},
            "dataset": {"type": data or source, "name": source, "split": row["split"]},
            "metrics": [
                {
                    "type": row["metric"],
                    "name": f"{row['experiment']} {row['cell']} {row['metric']} {row['unit']}".strip(),
                    "value": round(row["value"], 4),
                    "verified": False,
                }
            ],
        }
        for row in rows
        if math.isfinite(row["value"])
    ]
    if results:
        front["metrics"] = list(dict.fromkeys(row["metric"] for row in rows))
        front["model-index"] = [{"name": name, "results": results}]
    return front


def companions(study: Study, weights: Path) -> Mapping[str, Path | None]:
    """The files that a study's weights need beside them: places in a folder, and where they lie now."""
    module = study.module("export")
    return module.companions(weights) if hasattr(module, "companions") else {}


# --- reading ---


def is_folder(path: Path) -> bool:
    """True if a path is a folder that `etude export` wrote, or is meant to be one; a run's is not."""
    there = {name: os.path.isfile(path / name) for name in (WEIGHTS, CONFIG, "config.yaml")}
    return (there[WEIGHTS] or there[CONFIG]) and not there["config.yaml"]


def read_folder(path: Path, *, trust_code: bool = False) -> Exported:
    """An exported folder, its configuration checked against the study's dataclass.

    With ``trust_code`` its configuration may name Python files, which are run when its networks are built.

    Raises:
        UserError: in one line: a missing, broken or foreign file, a study or setting that there is not, code.
    """
    from etude.core.checkpoint import read_weights

    if not (path / WEIGHTS).is_file():
        pickles = [entry.name for entry in sorted(path.iterdir()) if entry.suffix in _PICKLES]
        why = f" ({pickles[0]} may run code when it is read: etude reads safetensors only)" if pickles else ""
        raise UserError(f"{path} has no {WEIGHTS}{why}: `etude export RUN --out FOLDER` writes one")
    size = (path / CONFIG).stat().st_size if (path / CONFIG).is_file() else 0
    if size > _MOST_JSON:
        raise UserError(f"{path / CONFIG} is {size:,} bytes, more than a configuration has: copy it again")
    about = read_json(path / CONFIG)
    if not isinstance(about, dict) or not isinstance(about.get("format"), int) or about.get("library_name") != "etude":
        raise UserError(f"{path / CONFIG} was not written by etude: `etude export RUN --out FOLDER` writes one")
    refuse_newer(path, about["format"], FORMAT)
    step = about.get("step", 0)
    study = registry.load(f"{about.get('study')!s:.60}")
    tensors, header = read_weights(path / WEIGHTS, study=study.name)
    for name in ("config", "extra"):
        if about.get(name) != getattr(header, name):
            raise UserError(f"{path / CONFIG} and {WEIGHTS} have another `{name}`: export it again, or copy it again")
    preset = f"{about.get('preset')!s:.60}"
    study.preset(preset)
    if not isinstance(step, int) or not 0 <= step < 10**12:
        raise UserError(f"{path / CONFIG}: step must be a whole number from 0, not {step!r:.40}")
    code = _code(header.config)
    if code and not trust_code:
        raise UserError(
            f"{path} names code of its own ({code}), which is run when its network is built: "
            f"`etude load {path} --trust-code`, if you know that file"
        )
    beside = {name: str(path / name) for name in own_files(header.config) if (path / name).is_file()}
    config = from_dict(study.config, renamed(header.config, beside), origin=str(path / CONFIG))
    return Exported(study, header, config, preset, tensors, step=step)


def _code(config: Mapping[str, Any]) -> str:
    """The first setting that names a Python file, with its value."""
    return next((f"{name} {value}" for name, value in flat(config).items() if ".py:" in str(value)), "")


def require_fit(given: Exported, origin: Path) -> None:
    """Refuse tensors of other names or shapes than the configuration's networks have."""
    wanted = _wanted(given, origin)
    if wanted is None:
        return
    for name, value in wanted.items():
        if name not in given.tensors:
            raise UserError(f"{origin} lacks the tensor {name}: export it again")
        if given.tensors[name].shape != value.shape:
            shapes = f"{list(given.tensors[name].shape)}, and its configuration has {list(value.shape)}"
            raise UserError(f"{origin}: the tensor {name} is {shapes}: export it again")
    stranger = next((name for name in given.tensors if name not in wanted), None)
    if stranger is not None:
        raise UserError(f"{origin} has a tensor {stranger!r:.80}, which its network has not: export it again")


def require_filled(given: Exported, origin: Path) -> None:
    """Refuse a configuration whose networks are far larger than the file's tensors, for which memory would be taken."""
    try:
        wanted = _wanted(given, origin) or {}
    except UserError:
        # A part of a user's own need not be one that is built without memory.
        if _code(given.header.config):
            return
        raise
    held, asked = (sum(value.numel() for value in tensors.values()) for tensors in (given.tensors, wanted))
    if asked > max(_SMALL, 2 * held):
        raise UserError(
            f"{origin} holds {held:,} numbers, and its configuration has a network of {asked:,}: export it again"
        )


def _wanted(given: Exported, origin: Path) -> "dict[str, Tensor] | None":
    """The tensors of the configuration's networks by name, without memory: it may ask for more than there is.

    None for networks of which a part lies elsewhere.
    """
    import torch

    try:
        with torch.device("meta"):
            modules = given.study.module("export").networks(given.config, given.tensors)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    # A network that cannot be, as of sizes that multiply beyond what a tensor may have.
    except (RuntimeError, ValueError, OverflowError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{origin}: its configuration makes no network ({reason}): export it again") from error
    if modules is None:
        return None
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
