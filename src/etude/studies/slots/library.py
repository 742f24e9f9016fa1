"""A library of slots, and pictures put together from it.

The assignment (seed 001, section 1.2): the slots of all training pictures are clustered by K-means into as many
clusters as the model has slots; one slot drawn from each cluster makes a new picture.

Shape suffixes: N slots of the library, S a slot's size, K clusters, B new pictures.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.errors import UserError
from etude.studies.slots.model import SlotAutoencoder

_CARD = 8
"""Side of the small picture by which a library knows its model."""
_RESTARTS = 4
"""Of K-means, of which the tightest clustering is kept."""


class Library(nn.Module):
    """Slots with their clusters.

    Args:
        slots_NS: float32.
        cluster_N: from 0 to K - 1; every cluster has slots.
        card: what the model makes of one slot of each cluster, see `card`.
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

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write one safetensors file.

        Args:
            path: the file.
            config: the model's study configuration.
        """
        save_weights(path, {"library": self}, WeightsHeader("slots", dict(config), {"kind": "library"}))


def build(model: SlotAutoencoder, slots_NS: Tensor, seed: int) -> Library:
    """Cluster the slots of many pictures.

    Args:
        model: whose slots they are.
        slots_NS: at least K of them, on the CPU.
        seed: of K-means.

    Raises:
        UserError: fewer different slots than clusters.
    """
    from sklearn.cluster import KMeans

    num_clusters = model.config.num_slots
    if len(slots_NS.unique(dim=0)) < num_clusters:
        raise UserError(f"{len(slots_NS)} slots, of which too few differ for {num_clusters} clusters: give more scenes")
    # Their annotations know n_init as text alone.
    options: Any = {"n_init": _RESTARTS, "random_state": seed}
    found = KMeans(num_clusters, **options).fit_predict(slots_NS.double().numpy())
    cluster_N = torch.from_numpy(found).long()
    return Library(slots_NS, cluster_N, card(model, slots_NS, cluster_N))


@torch.no_grad()
def card(model: SlotAutoencoder, slots_NS: Tensor, cluster_N: Tensor) -> Tensor:
    """What a model makes of the first slot of each cluster, as a small picture ``[3, 8, 8]``."""
    first_K = [int((cluster_N == cluster).nonzero()[0]) for cluster in range(int(cluster_N.max()) + 1)]
    device = next(model.parameters()).device
    image_BCHW, _ = model.decode(slots_NS[first_K][None].to(device))
    return torch.nn.functional.adaptive_avg_pool2d(image_BCHW[0].float().cpu(), _CARD)


def load(path: Path, model: SlotAutoencoder) -> Library:
    """Read a library for a model.

    Raises:
        UserError: no library, or that of another model.
    """
    tensors, header = read_weights(path, study="slots")
    names = {f"library.{name}" for name in ("slots_NS", "cluster_N", "card")}
    if header.extra.get("kind") != "library" or set(tensors) != names:
        raise UserError(f"{path} holds a network, not a slot library: a run keeps its library beside its figures")
    library = Library(*(tensors[f"library.{name}"] for name in ("slots_NS", "cluster_N", "card")))
    fix = "give the library of the same run"
    mine, theirs = asdict(model.config), header.config.get("model", {})
    for name in ("num_slots", "slot_size", "size"):
        if theirs.get(name) != mine[name]:
            raise UserError(
                f"{path} is the slot library of another model ({name} {theirs.get(name)}, not {mine[name]}): {fix}"
            )
    size = model.config.slot_size
    whole = (
        library.slots_NS.ndim == 2 and library.slots_NS.shape[1] == size and library.slots_NS.is_floating_point()
        and bool(library.slots_NS.isfinite().all()) and library.card.shape == (3, _CARD, _CARD)
        and library.cluster_N.shape == library.slots_NS.shape[:1] and library.cluster_N.dtype == torch.int64
        and len(library.cluster_N) > 0
        and library.cluster_N.unique().tolist() == list(range(model.config.num_slots))
    )  # fmt: skip
    if not whole:
        raise UserError(f"{path} is damaged: its slots and clusters do not fit each other; make it again")
    library.float()
    # Weights that were stored in half precision decode a little otherwise.
    if not (card(model, library.slots_NS, library.cluster_N) - library.card).abs().mean() <= 0.02:
        raise UserError(f"{path} is the slot library of another model (its slots decode otherwise): {fix}")
    return library
