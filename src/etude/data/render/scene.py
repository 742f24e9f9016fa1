"""The contents of a scene, in numbers, drawn without Blender.

Karazija, Laina and Rupprecht 2021, "ClevrTex: a texture-rich benchmark for unsupervised multi-object segmentation",
section 3 and its published generator; camera and lamps are those of CLEVR (Johnson et al. 2017). Where this differs:

- materials are pictures of a user's folder or made-up patterns; the published ones are 60 scans that must be fetched;
- surfaces are not displaced: a relief only turns the light;
- the number of objects is drawn once, so that all of 3 to 10 are equally common; a crowded scene that hides an object
  is drawn again with the same number.

Lengths are in Blender's units, angles in radians unless a name says degrees.
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

Shape = Literal["cube", "cylinder", "sphere", "monkey", "cone", "torus", "icosahedron"]
Pattern = Literal["image", "noise", "voronoi", "wave", "brick", "checker", "magic"]
Triple = tuple[float, float, float]

_T = TypeVar("_T")

SHAPES: tuple[Shape, ...] = get_args(Shape)
PUBLISHED: tuple[Shape, ...] = SHAPES[:4]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)[1:]
RADII = {"large": 0.9, "medium": 0.6, "small": 0.4}
FEWEST, MOST = 3, 10
REACH = 3.0
"""Centres lie within this of the middle, on both axes."""
MARGIN = 0.1
"""Free ground between any two objects."""
PLACEMENTS = 50
"""Tries to place one object before its scene is drawn anew."""
ATTEMPTS = 2000
"""Drawings of one scene before it is given up; one in which every object is seen comes within a few dozen."""
CAMERA: Triple = (7.4811, -6.5076, 5.3437)
LENS = 35.0
SENSOR = 32.0
"""Millimetres, as the lens; the sensor's width is that of the whole frame."""
CAMERA_JITTER = 0.5
LAMP_JITTER = 1.0
FRAME = (320, 240)
"""Pixels of the published frame, width and height; its middle `CROP` x `CROP` is the picture."""
CROP = 192
LEAST_PIXELS = 200
"""Pixels of the frame that must show each object."""
# The lens sees 32 mm over 320 pixels, so 19.2 mm over the middle 192: a square sensor of that width is the same view.
CROP_SENSOR = SENSOR * CROP / FRAME[0]


@dataclass(frozen=True)
class Material:
    """A surface.

    Attributes:
        name: the picture's within its folder, or the pattern's.
        pattern: what gives the colour.
        colours: linear RGB from 0 to 1; of a pattern.
        scale: repeats in a unit of length.
        turn: Euler angles of the pattern within the object.
        shift: the pattern's, in repeats.
        roughness: 0 is a mirror.
        metallic: 1 for a metal, 0 for anything else.
        bump: strength of the relief that follows the pattern, from 0 to 1.
    """

    name: str
    pattern: Pattern
    colours: tuple[Triple, Triple, Triple]
    scale: float
    turn: Triple
    shift: Triple
    roughness: float
    metallic: float
    bump: float


@dataclass(frozen=True)
class Thing:
    """An object; its number is its value in the mask.

    Attributes:
        number: from 1.
        shape: its primitive.
        size: the name of its radius.
        radius: the circle's on the ground that it stands in; `MARGIN` is kept between these circles.
        scale: the primitive's, which is two units wide: the radius, and of a cube the radius over the root of 2.
        position: its centre; the height is the scale, so that it stands on the ground.
        yaw_degrees: its turn about the vertical.
        material: its surface.
    """

    number: int
    shape: Shape
    size: str
    radius: float
    scale: float
    position: Triple
    yaw_degrees: float
    material: Material


@dataclass(frozen=True)
class Lamp:
    """A square area light that looks at the middle.

    Attributes:
        name: its part in the three-point lighting.
        position: its centre.
        watts: its power.
        side: its width.
        colour: linear RGB.
    """

    name: str
    position: Triple
    watts: float
    side: float
    colour: Triple


