"""Augmentation: the same pixels as a slow twin that takes one picture at a time, and honest draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.studies.resnet.common import random_images

from etude.nn.augment import crop_and_flip, cutout

FILL = torch.tensor([3, 141, 59], dtype=torch.uint8)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow(images_NHWC: torch.Tensor, generator: torch.Generator, *, pad: int, flip: bool) -> np.ndarray:
    """One picture after the other: a border of the fill, a window of the old size, a mirror."""
    num, height, width, _ = images_NHWC.shape
    shifts = torch.randint(-pad, pad + 1, (2, num), generator=generator).numpy()
    coins = torch.rand(num, generator=generator).numpy()
    out = np.empty(images_NHWC.shape, np.uint8)
    for i, image in enumerate(images_NHWC.numpy()):
        padded = np.empty((height + 2 * pad, width + 2 * pad, 3), np.uint8)
        padded[:] = FILL.numpy()
        padded[pad : pad + height, pad : pad + width] = image
        top, left = pad + shifts[0, i], pad + shifts[1, i]
        window = padded[top : top + height, left : left + width]
        out[i] = window[:, ::-1] if flip and coins[i] < 0.5 else window
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 11), st.booleans())
def test_it_is_its_slow_twin(seed: int, num: int, height: int, width: int, pad: int, flip: bool) -> None:
    images_NHWC = random_images(num, height, width, 3, seed=seed)
    out = crop_and_flip(images_NHWC, FILL, draw(seed), pad=pad, flip=flip)
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out.numpy(), slow(images_NHWC, draw(seed), pad=pad, flip=flip))


def test_nothing_asked_for_is_nothing_done() -> None:
    images_NHWC = random_images(5, 6, 7, 3)
    assert torch.equal(crop_and_flip(images_NHWC, FILL, draw(), pad=0, flip=False), images_NHWC)


def test_the_input_is_left_as_it_was() -> None:
    images_NHWC = random_images(5, 6, 7, 3)
    before = images_NHWC.clone()
    crop_and_flip(images_NHWC, FILL, draw(), pad=3, flip=True)[:] = 0
    assert torch.equal(images_NHWC, before)


def test_pictures_that_are_not_contiguous() -> None:
    images_NHWC = random_images(3, 7, 8, 6).transpose(1, 2)[..., ::2]
    assert not images_NHWC.is_contiguous()
    out = crop_and_flip(images_NHWC, FILL, draw(5), pad=2, flip=True)
    np.testing.assert_array_equal(out.numpy(), slow(images_NHWC, draw(5), pad=2, flip=True))


def test_the_generator_decides() -> None:
    images_NHWC = random_images(8, 6, 6, 3)
    one, again, other = (crop_and_flip(images_NHWC, FILL, draw(seed), pad=2, flip=True) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    generator = draw(1)
    crop_and_flip(images_NHWC, FILL, generator, pad=2, flip=True)
    assert not torch.equal(one, crop_and_flip(images_NHWC, FILL, generator, pad=2, flip=True))


def test_flips_alone_mirror_whole_pictures() -> None:
    images_NHWC = random_images(64, 4, 5, 3)
    out = crop_and_flip(images_NHWC, FILL, draw(), pad=0, flip=True)
    same, mirrored = ((out == twin).flatten(1).all(1) for twin in (images_NHWC, images_NHWC.flip(2)))
    assert (same ^ mirrored).all()
    assert 0 < same.sum() < 64


def test_shifts_and_flips_are_uniform() -> None:
    """A white pixel tells where a picture went: each of 2 x 3 x 3 places in 1/18 of the draws."""
    num = 18_000
    images_NHWC = torch.zeros(num, 5, 6, 3, dtype=torch.uint8)
    images_NHWC[:, 2, 2] = 255
    out = crop_and_flip(images_NHWC, torch.zeros(3, dtype=torch.uint8), draw(), pad=1, flip=True)
    assert (out.amax((1, 2)) == 255).all()
    place = out[..., 0].flatten(1).argmax(1)
    rows, columns = place // 6, place % 6
    # Without a mirror in columns 1 to 3, mirrored 5 - 1 to 5 - 3: 2 and 3 are met from both sides.
    counts = torch.stack([torch.bincount(columns[rows == row], minlength=6) for row in (1, 2, 3)])
    assert int(counts.sum()) == num
    expected = torch.tensor([0, 1, 2, 2, 1, 0]) * num / 18
    # Four standard deviations of a count.
    assert (abs(counts - expected) <= 4 * (expected * (1 - expected / num)).sqrt()).all(), counts


@pytest.mark.parametrize("pad", [5, 20])
def test_a_window_may_miss_the_picture(pad: int) -> None:
    images_NHWC = torch.zeros(200, 4, 4, 3, dtype=torch.uint8)
    out = crop_and_flip(images_NHWC, FILL, draw(), pad=pad, flip=False)
    outside = (out == FILL).all(-1)
    assert outside.flatten(1).all(1).any()
    assert ((out == 0).all(-1) | outside).all()


# --- squares that are blanked ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_cutout_is_its_slow_twin(seed: int, num: int, height: int, width: int, side: int) -> None:
    """One pixel after the other."""
    x_NCHW = torch.randn(num, 3, height, width, generator=draw(seed))
    generator = draw(seed)
    rows = torch.randint(height, (num,), generator=generator).tolist()
    columns = torch.randint(width, (num,), generator=generator).tolist()
    expected = x_NCHW.clone()
    for image, (row, column) in enumerate(zip(rows, columns, strict=True)):
        for y in range(row - side // 2, row - side // 2 + side):
            for x in range(column - side // 2, column - side // 2 + side):
                if 0 <= y < height and 0 <= x < width:
                    expected[image, :, y, x] = 0
    before = x_NCHW.clone()
    assert torch.equal(cutout(x_NCHW, side, draw(seed)), expected)
    assert torch.equal(x_NCHW, before)


def test_a_square_of_no_side_is_none() -> None:
    x_NCHW = torch.randn(4, 3, 6, 6, generator=draw())
    assert torch.equal(cutout(x_NCHW, 0, draw()), x_NCHW)


def test_squares_are_anywhere_and_as_large_as_asked() -> None:
    """Whole where their middle is far from the edge, else what lies inside; each middle as likely as another."""
    out = cutout(torch.ones(20_000, 3, 6, 6), 2, draw())
    blank = (out == 0).all(1)
    assert torch.equal(blank, (out == 0).any(1))
    count = blank.sum((1, 2))
    # A square of two reaches one pixel up and left of its middle: it is cut in the first row and column alone.
    assert set(count.unique().tolist()) == {1, 2, 4}
    share = [(count == number).double().mean().item() for number in (1, 2, 4)]
    assert share == pytest.approx([1 / 36, 10 / 36, 25 / 36], abs=0.02)
