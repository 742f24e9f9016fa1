"""Labelled images and stratified splits: every row once, counts by largest remainder, the same for ever."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.labelled import LabelledImages, stratified


def made(num: int = 6) -> LabelledImages:
    images = torch.arange(num * 2 * 2 * 3).reshape(num, 2, 2, 3).to(torch.uint8)
    return LabelledImages(images, torch.arange(num) % 3, ("a", "b", "c"), tuple(map(str, range(num))))


def test_rows_are_taken_in_their_order() -> None:
    whole = made()
    for rows in ([4, 0, 4], torch.tensor([4, 0, 4])):
        some = whole.take(rows)
        assert len(some) == 3
        assert some.names == ("4", "0", "4")
        assert some.classes == whole.classes
        assert some.labels_N.tolist() == [1, 0, 1]
        assert torch.equal(some.images_NHWC, whole.images_NHWC[[4, 0, 4]])
    some.images_NHWC[0] = 0
    assert whole.images_NHWC[4].max() > 0, "a copy"
    assert len(whole.take([])) == 0


@pytest.mark.parametrize(
    ("labels", "names", "images"),
    [
        (torch.zeros(3), ("1", "2", "3"), torch.zeros(3, 2, 2, 3, dtype=torch.uint8)),
        (torch.zeros(3, dtype=torch.int64), ("1", "2"), torch.zeros(3, 2, 2, 3, dtype=torch.uint8)),
        (torch.zeros(3, dtype=torch.int64), ("1", "2", "3"), torch.zeros(3, 2, 2, 3)),
        (torch.zeros(3, dtype=torch.int64), ("1", "2", "3"), torch.zeros(3, 2, 2, 1, dtype=torch.uint8)),
    ],
)
def test_parts_that_do_not_fit_are_our_own_fault(labels: torch.Tensor, names: tuple, images: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        LabelledImages(images, labels, ("a",), names)


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (10, (0.7, 0.2, 0.1), [7, 2, 1]),
        (100, (0.7, 0.1, 0.2), [70, 10, 20]),
        (5000, (0.9, 0.1), [4500, 500]),
        # 7.7, 2.2, 1.1: the largest remainder goes first.
        (11, (0.7, 0.2, 0.1), [8, 2, 1]),
        # 2.1, 0.6, 0.3: the last would get none.
        (3, (0.7, 0.2, 0.1), [1, 1, 1]),
        (4, (0.98, 0.01, 0.01), [2, 1, 1]),
        # Too few for one each.
        (2, (0.7, 0.2, 0.1), [2, 0, 0]),
        (1, (0.2, 0.8), [0, 1]),
        (6, (0.5, 0.0, 0.5), [3, 0, 3]),
        (4, (1.0,), [4]),
    ],
)
def test_counts_by_hand(count: int, shares: tuple[float, ...], expected: list[int]) -> None:
    parts = stratified(torch.zeros(count, dtype=torch.int64), shares, 0)
    assert [len(part) for part in parts] == expected


@given(
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(sum),
    st.integers(0, 2**31),
)
def test_every_row_is_in_one_part(labels: list[int], weights: list[int], seed: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    labels_N = torch.tensor(labels, dtype=torch.int64)
    parts = stratified(labels_N, shares, seed)
    assert len(parts) == len(shares)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
    for label in set(labels):
        counts = [int((labels_N[part] == label).sum()) for part in parts]
        total = labels.count(label)
        for count, share in zip(counts, shares, strict=True):
            assert (count > 0) or share == 0 or total < len(shares) or total * share < 1
            assert share > 0 or count == 0
        if total >= len(shares):
            assert all(count > 0 for count, share in zip(counts, shares, strict=True) if share > 0)


def test_parts_depend_on_the_seed_and_on_nothing_else() -> None:
    labels_N = torch.arange(60) % 3
    first = stratified(labels_N, (0.5, 0.5), 1)
    assert all(map(torch.equal, first, stratified(labels_N, (0.5, 0.5), 1)))
    assert not torch.equal(first[0], stratified(labels_N, (0.5, 0.5), 2)[0])
    # A further class leaves the parts of the others as they are.
    more = stratified(torch.cat([labels_N, torch.full((10,), 3)]), (0.5, 0.5), 1)
    assert torch.equal(more[0][more[0] < 60], first[0])


def test_parts_are_the_same_for_ever() -> None:
    # Numbers in results/ rest on these rows.
    parts = stratified(torch.arange(12) % 2, (0.5, 0.5), 0)
    assert [part.tolist() for part in parts] == [[1, 5, 6, 7, 8, 10], [0, 2, 3, 4, 9, 11]]