LAMPS = (
    Lamp("key", (6.4467, -2.9052, 4.2584), 393.0, 0.5, (1.0, 0.932, 0.867)),
    Lamp("fill", (-4.6711, -4.0136, 3.0112), 157.0, 0.2, (0.762, 0.818, 1.0)),
    Lamp("back", (-1.1685, 2.6460, 5.8157), 275.0, 1.0, (1.0, 1.0, 1.0)),
)
"""Before the jitter."""


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        seed: the set's.
        number: within the set, from 0.
        attempt: how many drawings came before this one.
        objects: as many as the mask has numbers.
        ground: the surface below them.
        camera: where it is; it looks at the middle.
        lamps: three.
    """

    seed: int
    number: int
    attempt: int
    objects: tuple[Thing, ...]
    ground: Material
    camera: Triple
    lamps: tuple[Lamp, ...]


def drawings(
    seed: int, number: int, shapes: Sequence[Shape] = PUBLISHED, textures: Sequence[str] = ()
) -> Iterator[Scene]:
    """Drawings of one scene, of which the first that shows every object is the one.

    They depend on the arguments alone, so that more scenes can be added to a set.

    Args:
        seed: the set's, not negative.
        number: the scene's, not negative.
        shapes: to choose from.
        textures: names of pictures to choose from; made-up patterns where there is none.
    """
    # NumPy pads a key with zeros: (a, b) would be (a, b, 0).
    count = int(np.random.default_rng((seed, number, 0)).integers(FEWEST, MOST + 1))
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((seed, number, 1 + attempt))
        things = _placed(rng, count, shapes, textures)
        if things is None:
            continue
        yield Scene(
            seed,
            number,
            attempt,
            objects=things,
            ground=_material(rng, textures, of_ground=True),
            camera=_jittered(rng, CAMERA, CAMERA_JITTER),
            lamps=tuple(
                Lamp(lamp.name, _jittered(rng, lamp.position, LAMP_JITTER), lamp.watts, lamp.side, lamp.colour)
                for lamp in LAMPS
            ),
        )


def _placed(
    rng: np.random.Generator, count: int, shapes: Sequence[Shape], textures: Sequence[str]
) -> tuple[Thing, ...] | None:
    """Objects with room between them, or None where one found no place."""
    things: list[Thing] = []
    for number in range(1, count + 1):
        size = _choice(rng, tuple(RADII))
        shape, radius = _choice(rng, shapes), RADII[size]
        for _ in range(PLACEMENTS):
            x, y = (float(value) for value in rng.uniform(-REACH, REACH, 2))
            others = ((math.hypot(x - thing.position[0], y - thing.position[1]), thing.radius) for thing in things)
            if all(away - radius - other > MARGIN for away, other in others):
                break
        else:
            return None
        # A cube's corners reach the root of 2 times as far as its faces.
        scale = radius / math.sqrt(2) if shape == "cube" else radius
        yaw = float(rng.uniform(0, 360))
        material = _material(rng, textures, of_ground=False)
        things.append(Thing(number, shape, size, radius, scale, (x, y, scale), yaw, material))
    return tuple(things)


def _material(rng: np.random.Generator, textures: Sequence[str], *, of_ground: bool) -> Material:
    # Every draw is made for every kind: a folder of pictures moves no object.
    which, pattern = float(rng.random()), _choice(rng, PATTERNS)
    name = textures[int(which * len(textures))] if textures else ""
    first, second, third = _colour(rng), _colour(rng), _colour(rng)
    repeats, roughness, metallic, bump = (float(value) for value in rng.random(4))
    x, y, z = (float(value) for value in rng.uniform(-math.pi, math.pi, 3))
    shift = tuple(float(value) for value in rng.uniform(0, 10, 3))
    if name:
        # Repeats of a picture: one in two to seven units of the ground, one to three across an object.
        scale = 1 / (2 + 5 * repeats) if of_ground else 0.5 + repeats
        # A picture is laid on from the sides (box projection): it turns as a whole.
        turn = (0.0, 0.0, z)
    else:
        scale = 0.2 + 0.8 * repeats if of_ground else 0.8 + 2.2 * repeats
        turn = (0.0, 0.0, z) if of_ground else (x, y, z)
    return Material(
        name=name or pattern,
        pattern="image" if name else pattern,
        colours=(first, second, third),
        scale=scale,
        turn=turn,
        shift=(shift[0], shift[1], shift[2]),
        # A polished ground would mirror the objects, which the published ones do not.
        roughness=0.5 + 0.5 * roughness if of_ground else 0.15 + 0.75 * roughness,
        metallic=float(metallic < 0.15 and not of_ground),
        bump=0.5 * bump,
    )


def _colour(rng: np.random.Generator) -> Triple:
    hue, saturation, value = (float(draw) for draw in rng.random(3))
    return colorsys.hsv_to_rgb(hue, 0.95 * math.sqrt(saturation), 0.02 + 0.6 * value * value)


def _jittered(rng: np.random.Generator, place: Triple, most: float) -> Triple:
    x, y, z = (float(value) for value in rng.uniform(-most, most, 3))
    return (place[0] + x, place[1] + y, place[2] + z)


def _choice(rng: np.random.Generator, of: Sequence[_T]) -> _T:
    return of[int(rng.integers(len(of)))]
