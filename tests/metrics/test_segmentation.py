"""Segments against scikit-learn's measures and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, jaccard_score
from torch import Tensor

from etude.metrics.segmentation import (
    ari,
    foreground_ari,
    mbo,
    miou,
    miou_fg,
    miou_gt,
    overlaps,
    shared_pixels,
    squared_error,
)  # fmt: skip


def segments(seed: int, kinds: int, count: int = 6, pixels: int = 400) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, kinds, (count, pixels)))


def some(kinds: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int64, (3, 12), elements=st.integers(0, kinds - 1))


# --- against scikit-learn ---


@given(some(5), some(4))
def test_ari_is_scikit_learns(predicted: np.ndarray, true: np.ndarray) -> None:
    found = ari(shared_pixels(torch.from_numpy(predicted), torch.from_numpy(true)))
    wanted = [adjusted_rand_score(t, p) for p, t in zip(predicted, true, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


@given(some(5), some(4))
def test_foreground_ari_is_scikit_learns_on_objects(predicted: np.ndarray, true: np.ndarray) -> None:
    found = foreground_ari(shared_pixels(torch.from_numpy(predicted), torch.from_numpy(true)))
    for value, p, t in zip(found.tolist(), predicted, true, strict=True):
        if (t > 0).any():
            assert value == pytest.approx(adjusted_rand_score(t[t > 0], p[t > 0]), abs=1e-12)
        else:
            assert np.isnan(value)


@settings(max_examples=25)
@given(some(5), some(4))
def test_overlaps_are_scikit_learns(predicted: np.ndarray, true: np.ndarray) -> None:
    found = overlaps(shared_pixels(torch.from_numpy(predicted), torch.from_numpy(true)))
    for image in range(len(predicted)):
        for p in range(found.shape[1]):
            for t in range(found.shape[2]):
                wanted = jaccard_score(true[image] == t, predicted[image] == p, zero_division=0)
                assert found[image, p, t].item() == pytest.approx(wanted)


def evaluated(predicted: np.ndarray, true: np.ndarray, slots: int) -> tuple[float, float, float]:
    """The three as CLEVRTex' evaluator computes them, with masks and loops: as many masks on both sides, paired."""
    count = max(slots, int(true.max()) + 1)
    masks, wanted = ([side == number for number in range(count)] for side in (predicted, true))
    either = np.array([[max((p | t).sum(), 1) for p in masks] for t in wanted])
    each = np.array([[(p & t).sum() for p in masks] for t in wanted]) / either
    rows, columns = linear_sum_assignment(each, maximize=True)
    best = each[rows, columns]
    seen = [bool(wanted[t].any() or masks[p].any()) for t, p in zip(rows, columns, strict=True)]
    # Its scenes all have a background; where none is, there is no pair of it to leave out.
    objects = sum(seen) - seen[0]
    foreground = best[1:].sum() / objects if objects else np.nan
    return best.sum() / sum(seen), foreground, best.sum() / len(np.unique(true))


@given(some(5), some(4))
def test_the_three_mious_are_the_evaluators(predicted: np.ndarray, true: np.ndarray) -> None:
    table = shared_pixels(torch.from_numpy(predicted), torch.from_numpy(true))
    slots = table.shape[1]
    columns = [measure(table).tolist() for measure in (miou, miou_fg, miou_gt)]
    for number, found in enumerate(zip(*columns, strict=True)):
        # The evaluator has as many true masks as its batch needs, or slots.
        padded = max(slots, int(true.max()) + 1)
        wanted = evaluated(predicted[number], true[number], padded)
        np.testing.assert_allclose(found, wanted, equal_nan=True)


@given(some(5), some(4))
def test_miou_and_mbo_from_the_overlaps(predicted: np.ndarray, true: np.ndarray) -> None:
    """Of the segments that are there alone, so that numbers without pixels can neither help nor count."""
    table = shared_pixels(torch.from_numpy(predicted), torch.from_numpy(true))
    for p, t, pairs, best in zip(predicted, true, miou_gt(table).tolist(), mbo(table).tolist(), strict=True):
        each = np.array([[jaccard_score(t == b, p == a) for b in np.unique(t)] for a in np.unique(p)])
        rows, columns = linear_sum_assignment(-each)
        assert pairs == pytest.approx(each[rows, columns].sum() / len(np.unique(t)))
        objects = each[:, np.unique(t) > 0]
        assert best == pytest.approx(objects.max(0).mean()) if objects.size else np.isnan(best)


