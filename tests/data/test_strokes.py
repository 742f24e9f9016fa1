"""The embedded twin of Omniglot: the same drawings for ever, and as hard as a small data set should be."""

import hashlib

import numpy as np
import pytest

from etude.data import omniglot
from etude.data.omniglot import generated
from etude.data.strokes import strokes

GOLDEN_INK = [[13039, 15352], [13916, 12258], [9421, 9838]]
GOLDEN_COARSE = [[0.0, 18.2, 27.3, 0.0], [8.5, 63.8, 65.1, 12.7], [3.6, 30.9, 36.1, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_shape_type_and_ink() -> None:
    drawn = strokes(5, 7, 28, seed=3)
    assert (drawn.shape, drawn.dtype) == ((5, 7, 28, 28), np.uint8)
    ink = drawn.mean((2, 3)) / 255
    assert ink.min() > 0.01, "a drawing without ink"
    assert ink.max() < 0.5
    assert drawn.max() == 255


@pytest.mark.parametrize("size", [16, 28, 64, 105])
def test_any_size_shows_the_same_character(size: int) -> None:
    small = strokes(3, 4, 14, seed=1).astype(float)
    large = strokes(3, 4, size, seed=1).astype(float)
    assert large.shape == (3, 4, size, size)
    # The centre of the ink, in shares of the side.
    for axis in (2, 3):
        centres = [
            (drawn.sum(5 - axis) @ ((np.arange(drawn.shape[2]) + 0.5) / drawn.shape[2])) / drawn.sum((2, 3))
            for drawn in (small, large)
        ]
        np.testing.assert_allclose(*centres, atol=0.04)


def test_drawings_are_determined_by_the_seed() -> None:
    np.testing.assert_array_equal(strokes(4, 3, seed=5), strokes(4, 3, seed=5))
    assert (strokes(4, 3, seed=5) != strokes(4, 3, seed=6)).any((1, 2, 3)).all()


def test_drawings_are_the_same_for_ever() -> None:
    # Numbers in results/ and golden losses rest on these pixels; floating point may move a few by one.
    drawn = strokes(3, 2, 28, seed=0)
    np.testing.assert_allclose(drawn.sum((2, 3)), GOLDEN_INK, rtol=0.002)
    coarse = drawn.reshape(6, 4, 7, 4, 7).mean((2, 4))
    np.testing.assert_allclose(coarse[0], GOLDEN_COARSE, atol=1)


def test_a_class_does_not_depend_on_the_others() -> None:
    many = strokes(9, 6, seed=2)
    np.testing.assert_array_equal(strokes(4, 6, seed=2), many[:4])
    np.testing.assert_array_equal(strokes(9, 2, seed=2), many[:, :2])


def test_no_two_drawings_are_the_same() -> None:
    flat = strokes(40, 20, seed=0).reshape(800, -1)
    assert len({hashlib.sha256(row.tobytes()).digest() for row in flat}) == 800


def test_drawings_of_a_class_are_closer_than_those_of_others() -> None:
    z = strokes(30, 10, seed=4).reshape(30, 10, -1) / 255.0
    within = np.linalg.norm(z[:, :1] - z[:, 1:], axis=-1).mean()
    across = np.linalg.norm(z[:, None, 0] - z[None, :, 1], axis=-1)
    across = across[~np.eye(30, dtype=bool)].mean()
    assert within < 0.96 * across


def test_pixels_tell_classes_apart_but_not_well() -> None:
    # One support drawing a class, twenty classes: chance is 5 %.
    z = strokes(20, 20, seed=7).reshape(20, 20, -1) / 255.0
    support, query = z[:, 0], z[:, 1:]
    distances = np.linalg.norm(query[:, :, None] - support, axis=-1)
    accuracy = (distances.argmin(-1) == np.arange(20)[:, None]).mean()
    assert 0.15 < accuracy < 0.8
    means = z[:, :10].mean(1)
    distances = np.linalg.norm(z[:, 10:, None] - means, axis=-1)
    assert accuracy < (distances.argmin(-1) == np.arange(20)[:, None]).mean() < 0.97


# --- the pool made of them ---


def test_a_pool_has_the_shape_of_omniglot() -> None:
    pool = generated("train", num_classes=5, size=20)
    assert pool.images_CNHW.shape == (20, omniglot.NUM_DRAWINGS, 20, 20)
    assert pool.images_CNHW.dtype.is_floating_point is False
    assert len(pool) == len(pool.names) == len(set(pool.names)) == 20
    assert len(pool.groups_C) == 20
    assert len(pool.group_names) == 8
    assert pool.groups_C.bincount().tolist() == [3] * 4 + [2] * 4
    for name, group in zip(pool.names, pool.groups_C.tolist(), strict=True):
        alphabet, character, rotation = name.split("/")
        assert pool.group_names[group] == f"{alphabet}/{rotation}"
        assert character.startswith("character")


def test_rotations_of_a_character_are_quarter_turns() -> None:
    pool = generated("val", num_classes=4)
    upright = pool.images_CNHW[:4].numpy()
    for turn in range(4):
        assert pool.names[4 * turn].endswith(f"rot{90 * turn:03d}")
        turned = pool.images_CNHW[4 * turn : 4 * turn + 4].numpy()
        np.testing.assert_array_equal(turned, np.rot90(upright, turn, axes=(2, 3)))


def test_splits_have_other_characters() -> None:
    seen: set[bytes] = set()
    for split in ("train", "val", "test", "trainval"):
        pool = generated(split, num_classes=6)
        drawings = {row.numpy().tobytes() for row in pool.images_CNHW[:6].flatten(0, 1)}
        assert len(drawings) == 120
        assert not seen & drawings
        seen |= drawings


def test_train_and_val_together_hold_no_test_drawing() -> None:
    test = {row.numpy().tobytes() for row in generated("test").images_CNHW.flatten(0, 1)}
    both = {row.numpy().tobytes() for row in generated("trainval").images_CNHW.flatten(0, 1)}
    assert not test & both
