"""Made-up characters: an embedded twin of Omniglot that needs no download.

A class is two to four pen strokes. A drawing of it moves their control points a little and slants, turns, stretches
and shifts the whole, as another hand would. It is drawn as Omniglot was: a pen of four pixels on a canvas of about
four times the height, then averaged down.

Shapes: C classes, N drawings, S strokes, P points of a stroke, H height, W width, B drawings drawn at once.
"""

import numpy as np

_MAX_STROKES = 4
_CLASS_DRAWS = 1 + _MAX_STROKES * 8
_HAND_DRAWS = 6 + _MAX_STROKES * 10
_BATCH = 256


def strokes(num_classes: int, num_drawings: int = 20, size: int = 28, seed: int = 0) -> np.ndarray:
    """Drawings of made-up characters.

    Class c of a seed is the same whatever the number of classes; a larger number of drawings adds to the first ones.

    Args:
        num_classes: how many characters.
        num_drawings: how many drawings of each.
        size: height and width in pixels.
        seed: not negative; each seed has other characters.

    Returns:
        uint8 ``[num_classes, num_drawings, size, size]``, ink 255 on 0.
    """
    character_CU = np.empty((num_classes, _CLASS_DRAWS))
    hand_CNU = np.empty((num_classes, num_drawings, _HAND_DRAWS))
    for c in range(num_classes):
        character_CU[c] = np.random.default_rng((seed, c, 0)).random(_CLASS_DRAWS)
        hand_CNU[c] = np.random.default_rng((seed, c, 1)).standard_normal((num_drawings, _HAND_DRAWS))
    control_CS42, drawn_CS = _characters(character_CU)
    control_BS42 = _by_hand(control_CS42, hand_CNU).reshape(-1, _MAX_STROKES, 4, 2)
    drawn_BS = np.repeat(drawn_CS, num_drawings, axis=0)
    images_BHW = np.empty((len(control_BS42), size, size), np.uint8)
    for start in range(0, len(images_BHW), _BATCH):
        batch = slice(start, start + _BATCH)
        images_BHW[batch] = _render(control_BS42[batch], drawn_BS[batch], size)
    return images_BHW.reshape(num_classes, num_drawings, size, size)


def _characters(draws_CU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cubic Bezier control points in the unit square ``[C, S, 4, 2]``, and which strokes a class has ``[C, S]``."""
    num_classes = len(draws_CU)
    number_C = 2 + np.floor(draws_CU[:, 0] * (_MAX_STROKES - 1))
    drawn_CS = np.arange(_MAX_STROKES) < number_C[:, None]
    joins, where, x, y, angle, length, bend_1, bend_2 = draws_CU[:, 1:].reshape(num_classes, _MAX_STROKES, 8).T
    control_CS42 = np.empty((num_classes, _MAX_STROKES, 4, 2))
    for s in range(_MAX_STROKES):
        start_C2 = np.stack([x[s], y[s]], -1)
        if s > 0:
            # Half of the strokes set out from the one before.
            on_C2 = np.einsum("ck,ckd->cd", _bernstein(where[s]), control_CS42[:, s - 1])
            start_C2 = np.where(joins[s, :, None] < 0.5, on_C2, start_C2)
        along_C2 = np.stack([np.cos(2 * np.pi * angle[s]), np.sin(2 * np.pi * angle[s])], -1)
        along_C2 *= 0.4 + 0.6 * length[s, :, None]
        across_C2 = along_C2[:, ::-1] * (-1, 1)
        # A third of the strokes are straight.
        bends_C2 = (2.4 * np.stack([bend_1[s], bend_2[s]], -1) - 1.2) * (joins[s, :, None] % 0.25 > 0.08)
        control_CS42[:, s, 0] = start_C2
        control_CS42[:, s, 1] = start_C2 + along_C2 / 3 + across_C2 * bends_C2[:, :1]
        control_CS42[:, s, 2] = start_C2 + along_C2 * 2 / 3 + across_C2 * bends_C2[:, 1:]
        control_CS42[:, s, 3] = start_C2 + along_C2
    points_CSP2 = _bernstein(np.linspace(0, 1, 16)) @ control_CS42
    shown_CSP2 = np.where(drawn_CS[:, :, None, None], points_CSP2, points_CSP2[:, :1, :1])
    low_C2, high_C2 = shown_CSP2.min((1, 2)), shown_CSP2.max((1, 2))
    extent_C = (high_C2 - low_C2).max(1)
    middle_C2 = (low_C2 + high_C2) / 2
    return (control_CS42 - middle_C2[:, None, None]) * (0.66 / extent_C)[:, None, None, None] + 0.5, drawn_CS


def _by_hand(control_CS42: np.ndarray, draws_CNU: np.ndarray) -> np.ndarray:
    """Control points of every drawing ``[C, N, S, 4, 2]``."""
    num_classes, num_drawings = draws_CNU.shape[:2]
    turn, slant, wide, tall = np.moveaxis(draws_CNU[..., :4] * (0.1, 0.12, 0.12, 0.12), -1, 0)
    shift_CN2 = 0.05 * draws_CNU[..., 4:6]
    moves_CNS52 = draws_CNU[..., 6:].reshape(num_classes, num_drawings, _MAX_STROKES, 5, 2)
    # A point of its own, and the whole stroke.
    moved = control_CS42[:, None] + 0.035 * moves_CNS52[..., :4, :] + 0.025 * moves_CNS52[..., 4:, :]
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    zero = np.zeros_like(slant)
    stretch = np.stack([np.stack([np.exp(wide), slant], -1), np.stack([zero, np.exp(tall)], -1)], -2)
    affine_CN22 = rotation @ stretch
    turned = (moved - 0.5) @ affine_CN22[:, :, None].swapaxes(-1, -2)
    return turned + 0.5 + shift_CN2[:, :, None, None]


def _bernstein(t_P: np.ndarray) -> np.ndarray:
    """Weights of the four control points at each curve parameter in [0, 1]: ``[P, 4]``."""
    u_P = 1 - t_P
    return np.stack([u_P**3, 3 * u_P**2 * t_P, 3 * u_P * t_P**2, t_P**3], -1)


def _render(control_BS42: np.ndarray, drawn_BS: np.ndarray, size: int) -> np.ndarray:
    """uint8 ``[B, size, size]``."""
    fine = max(2, round(112 / size))
    side = size * fine
    pen = max(2, round(4 * side / 112))
    # As many points as pixels leave no gap that the pen does not close.
    pixel_BSP2 = np.floor(_bernstein(np.linspace(0, 1, side)) @ control_BS42 * side).astype(np.int64)
    inside_BSP = ((pixel_BSP2 >= 0) & (pixel_BSP2 < side)).all(-1) & drawn_BS[:, :, None]
    image_BSP = np.broadcast_to(np.arange(len(drawn_BS))[:, None, None], inside_BSP.shape)
    ink_BHW = np.zeros((len(drawn_BS), side, side), bool)
    ink_BHW[image_BSP[inside_BSP], pixel_BSP2[inside_BSP, 1], pixel_BSP2[inside_BSP, 0]] = True
    for _ in range(pen - 1):
        ink_BHW[:, :, 1:] |= ink_BHW[:, :, :-1]
        ink_BHW[:, 1:] |= ink_BHW[:, :-1]
    count_BHW = np.add.reduce([ink_BHW[:, row::fine] for row in range(fine)], dtype=np.uint16)
    count_BHW = np.add.reduce([count_BHW[:, :, column::fine] for column in range(fine)])
    return np.rint(count_BHW * np.float32(255 / fine**2)).astype(np.uint8)