def test_large_images() -> None:
    """Products of numbers of pairs are beyond what float32 holds."""
    predicted, true = segments(0, 11, 2, 128 * 128), segments(1, 11, 2, 128 * 128)
    predicted[0, :9000] = true[0, :9000]
    found = ari(shared_pixels(predicted, true))
    wanted = [adjusted_rand_score(t, p) for p, t in zip(predicted, true, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-15)


# --- by hand ---


def test_the_table_by_hand() -> None:
    table = shared_pixels(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[1, 1, 1, 0]]))
    assert table.tolist() == [[[0, 2], [0, 1], [1, 0]]]
    assert torch.equal(shared_pixels(torch.tensor([[[0, 0], [1, 2]]]), torch.tensor([[[1, 1], [1, 0]]])), table)


def test_ari_by_hand() -> None:
    # Two of six pairs together in both, one more in the prediction: scikit-learn's own example has 4/7.
    table = shared_pixels(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1]]))
    assert ari(table).item() == pytest.approx(4 / 7)


def test_names_do_not_matter_and_a_perfect_match_is_one() -> None:
    true = segments(0, 5)
    renamed = torch.tensor([4, 2, 0, 1, 3])[true]
    table = shared_pixels(renamed, true)
    for measure in (ari, foreground_ari, miou, miou_fg, miou_gt, mbo):
        torch.testing.assert_close(measure(table), torch.ones(6, dtype=torch.float64))


def test_a_split_background_sinks_ari_alone() -> None:
    true = torch.tensor([[0] * 90 + [1] * 5 + [2] * 5])
    whole = true.clone()
    split = true.clone()
    split[0, :45] = 3
    good, bad = shared_pixels(whole, true), shared_pixels(split, true)
    assert ari(good).item() == 1 > 0.5 > ari(bad).item()
    assert foreground_ari(bad).item() == mbo(bad).item() == 1
    # The background has half its pixels in its best partner.
    # The other half is a pair of its own, of which nothing is true.
    assert miou_gt(bad).item() == pytest.approx((0.5 + 1 + 1) / 3)
    assert miou(bad).item() == pytest.approx((0.5 + 1 + 1) / 4)
    assert miou_fg(bad).item() == pytest.approx((1 + 1) / 3)


def test_chance_is_zero() -> None:
    assert ari(shared_pixels(segments(0, 11, 50, 4096), segments(1, 6, 50, 4096))).mean().abs() < 1e-3


def test_one_object() -> None:
    """Nothing to tell apart: in one piece it is right, in two it is not."""
    true = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    table = shared_pixels(torch.tensor([[0, 0, 2, 2], [0, 0, 1, 2]]), true)
    assert foreground_ari(table).tolist() == [1, 0]
    assert mbo(table).tolist() == [1, 0.5]


def test_an_empty_slot_changes_nothing() -> None:
    true, predicted = segments(0, 4), segments(1, 4)
    with_gap = torch.where(predicted == 3, 6, predicted)
    one, other = shared_pixels(predicted, true), shared_pixels(with_gap, true)
    assert other.shape == (6, 7, 4)
    for measure in (ari, foreground_ari, miou, miou_fg, miou_gt, mbo):
        torch.testing.assert_close(measure(one), measure(other))


def test_more_objects_than_slots() -> None:
    true = torch.arange(6)[None].repeat_interleave(5, 1)
    table = shared_pixels(true.clamp(max=2), true)
    # 0 and 1 are found, 2 to 5 share a slot: one of them is paired with it, at a quarter.
    assert miou(table).item() == miou_gt(table).item() == pytest.approx((1 + 1 + 0.25) / 6)
    assert miou_fg(table).item() == pytest.approx((1 + 0.25) / 5)
    assert mbo(table).item() == pytest.approx((1 + 4 * 0.25) / 5)


def test_images_without_objects() -> None:
    table = shared_pixels(torch.zeros(2, 4).long(), torch.zeros(2, 4).long())
    assert ari(table).tolist() == miou(table).tolist() == [1, 1]
    assert miou_fg(table).isnan().all()
    assert foreground_ari(table).isnan().all()
    assert mbo(table).isnan().all()


def test_what_is_no_segmentation() -> None:
    with pytest.raises(AssertionError, match="same pixels"):
        shared_pixels(torch.zeros(1, 4).long(), torch.zeros(1, 5).long())
    with pytest.raises(AssertionError, match="from 0"):
        shared_pixels(torch.tensor([[-1, 0]]), torch.tensor([[0, 0]]))
    assert shared_pixels(torch.zeros(0, 4).long(), torch.zeros(0, 4).long()).shape == (0, 1, 1)


def test_squared_error_by_hand() -> None:
    made, true = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    true[1] = 0.5
    assert squared_error(made, true).tolist() == [0, 12]
