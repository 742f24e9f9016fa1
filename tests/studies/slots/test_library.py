"""Clusters of slots, what is drawn of them, and files that are no library of this model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.studies.slots.common import build, draw, load, network, one_line, saved, settings
from torch import Tensor

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.scenes.slot_library import Library

K, S = 3, 8
CONFIG = to_dict(settings())


def far_apart(count: int = 10) -> tuple[Tensor, Tensor]:
    """Slots about three places in turn, and which."""
    which = torch.arange(K).repeat(count)
    centres = 20 * draw(K, S, dtype=torch.float32)
    return centres[which] + draw(K * count, S, seed=1, dtype=torch.float32), which


@pytest.fixture
def library() -> Library:
    return build(network(), far_apart()[0], 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clusters_are_found(library: Library) -> None:
    slots, which = far_apart()
    assert library.num_clusters == K
    assert torch.equal(library.slots_NS, slots)
    pairs = {(int(mine), int(theirs)) for mine, theirs in zip(library.cluster_N, which, strict=True)}
    assert len(pairs) == K, "one cluster a place, and one place a cluster"
    assert torch.equal(build(network(), slots, 0).cluster_N, library.cluster_N)


def test_a_picture_gets_one_slot_of_each_cluster(library: Library) -> None:
    drawn = library.draw(200, generator())
    assert drawn.shape == (200, K, S)
    places = (drawn[:, :, None] == library.slots_NS).all(-1)
    assert (places.sum(2) == 1).all()
    rows = places.int().argmax(2)
    assert torch.equal(library.cluster_N[rows], torch.arange(K).expand(200, K))
    assert rows.unique().numel() == len(library.slots_NS), "every slot has its turn"


def test_a_draw_is_repeated_by_its_seed(library: Library) -> None:
    first = library.draw(20, generator())
    assert torch.equal(library.draw(20, generator()), first)
    assert not torch.equal(library.draw(20, generator(1)), first)


def test_too_few_slots_that_differ() -> None:
    with pytest.raises(UserError) as caught:
        build(network(), torch.ones(50, S), 0)
    one_line(caught, "50 slots, of which too few differ for 3 clusters")


def test_the_card_is_the_first_slot_of_each_cluster_together() -> None:
    net, (slots, which) = network(), far_apart()
    found = net.card(Library(slots, which, torch.zeros(3, 8, 8)).probe)
    image = net.decode(slots[:K][None])[0][0].detach()
    assert found.shape == (3, 8, 8)
    # A mean over 2 x 2 pixels.
    torch.testing.assert_close(found, image.unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4)))


# --- files ---


@pytest.mark.parametrize("half", [False, True])
def test_there_and_back(tmp_path: Path, library: Library, half: bool) -> None:
    path = tmp_path / "library.safetensors"
    save_weights(path, {"library": library}, WeightsHeader("slots", CONFIG, {"kind": "library"}), half=half)
    again = load(path, network())
    assert again.slots_NS.dtype == torch.float32
    torch.testing.assert_close(again.slots_NS, library.slots_NS, rtol=1e-3 if half else 0, atol=1e-3 if half else 0)
    assert torch.equal(again.cluster_N, library.cluster_N)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__num_slots": 4}, "num_slots 3, not 4"),
        ({"model__slot_size": 6}, "slot_size 8, not 6"),
        ({"model__size": 32}, "size 16, not 32"),
    ],
)
def test_a_model_of_other_sizes(tmp_path: Path, library: Library, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path, "slots", CONFIG)
    with pytest.raises(UserError) as caught:
        load(path, network(**changes))
    one_line(caught, f"{path} is the slot library of another model ({says})", "give the library of the same run")


def test_a_model_of_other_weights(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path, "slots", CONFIG)
    with pytest.raises(UserError) as caught:
        load(path, network(seed=1))
    one_line(caught, f"{path} is the slot library of another model (its slots decode otherwise)")


def test_a_card_that_is_no_number(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "library.safetensors"
    damaged(library, card=torch.full((3, 8, 8), torch.nan)).save(path, "slots", CONFIG)
    with pytest.raises(UserError) as caught:
        load(path, network())
    one_line(caught, "another model")


def test_weights_are_no_library(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(saved(tmp_path / "net.safetensors"), network())
    one_line(caught, "holds a network, not a slot library", "figures")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "none.safetensors", network())
    one_line(caught, "no weights file at")


def damaged(library: Library, **changes: Tensor) -> Library:
    parts = {"slots_NS": library.slots_NS, "cluster_N": library.cluster_N, "card": library.card}
    return Library(**(parts | changes))


FAULTS: dict[str, dict[str, Tensor]] = {
    "fewer clusters than slots": {"cluster_N": torch.arange(3).repeat(10)[:29]},
    "a cluster too few": {"cluster_N": torch.arange(2).repeat(15)},
    "a cluster too many": {"cluster_N": torch.arange(5).repeat(6)},
    "a cluster below zero": {"cluster_N": torch.arange(3).repeat(10) - 1},
    "clusters that are no integers": {"cluster_N": torch.arange(3.0).repeat(10)},
    "slots of another size": {"slots_NS": torch.zeros(30, 7)},
    "slots that are no numbers": {"slots_NS": torch.full((30, 8), torch.nan)},
    "slots in bytes": {"slots_NS": torch.zeros(30, 8, dtype=torch.uint8)},
    "nothing": {"slots_NS": torch.zeros(0, 8), "cluster_N": torch.zeros(0, dtype=torch.int64)},
    "a card of another size": {"card": torch.zeros(3, 5, 5)},
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_damaged_library(tmp_path: Path, library: Library, fault: str) -> None:
    path = tmp_path / "library.safetensors"
    damaged(library, **FAULTS[fault]).save(path, "slots", CONFIG)
    with pytest.raises(UserError) as caught:
        load(path, network())
    one_line(caught, f"{path} is damaged: its slots and clusters do not fit each other; make it again")


def test_a_library_cut_short(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path, "slots", CONFIG)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError) as caught:
        load(path, network())
    one_line(caught, "truncated")
    lacking = {"other": library}
    save_weights(path, lacking, WeightsHeader("slots", CONFIG, {"kind": "library"}))
    with pytest.raises(UserError) as caught:
        load(path, network())
    one_line(caught, str(path))
