"""Classify a user's own pictures by a few examples of each class.

Shape suffixes as in episodes.py.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import Refused, UserError, refuse_newer
from etude.core.files import write_atomic
from etude.data.images import to_square
from etude.data.inventory import classes_of
from etude.data.prediction import answerable, attempted, in_place, picture_files, read_input
from etude.data.tree import opened
from etude.studies.protonet.model import Distance, prototypes
from etude.studies.protonet.study import ProtonetConfig
from etude.studies.protonet.task import build_distance, build_encoder, embed

FORMAT = 1


@dataclass(frozen=True)
class Options:
    queries: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures to classify, or folders of pictures."""
    support: Path | None = None
    """A folder or zip file with one sub-folder a class, a few pictures in each."""
    prototypes: Path | None = None
    """Prototypes that an earlier call saved, in place of a support folder."""
    save_prototypes: Path | None = None
    """The file to save the support's prototypes to (safetensors)."""
    unknown: bool = False
    """Answer 'unknown' beyond the distance that validation set."""
    threshold: float | None = None
    """A distance of your own for --unknown."""
    polarity: str = "auto"
    """The ink: dark, light, or auto, which takes each picture's border for paper."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one query."""

    query: str
    label: str
    probability: float
    """Softmax over the negative distances to all classes, the unknown class not counted."""
    distance: float
    distances: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Prototypes:
    """The class means of a support folder."""

    classes: tuple[str, ...]
    z_ND: Tensor
    shots: tuple[int, ...]
    """Pictures of each class."""


class Embedder:
    """A trained network, ready to embed pictures, with the thresholds in its weights file.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: the run's summary of thresholds, where the file is a checkpoint.

    Raises:
        UserError: the file holds no network of this study.
    """

    def __init__(self, weights: Path, extra: Mapping[str, Any] | None = None) -> None:
        tensors, header = read_weights(weights, study="protonet")
        self.config = from_dict(ProtonetConfig, header.config, origin=str(weights))
        self.encoder: nn.Module = build_encoder(self.config.model, self.config.data.size)
        load_weights({"encoder": self.encoder}, tensors, weights)
        self.encoder.eval()
        self.distance: Distance = build_distance(self.config.model)
        self.thresholds: Mapping[str, Any] = (header.extra or extra or {}).get("unknown", {})
        # Prototypes mean nothing to other weights.
        self.fingerprint = _fingerprint(tensors)

    def read(self, source: Path | tuple[str, bytes], options: Options) -> np.ndarray:
        """A picture as the network saw characters, see `prepare`."""
        return prepare(read_input(source, "L", options.max_pixels), self.config.data.size, options.polarity)

    def embed(self, prepared: Sequence[np.ndarray]) -> Tensor:
        """Embed pictures that are prepared already: ``[N, D]``."""
        return embed(self.encoder, torch.from_numpy(np.stack(prepared)))

    def embed_images(self, images: Sequence[np.ndarray], polarity: str = "auto") -> Tensor:
        """Embed grey pictures, uint8 ``[H, W]`` of any sizes: ``[N, D]``."""
        return self.embed([prepare(image, self.config.data.size, polarity) for image in images])

    def threshold(self, shots: int) -> float:
        """The distance beyond which validation calls a query unknown, at the nearest shot count it measured."""
        if not self.thresholds:
            raise UserError("these weights carry no threshold for unknown classes: give one with --threshold")
        nearest_count = min(self.thresholds, key=lambda count: abs(int(count) - shots))
        return float(self.thresholds[nearest_count]["distance"])


