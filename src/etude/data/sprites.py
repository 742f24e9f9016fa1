"""Made-up scenes of textured shapes with their masks: an embedded twin of CLEVRTex that needs no renderer.

As in CLEVRTex (Karazija et al. 2021) every object and the ground have a texture of their own, so that colour alone does
not tell what belongs together; objects cover each other and none is hidden. Unlike there, all is flat.

Shapes: N scenes, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor

MOST_OBJECTS = 8
KINDS = ("disc", "square", "triangle", "ring")
_FEWEST_OBJECTS = 3
_BATCH = 64
_WAVES = 3
"""The waves of a texture."""
_RADIUS = (0.16, 0.32)
"""The least and largest radius of an object; a scene is 2 wide."""
_VISIBLE = 0.3
"""Share of an object that must be seen."""
_TRIES = 60
_NUMBERS = 6 + 4 * _WAVES
"""Random numbers of a texture: two colours, and angle, frequency, phase and strength of each wave."""


def sprites(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes and their masks.

    A larger ``count`` adds to the first ones.

    Args:
        count: N.
        size: height and width in pixels.
        seed: not negative; each seed has other scenes, for splits.

    Returns:
        uint8 ``[N, size, size, 3]``, and uint8 ``[N, size, size]``: 0 the ground, objects from 1.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    for start in range(0, count, _BATCH):
        rows = slice(start, min(start + _BATCH, count))
        scenes = [_objects(np.random.default_rng((seed, number)), size) for number in range(rows.start, rows.stop)]
        masks[rows] = np.stack([mask for mask, _ in scenes])
        textures = np.stack([numbers for _, numbers in scenes])
        images[rows] = _painted(masks[rows], textures, size)
    return torch.from_numpy(images), torch.from_numpy(masks)


def _objects(draw: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene's mask ``[size, size]``, and the random numbers of its textures, the ground's first."""
    wanted = int(draw.integers(_FEWEST_OBJECTS, MOST_OBJECTS + 1))
    textures = draw.random((MOST_OBJECTS + 1, _NUMBERS))
    mask, areas = np.zeros((size, size), np.uint8), [0]
    for _ in range(_TRIES):
        if len(areas) > wanted:
            break
        inside = _shape(draw, size)
        after = np.where(inside, len(areas), mask)
        seen = np.bincount(after.ravel(), minlength=len(areas) + 1)[1:]
        if (seen >= _VISIBLE * np.array([*areas[1:], inside.sum()])).all():
            mask = after.astype(np.uint8)
            areas.append(int(inside.sum()))
    return mask, textures


def _shape(draw: np.random.Generator, size: int) -> np.ndarray:
    """The pixels that a random shape covers, bool ``[size, size]``."""
    kind = KINDS[int(draw.integers(len(KINDS)))]
    x_0, y_0 = draw.uniform(-0.85, 0.85, 2)
    radius, turn = draw.uniform(*_RADIUS), draw.uniform(0, 2 * np.pi)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (axis[None, :] - x_0) / radius, (axis[:, None] - y_0) / radius
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if kind == "square":
        # Of a disc's area.
        return np.maximum(abs(u), abs(v)) < 0.886
    if kind == "triangle":
        return np.maximum.reduce([v, -0.5 * v + 0.866 * u, -0.5 * v - 0.866 * u]) < 0.65
    distance = np.hypot(u, v)
    return (distance < 1.1) & (distance > 0.45) if kind == "ring" else distance < 1


def _painted(masks_NHW: np.ndarray, textures_NOT: np.ndarray, size: int) -> np.ndarray:
    """Every pixel between two colours of its object, by waves that cross."""
    numbers = np.take_along_axis(textures_NOT, masks_NHW.reshape(len(masks_NHW), -1, 1).astype(np.int64), 1)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (part.ravel() for part in np.meshgrid(axis, axis))
    value = np.zeros(numbers.shape[:2])
    for wave in range(_WAVES):
        turn, frequency, phase, strength = (numbers[..., 6 + 4 * wave + part] for part in range(4))
        along = np.cos(np.pi * turn) * x + np.sin(np.pi * turn) * y
        value += (0.3 + strength) * np.sin((4 + 22 * frequency) * along + 2 * np.pi * phase)
    share = 0.5 + 0.5 * np.tanh(1.5 * value)[..., None]
    light, dark = 0.25 + 0.75 * numbers[..., :3], 0.7 * numbers[..., 3:6]
    colours = 255 * (share * light + (1 - share) * dark)
    return np.rint(colours).astype(np.uint8).reshape(*masks_NHW.shape, 3)
