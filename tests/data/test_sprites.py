"""Made-up scenes: what is in them, and that they repeat."""

import numpy as np
import pytest
import torch

from etude.data.sprites import MOST_OBJECTS, sprites


def test_shapes_and_kinds() -> None:
    images, masks = sprites(5, 48, 0)
    assert (images.shape, images.dtype) == ((5, 48, 48, 3), torch.uint8)
    assert (masks.shape, masks.dtype) == ((5, 48, 48), torch.uint8)
    assert sprites(0, 48, 0)[0].shape == (0, 48, 48, 3)


def test_a_larger_count_adds_to_the_first_ones_and_a_seed_changes_all() -> None:
    few, more, other = sprites(3, 32, 0), sprites(70, 32, 0), sprites(3, 32, 1)
    for one, two, three in zip(few, more, other, strict=True):
        assert torch.equal(one, two[:3])
        assert not (one == three).flatten(1).all(1).any()


def test_objects() -> None:
    """From three to eight, without gaps in their numbers, none of them hidden."""
    _, masks = sprites(300, 64, 0)
    counts = []
    for mask in masks.numpy():
        numbers, pixels = np.unique(mask, return_counts=True)
        assert numbers.tolist() == list(range(len(numbers)))
        counts.append(len(numbers) - 1)
        # A third of the smallest shape at a corner of the scene.
        assert pixels[1:].min() >= 10
    assert (min(counts), max(counts)) == (3, MOST_OBJECTS)
    assert 0.4 < (masks == 0).float().mean() < 0.85


@pytest.mark.parametrize("size", [32, 128])
def test_the_scene_is_the_same_at_every_size(size: int) -> None:
    small, large = sprites(4, 16, 0)[1], sprites(4, size, 0)[1]
    counts = [[len(mask.unique()) for mask in masks] for masks in (small, large)]
    agree = (large[:, size // 32 :: size // 16, size // 32 :: size // 16] == small).float().mean()
    # What is seen of an object is counted in pixels, so that a scene may be drawn another way now and then.
    assert agree > 0.8 or counts[0] != counts[1]


def test_colour_alone_does_not_tell_an_object() -> None:
    """Within a texture pixels differ more than half as much as textures do."""
    images, masks = sprites(40, 64, 0)
    within, means = [], []
    for image, mask in zip(images.float(), masks, strict=True):
        for number in mask.unique():
            part = image[mask == number]
            within.append(part.std(0).mean())
            means.append(part.mean(0))
    assert torch.stack(within).mean() > 0.5 * torch.stack(means).std(0).mean()
    assert torch.stack(within).min() > 1, "no plain colours"
