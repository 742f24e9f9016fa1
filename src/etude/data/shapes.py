"""Made-up photos: an embedded twin of a folder of species that needs no download.

The class is a shape, from the eleventh class on a shape with a pattern. Colour, place, scale, turn, background and
noise say nothing about it: no single pixel does, so that a network has to learn edges and their arrangement.

Shapes: N images of a class, U draws of an image, H height, W width.
"""

import numpy as np
import torch

from etude.data.labelled import LabelledImages

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bars", "ellipse", "star", "crescent", "checker")
CLASSES = (*SHAPES, *(f"hatched-{shape}" for shape in SHAPES), *(f"dotted-{shape}" for shape in SHAPES[:5]))
_DRAWS = 16
_FINE = 2
"""Points a side of a pixel, averaged."""
_BATCH = 256


def shapes(num_classes: int, num_each: int, size: int, seed: int) -> LabelledImages:
    """Pictures of shapes, as many of each class, by class.

    Class c of a seed is the same whatever the number of classes; a larger ``num_each`` adds to the first ones.

    Args:
        num_classes: 1 to 25.
        num_each: images a class.
        size: height and width in pixels.
        seed: not negative; each seed has other pictures of the same classes, for splits.
    """
    assert 1 <= num_classes <= len(CLASSES)
    images = np.empty((num_classes, num_each, size, size, 3), np.uint8)
    for c in range(num_classes):
        draws_NU = np.random.default_rng((seed, c, 0)).random((num_each, _DRAWS))
        noise = np.random.default_rng((seed, c, 1))
        for start in range(0, num_each, _BATCH):
            rows = slice(start, start + _BATCH)
            images[c, rows] = _pictures(c, draws_NU[rows], size, noise)
    return LabelledImages(
        torch.from_numpy(images).flatten(0, 1),
        torch.arange(num_classes).repeat_interleave(num_each),
        CLASSES[:num_classes],
        tuple(f"{name}/{number:05d}" for name in CLASSES[:num_classes] for number in range(num_each)),
    )


def _pictures(c: int, draws_NU: np.ndarray, size: int, noise: np.random.Generator) -> np.ndarray:
    """uint8 ``[N, size, size, 3]`` of one class."""
    # From -1 to 1 across the picture.
    axis = ((np.arange(size * _FINE) + 0.5) / (size * _FINE) * 2 - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    draws = draws_NU.astype(np.float32).T[:, :, None, None]
    place_x, place_y, scale, turn, tilt, wave, phase = draws[:7]

    radius = 0.45 + 0.3 * scale
    x_of, y_of = x - 0.25 * (2 * place_x - 1), y - 0.25 * (2 * place_y - 1)
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    u, v = (cos * x_of + sin * y_of) / radius, (cos * y_of - sin * x_of) / radius
    inside = _averaged(_inside(c % 10, u, v))
    second = _averaged(_pattern(c // 10, u, v))

    # A background of slanted waves between two dark colours; the shape is brighter in every channel.
    coarse = axis.reshape(size, _FINE).mean(1)
    along = np.cos(2 * np.pi * tilt) * coarse[None, None, :] + np.sin(2 * np.pi * tilt) * coarse[None, :, None]
    waves = (0.5 + 0.5 * np.sin(along * (4 + 12 * wave) + 2 * np.pi * phase))[..., None]
    ground, shift, bright = (draws_NU[:, first : first + 3].astype(np.float32)[:, None, None] for first in (7, 10, 13))
    back = 0.5 * ground + 0.3 * (shift - 0.5) * waves
    colour = 0.5 * ground + 0.2 + 0.3 * bright
    fill = colour + (1 - colour) * 0.7 * second[..., None]
    picture = back + (fill - back) * inside[..., None]
    picture += 0.05 * noise.standard_normal(picture.shape, np.float32)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _inside(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The points of the shape's own square, -1 to 1, that it covers."""
    match SHAPES[shape]:
        case "disc":
            return u**2 + v**2 < 0.85
        case "square":
            return np.maximum(abs(u), abs(v)) < 0.8
        case "triangle":
            # Three sides at equal distance of the middle.
            return np.maximum(v, 0.866 * abs(u) - 0.5 * v) < 0.5
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 1)
        case "ring":
            return abs(np.hypot(u, v) - 0.75) < 0.22
        case "bars":
            return (np.maximum(abs(u), abs(v)) < 0.9) & (np.cos(2 * np.pi * u / 0.72) > 0)
        case "ellipse":
            return u**2 + (v / 0.42) ** 2 < 1.1
        case "star":
            return np.hypot(u, v) < 0.68 + 0.36 * np.cos(5 * np.arctan2(v, u))
        case "crescent":
            return (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.64)
        case "checker":
            return (np.maximum(abs(u), abs(v)) < 0.9) & (u * v > 0)
    raise AssertionError(shape)


def _pattern(pattern: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The points of the shape that have its second colour: none, stripes, dots."""
    if pattern == 0:
        return np.zeros_like(u, bool)
    if pattern == 1:
        return np.sin(2 * np.pi * v / 0.5) > 0
    return np.cos(2 * np.pi * u / 0.6) + np.cos(2 * np.pi * v / 0.6) > 0.6


def _averaged(fine_NHW: np.ndarray) -> np.ndarray:
    """The share of each pixel that is covered."""
    count, side, _ = fine_NHW.shape
    return fine_NHW.reshape(count, side // _FINE, _FINE, side // _FINE, _FINE).mean((2, 4), dtype=np.float32)
