"""Made-up towns from above: aerial photos with their maps, an embedded twin of the maps pairs that needs no download.

Streets cross at right angles in a grid that is turned; a main road, a river, a park and houses lie in it. The photo
has shading, roofs of many colours, trees and noise, none of which the map has: what a network must learn is which
surface is which, and to leave the rest out.

Shapes: N tiles, U draws of a tile, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor

_DRAWS = 24
_FINE = 2
"""Points a side of a pixel, averaged."""
_BATCH = 32
_SPACING = 0.52
"""The largest spacing of the streets; the tile is 2 wide."""

# What lies where; later ones lie over earlier ones. In the map, then in the photo.
_MAP = np.array(
    [[242, 239, 233], [226, 222, 214], [197, 226, 178], [255, 255, 255], [170, 211, 237], [250, 213, 120]], np.float32
)
_PHOTO = np.array(
    [[128, 122, 92], [150, 120, 108], [72, 98, 58], [112, 112, 114], [44, 66, 88], [134, 132, 130]], np.float32
)
_HOUSE, _PARK, _STREET, _RIVER, _ROAD = range(1, 6)


def tiles(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Photos and maps.

    A larger ``count`` adds to the first ones.

    Args:
        count: N.
        size: height and width in pixels.
        seed: not negative; each seed has other towns, for splits.

    Returns:
        uint8 ``[N, size, size, 3]`` photos, and the same of their maps.
    """
    photos, maps = (np.empty((count, size, size, 3), np.uint8) for _ in range(2))
    draws_NU = np.random.default_rng((seed, 0)).random((count, _DRAWS))
    noise = np.random.default_rng((seed, 1))
    for start in range(0, count, _BATCH):
        rows = slice(start, start + _BATCH)
        photos[rows], maps[rows] = _drawn(draws_NU[rows], size, noise)
    return torch.from_numpy(photos), torch.from_numpy(maps)


def _drawn(draws_NU: np.ndarray, size: int, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    count, fine = len(draws_NU), size * _FINE
    # From -1 to 1 across the tile.
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    draws = draws_NU.astype(np.float32).T[:, :, None, None]
    turn, spacing, shift_u, shift_v, bend, wave, place, width, park_u, park_v, park, town, road, light = draws[:14]

    cos, sin = np.cos(np.pi * turn), np.sin(np.pi * turn)
    block = _SPACING * (0.6 + 0.4 * spacing)
    u, v = (cos * x + sin * y) / block + shift_u, (cos * y - sin * x) / block + shift_v
    in_u, in_v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5

    what = np.zeros((count, fine, fine), np.int64)
    # Four lots a block; a fixed number of each lot says whether a house stands there, and of which colour.
    lot = _hashed(np.floor(2 * u), np.floor(2 * v), town)
    edge = np.maximum(abs(abs(in_u) - 0.25), abs(abs(in_v) - 0.25))
    what[(edge < 0.09 + 0.06 * lot) & (lot < 0.75)] = _HOUSE
    in_park = np.hypot(u - 3 * park_u, v - 3 * park_v) < 0.4 + 0.9 * park
    what[in_park] = _PARK
    what[(np.maximum(abs(in_u), abs(in_v)) > 0.44) & ~in_park] = _STREET
    # The river winds across the streets; the main road bridges it.
    across = cos * x - sin * y + 0.2 * np.sin(3 * (sin * x + cos * y) * (0.5 + wave) + 6 * bend) - 1.4 * (place - 0.5)
    what[abs(across) < 0.05 + 0.12 * width] = _RIVER
    what[abs(v - np.floor(2.5 * road) - 0.5 * (road < 0.5)) < 0.1] = _ROAD

    maps = _averaged(_MAP[what])
    photo = _PHOTO[what]
    roofs = np.stack([_hashed(lot * 97, channel * np.ones_like(lot), town) for channel in range(3)], -1) - 0.5
    photo += 110 * roofs * (what == _HOUSE)[..., None]
    # Trees: dark blobs on what is green or bare.
    leaves = np.sin(31 * u + 5 * np.sin(7 * v)) * np.sin(29 * v + 5 * np.sin(9 * u))
    growing = (what == _PARK) | (what == 0)
    photo -= 26 * (growing & (leaves > 0.25))[..., None]
    photo = _averaged(photo) * (0.85 + 0.3 * light[..., None])
    photo += 9 * noise.standard_normal(photo.shape, np.float32)
    return tuple(np.rint(np.clip(picture, 0, 255)).astype(np.uint8) for picture in (photo, maps))  # pyright: ignore[reportReturnType]


def _hashed(u: np.ndarray, v: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 for each pair of numbers, the same wherever the pair stands."""
    # In double precision: processors differ in the last digit of a sine.
    mixed = np.sin(12.9898 * u.astype(np.float64) + 78.233 * v + 100 * salt) * 437.5453
    return (mixed - np.floor(mixed)).astype(np.float32)


def _averaged(fine_NHWC: np.ndarray) -> np.ndarray:
    """The mean of the points of each pixel."""
    count, side, _, channels = fine_NHWC.shape
    shape = (count, side // _FINE, _FINE, side // _FINE, _FINE, channels)
    return fine_NHWC.reshape(shape).mean((2, 4), dtype=np.float32)