load = Embedder


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        # As bytes: NumPy has no bfloat16.
        whole.update(name.encode() + tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


def prepare(image_HW: np.ndarray, size: int, polarity: str) -> np.ndarray:
    """A grey picture, uint8 of any size, as the network saw characters: uint8 ``[size, size]``, ink 255 on 0.

    The ink's polarity is ``dark``, ``light`` or ``auto``, which takes the border for paper.
    """
    border = np.concatenate([image_HW[0], image_HW[-1], image_HW[:, 0], image_HW[:, -1]])
    paper = float(np.median(border))
    if polarity == "dark" or (polarity == "auto" and paper >= 128):
        image_HW, paper = 255 - image_HW, 255 - paper
    square = to_square(image_HW, size, int(paper)).astype(np.float32)
    # Grey paper and faint ink are stretched to the range of the training pictures.
    low, high = min(paper, float(square.max())), float(square.max())
    if high - low < 8:
        return np.zeros((size, size), np.uint8)
    return ((square - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def read_support(embedder: Embedder, folder: Path, options: Options) -> Prototypes:
    """The prototypes of a support folder: the mean embedding of each class (equation 1)."""
    with opened(folder) as tree:
        found = classes_of(tree)
        prepared = [embedder.read(tree.image(picture.at), options) for picture in found.pictures]
    shots = Counter(picture.class_name for picture in found.pictures)
    parts = embedder.embed(prepared).split([*shots.values()])
    return Prototypes(tuple(shots), torch.cat([prototypes(part[None]) for part in parts]), tuple(shots.values()))


def save_prototypes(path: Path, support: Prototypes, embedder: Embedder) -> None:
    """Write prototypes, and which weights made them, to a safetensors file that `load_prototypes` reads."""
    about = {"format": FORMAT, "classes": support.classes, "shots": support.shots, "weights": embedder.fingerprint}
    metadata = {"etude-prototypes": json.dumps(about)}
    # As bytes: safetensors' own writer turns a full disk into an error of another kind.
    write_atomic(path, save({"prototypes": support.z_ND.contiguous()}, metadata=metadata))


def load_prototypes(path: Path, embedder: Embedder) -> Prototypes:
    """The prototypes that `save_prototypes` wrote with the same weights; `UserError` for any other file."""
    if not path.is_file():
        raise UserError(f"no prototypes at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["etude-prototypes"])
            z_ND = file.get_tensor("prototypes")
        number, weights = int(about["format"]), about["weights"]
        classes, shots = tuple(about["classes"]), tuple(about["shots"])
        if z_ND.ndim != 2 or not len(z_ND) == len(classes) == len(shots) > 0 or z_ND.dtype != torch.float32:
            raise ValueError("as many vectors as classes")
        if {type(name) for name in classes} != {str} or {type(shot) for shot in shots} != {int}:
            raise TypeError("names and whole numbers")
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise UserError(f"{path} holds no prototypes of etude: make them with --save-prototypes") from error
    refuse_newer(path, number, FORMAT)
    if weights != embedder.fingerprint:
        raise UserError(f"{path} was made with other weights: make it again with --save-prototypes")
    with torch.no_grad():
        width = embedder.embed_images([np.zeros((8, 8), np.uint8)]).shape[1]
    if z_ND.shape[1] != width:
        raise UserError(
            f"{path} holds vectors of {z_ND.shape[1]}, not of {width}: make it again with --save-prototypes"
        )
    return Prototypes(classes, z_ND, shots)


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Classify the queries; the order of the answers is that of the queries.

    Raises:
        UserError: no query that can be read, or a missing or broken support or weights file, in one line.
    """
    if (options.support is None) == (options.prototypes is None):
        raise UserError("give either --support FOLDER (one sub-folder a class) or --prototypes FILE")
    if options.prototypes is not None and options.save_prototypes is not None:
        raise UserError("--save-prototypes saves those of a support folder: give --support FOLDER")
    if options.polarity not in {"auto", "dark", "light"}:
        raise UserError(f"--polarity is auto, dark or light, not '{options.polarity}'")
    if not options.queries and options.save_prototypes is None:
        raise UserError("no pictures to classify: name some, or a folder of them")
    embedder = Embedder(weights, extra)
    queries = picture_files(options.queries)
    if options.prototypes is not None:
        support = load_prototypes(options.prototypes, embedder)
    else:
        assert options.support is not None
        support = read_support(embedder, options.support, options)
    if options.save_prototypes is not None:
        save_prototypes(options.save_prototypes, support, embedder)
    if not queries:
        return []
    limit = options.threshold
    if options.unknown and limit is None:
        limit = embedder.threshold(round(sum(support.shots) / len(support.shots)))
    read = answerable(attempted(queries, lambda path: (path, embedder.read(path, options))))
    known = [row for row in read if not isinstance(row, Refused)]
    z_QD = embedder.embed([image for _, image in known])
    return in_place(read, answers([path for path, _ in known], z_QD, support, embedder, limit))


def answers(
    queries: Sequence[Path | str], z_QD: Tensor, support: Prototypes, embedder: Embedder, limit: float | None
) -> list[Prediction]:
    """The answers to embedded queries, given their names and the distance beyond which a class is unknown, if any."""
    distances_QN = embedder.distance(z_QD, support.z_ND)
    probability_QN = (-distances_QN / embedder.config.model.temperature).softmax(-1)
    found: list[Prediction] = []
    for query, distances, shares in zip(queries, distances_QN.tolist(), probability_QN.tolist(), strict=True):
        best = min(range(len(distances)), key=distances.__getitem__)
        label = "unknown" if limit is not None and distances[best] > limit else support.classes[best]
        table = dict(zip(support.classes, distances, strict=True))
        found.append(Prediction(str(query), label, shares[best], distances[best], table))
    return found


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    from etude.data.omniglot import sample_folder

    folder = sample_folder()
    return ["protonet", "--support", str(folder / "support"), str(folder / "queries")]
