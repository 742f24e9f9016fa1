"""A library of slots, and pictures put together from it.

The assignment (seed 001, section 1.2): the slots of all training pictures are clustered by K-means into as many
clusters as the model has slots; one slot drawn from each cluster makes a new picture.

Shape suffixes: N slots of the library, S a slot's size, K clusters, B new pictures.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.errors import UserError

CARD = 8
"""Side of the small picture by which a library knows its model."""
_NEAR = 0.02
"""The mean difference of two such pictures of one model."""
_RESTARTS = 4
"""The starts of K-means, of which the tightest clustering is kept."""


class Library(nn.Module):
    """Slots with their clusters.

    Args:
        slots_NS: float32.
        cluster_N: from 0 to K - 1; every cluster has slots.
        card: what its model makes of `probe`, ``[3, 8, 8]``.
    """

    slots_NS: Tensor
    cluster_N: Tensor
    card: Tensor

    def __init__(self, slots_NS: Tensor, cluster_N: Tensor, card: Tensor) -> None:
        super().__init__()
        for name, value in (("slots_NS", slots_NS), ("cluster_N", cluster_N), ("card", card)):
            self.register_buffer(name, value)

    @property
    def num_clusters(self) -> int:
        return int(self.cluster_N.max()) + 1

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """One slot of each cluster for every picture, ``[B, K, S]``."""
        rows = []
        for cluster in range(self.num_clusters):
            members = (self.cluster_N == cluster).nonzero().flatten()
            rows.append(members[torch.randint(len(members), (count,), generator=generator)])
        return self.slots_NS[torch.stack(rows, 1)]

    @property
    def probe(self) -> Tensor:
        """The first slot of each cluster, ``[K, S]``."""
        return self.slots_NS[[int((self.cluster_N == cluster).nonzero()[0]) for cluster in range(self.num_clusters)]]

    def save(self, path: Path, study: str, config: Mapping[str, Any]) -> None:
        """Write one safetensors file, with the study and the configuration of the model."""
        save_weights(path, {"library": self}, WeightsHeader(study, dict(config), {"kind": "library"}))


Card = Callable[[Tensor], Tensor]
"""A model's small picture ``[3, 8, 8]`` of slots ``[K, S]``, on the CPU."""


def build(slots_NS: Tensor, num_clusters: int, seed: int, card: Card) -> Library:
    """Cluster the slots of many pictures, on the CPU, by K-means of a seed; ``card`` is that of their model.

    Raises:
        UserError: fewer different slots than clusters.
    """
    from sklearn.cluster import KMeans

    if len(slots_NS.unique(dim=0)) < num_clusters:
        raise UserError(f"{len(slots_NS)} slots, of which too few differ for {num_clusters} clusters: give more scenes")
    # Their annotations know n_init as text alone.
    options: Any = {"n_init": _RESTARTS, "random_state": seed}
    found = KMeans(num_clusters, **options).fit_predict(slots_NS.double().numpy())
    library = Library(slots_NS, torch.from_numpy(found).long(), torch.zeros(3, CARD, CARD))
    library.card = card(library.probe)
    return library


def beside(weights: Path) -> Path | None:
    """The library that comes with weights: of those that ship ``library/NAME`` beside ``weights/NAME``, of a run
    ``figures/library.safetensors``; None: there is none."""
    # Of a name alone `parent.parent` is the same folder.
    weights = weights.absolute()
    shipped = weights.parent.parent / "library" / weights.name
    # A run keeps its weights a folder or two below itself.
    of_run = [folder / "figures" / "library.safetensors" for folder in weights.parents[:3]]
    return next((file for file in (shipped, *of_run) if file.is_file()), None)


def companions(weights: Path) -> dict[str, Path | None]:
    """The files that an exported folder has beside its weights, by their places there."""
    return {"figures/library.safetensors": beside(weights)}


def load(path: Path, study: str, model: Mapping[str, int], card: Card) -> Library:
    """Read a library for a model of a study.

    Args:
        path: the file.
        study: whose model it is.
        model: the settings that must be the same, by name, ``num_slots`` and ``slot_size`` among them.
        card: of the model.

    Raises:
        UserError: no library, or that of another model.
    """
    tensors, header = read_weights(path, study=study)
    names = {f"library.{name}" for name in ("slots_NS", "cluster_N", "card")}
    if header.extra.get("kind") != "library" or set(tensors) != names:
        raise UserError(f"{path} holds a network, not a slot library: a run keeps its library beside its figures")
    library = Library(*(tensors[f"library.{name}"] for name in ("slots_NS", "cluster_N", "card")))
    fix = "give the library of the same run"
    theirs = header.config.get("model", {})
    for name, mine in model.items():
        if theirs.get(name) != mine:
            raise UserError(
                f"{path} is the slot library of another model ({name} {theirs.get(name)}, not {mine}): {fix}"
            )
    size = model["slot_size"]
    whole = (
        library.slots_NS.ndim == 2 and library.slots_NS.shape[1] == size and library.slots_NS.is_floating_point()
        and bool(library.slots_NS.isfinite().all()) and library.card.shape == (3, CARD, CARD)
        and library.cluster_N.shape == library.slots_NS.shape[:1] and library.cluster_N.dtype == torch.int64
        and len(library.cluster_N) > 0
        and library.cluster_N.unique().tolist() == list(range(model["num_slots"]))
    )  # fmt: skip
    if not whole:
        raise UserError(f"{path} is damaged: its slots and clusters do not fit each other; make it again")
    library.float()
    # Weights that were stored in half precision answer a little otherwise.
    if not (card(library.probe) - library.card).abs().mean() <= _NEAR:
        raise UserError(f"{path} is the slot library of another model (its slots decode otherwise): {fix}")
    return library
