"""Scenes rendered by Blender's Cycles on the CPU.

Everything is made in code: primitives, patterns, lamps. One `Studio` renders scene after scene in one Blender; there
can be one a process. Nothing here is imported with the package: Blender is an extra (`uv sync --extra render`).

Shapes: H height, W width.
"""

import contextlib
import functools
import importlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from etude.core.errors import UserError, extra
from etude.data.images import read_image
from etude.data.render.scene import (
    CROP_SENSOR,
    FRAME,
    LEAST_PIXELS,
    LENS,
    SENSOR,
    Material,
    Scene,
    Shape,
    drawings,
)

BOUNCES = 4
_LARGEST_TEXTURE = 1024
_GROUND = 60.0
"""Width of the ground; its end is never in view."""
_SUN = ((0.414, -0.195, 0.889), 0.85)
"""The sun's place, and its watts a square metre; the published scene has it beside the three lamps."""
_LAYER = "layer"
_PATTERNS: dict[str, tuple[str, dict[str, float], tuple[str, ...]]] = {
    "image": ("Image", {}, ()),
    "noise": ("Noise", {"Scale": 2.0, "Detail": 5.0, "Distortion": 0.5}, ()),
    "voronoi": ("Voronoi", {"Scale": 2.0}, ()),
    "wave": ("Wave", {"Scale": 1.0, "Distortion": 6.0, "Detail": 2.0}, ()),
    "magic": ("Magic", {"Scale": 2.0}, ()),
    "brick": ("Brick", {"Scale": 1.5}, ("Color1", "Color2", "Mortar")),
    "checker": ("Checker", {"Scale": 1.5}, ("Color1", "Color2")),
}
"""Blender's texture of each pattern, its numbers, and the names of its own colours."""


@dataclass(frozen=True)
class Rendered:
    """A scene's picture and mask.

    Attributes:
        scene: what it shows.
        image: uint8 ``[H, W, 3]``.
        mask: uint8 ``[H, W]``: 0 is the ground, other values are the objects' numbers.
        pixels: counts of each object in the mask; 0 for one beside the crop.
        frame_pixels: counts of each object in the 320 x 240 frame, of which the picture is the middle; at least 200.
    """

    scene: Scene
    image: np.ndarray
    mask: np.ndarray
    pixels: tuple[int, ...]
    frame_pixels: tuple[int, ...]


class Studio:
    """A Blender with an empty set, a camera and the primitives.

    Args:
        textures: the folder that materials' names are in, where they are pictures.
        size: the pictures' side, in pixels.
        samples: paths of light a pixel, before the denoiser.

    Raises:
        UserError: Blender cannot be loaded.
    """

    def __init__(self, textures: Path | None, size: int, samples: int) -> None:
        self.textures, self.size, self.samples = textures, size, samples
        self.bpy = bpy = _loaded("bpy")
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.stage: Any = bpy.context.scene
        self.meshes: dict[str, Any] = {}
        self.camera = self._add("camera", bpy.data.cameras.new("camera"))
        self.camera.data.lens, self.camera.data.sensor_fit = LENS, "HORIZONTAL"
        self.stage.camera = self.camera
        stage = self.stage
        stage.render.engine = "CYCLES"
        stage.render.resolution_percentage = 100
        # The denoiser's last bit depends on how many threads there are, and small pictures gain little from a second.
        stage.render.threads_mode, stage.render.threads = "FIXED", 1
        stage.render.film_transparent = False
        stage.cycles.device = "CPU"
        stage.cycles.use_adaptive_sampling = False
        stage.cycles.max_bounces = BOUNCES
        stage.cycles.diffuse_bounces = stage.cycles.glossy_bounces = BOUNCES // 2
        stage.cycles.caustics_reflective = stage.cycles.caustics_refractive = False
        stage.cycles.sample_clamp_indirect = 10.0
        stage.cycles.denoiser = "OPENIMAGEDENOISE"
        # As in the published scene.
        stage.view_settings.view_transform, stage.view_settings.look = "Filmic", "Very High Contrast"
        stage.view_layers[0].name = _LAYER
        stage.view_layers[0].use_pass_object_index = True
        black = bpy.data.worlds.new("black")
        black.use_nodes = True
        black.node_tree.nodes["Background"].inputs["Strength"].default_value = 0.0
        stage.world = black
        sun = self._add("sun", bpy.data.lights.new("sun", "SUN"))
        sun.data.energy, sun.data.angle = _SUN[1], 0.1
        self._look(sun, _SUN[0])

    def render(self, seed: int, number: int, shapes: Sequence[Shape], textures: Sequence[str]) -> Rendered:
        """The first drawing of a scene in which every object is seen.

        Raises:
            UserError: a texture cannot be read, or no drawing will do.
        """
        for scene in drawings(seed, number, shapes, textures):
            self._clear()
            things = self._build(scene)
            frame_pixels = self._counts(self._mask(*FRAME, SENSOR), len(things))
            if min(frame_pixels) >= LEAST_PIXELS:
                break
        else:
            raise UserError(f"scene {number} of seed {seed} found no place for its objects: choose another --seed")
        mask_HW = self._mask(self.size, self.size, CROP_SENSOR)
        for thing, made in zip(scene.objects, things, strict=True):
            self._cover(made, thing.material, 1 / thing.scale)
        self._cover(self.stage.objects["ground"], scene.ground, 1.0)
        image_HW3 = self._picture(number)
        self._clear()
        return Rendered(scene, image_HW3, mask_HW, self._counts(mask_HW, len(things)), frame_pixels)

    # --- objects ---

    def _build(self, scene: Scene) -> list[Any]:
        self.camera.location = scene.camera
        self._look(self.camera, scene.camera)
        for lamp in scene.lamps:
            made = self._add(lamp.name, self.bpy.data.lights.new(lamp.name, "AREA"))
            made.data.energy, made.data.size, made.data.color = lamp.watts, lamp.side, lamp.colour
            made.location = lamp.position
            self._look(made, lamp.position)
        self._add("ground", self._mesh("ground")).pass_index = 0
        things: list[Any] = []
        for thing in scene.objects:
            made = self._add(f"object {thing.number}", self._mesh(thing.shape))
            made.location = thing.position
            made.scale = (thing.scale,) * 3
            made.rotation_euler = (0.0, 0.0, math.radians(thing.yaw_degrees))
            made.pass_index = thing.number
            things.append(made)
        return things

    def _add(self, name: str, data: Any) -> Any:
        made = self.bpy.data.objects.new(name, data)
        self.stage.collection.objects.link(made)
        return made

    def _look(self, thing: Any, at: Sequence[float]) -> None:
        """Turn what stands at a place to the middle."""
        vector = importlib.import_module("mathutils").Vector(at)
        thing.rotation_euler = (-vector).to_track_quat("-Z", "Y").to_euler()

    def _mesh(self, shape: str) -> Any:
        """A primitive, two units wide and standing on -1; made once, then shared by all scenes."""
        if shape not in self.meshes:
            self.meshes[shape] = _primitive(self.bpy, shape)
        return self.meshes[shape]

    def _clear(self) -> None:
        """Remove a scene's objects, lamps, surfaces and pictures; Blender keeps what is not removed."""
        data = self.bpy.data
        keep = {"camera", "sun"}
        data.batch_remove([thing for thing in data.objects if thing.name not in keep])
        data.batch_remove([lamp for lamp in data.lights if lamp.name not in keep])
        data.batch_remove(list(data.materials))
        data.batch_remove([image for image in data.images if image.type == "IMAGE"])

    # --- surfaces ---

    def _cover(self, thing: Any, material: Material, per_unit: float) -> None:
        """Give an object its surface.

        Args:
            thing: made of a mesh that others share, so that the surface is the object's.
            material: what it is.
            per_unit: units of the mesh in a unit of length; patterns are laid on in the mesh's.
        """
        made = self.bpy.data.materials.new(material.name)
        made.use_nodes = True
        nodes, link = made.node_tree.nodes, made.node_tree.links.new
        surface = nodes["Principled BSDF"]
        surface.inputs["Roughness"].default_value = material.roughness
        surface.inputs["Metallic"].default_value = material.metallic
        where, mapping = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
        mapping.inputs["Location"].default_value = material.shift
        mapping.inputs["Rotation"].default_value = material.turn
        mapping.inputs["Scale"].default_value = (material.scale / per_unit,) * 3
        link(where.outputs["Object"], mapping.inputs["Vector"])
        pattern = self._pattern(nodes, material)
        link(mapping.outputs["Vector"], pattern.inputs["Vector"])
        height = pattern.outputs["Color"]
        if material.pattern in ("noise", "voronoi", "wave", "magic"):
            ramp = nodes.new("ShaderNodeValToRGB")
            first, last = ramp.color_ramp.elements
            first.position, last.position = 0.3, 0.7
            middle = ramp.color_ramp.elements.new(0.5)
            for element, colour in zip((first, middle, last), material.colours, strict=True):
                element.color = (*colour, 1.0)
            height = next(output for output in pattern.outputs if output.name in ("Fac", "Distance"))
            link(height, ramp.inputs["Fac"])
            link(ramp.outputs["Color"], surface.inputs["Base Color"])
        else:
            link(pattern.outputs["Color"], surface.inputs["Base Color"])
        bump = nodes.new("ShaderNodeBump")
        bump.inputs["Strength"].default_value = material.bump
        bump.inputs["Distance"].default_value = 0.05
        link(height, bump.inputs["Height"])
        link(bump.outputs["Normal"], surface.inputs["Normal"])
        if not thing.material_slots:
            thing.data.materials.append(None)
        thing.material_slots[0].link = "OBJECT"
        thing.material_slots[0].material = made

    def _pattern(self, nodes: Any, material: Material) -> Any:
        kind, numbers, colours = _PATTERNS[material.pattern]
        node = nodes.new(f"ShaderNodeTex{kind}")
        for name, value in numbers.items():
            node.inputs[name].default_value = value
        for name, colour in zip(colours, material.colours, strict=False):
            node.inputs[name].default_value = (*colour, 1.0)
        if kind == "Magic":
            node.turbulence_depth = 3
        if kind == "Image":
            node.image = self._read(material.name)
            node.projection, node.projection_blend = "BOX", 0.2
        return node

    def _read(self, name: str) -> Any:
        # Read by our own reader: Blender shows what it cannot read as plain magenta.
        assert self.textures is not None
        picture = Image.fromarray(read_image(self.textures / name, "RGB", min_side=_LARGEST_TEXTURE))
        picture.thumbnail((_LARGEST_TEXTURE, _LARGEST_TEXTURE))
        made = self.bpy.data.images.new(name, *picture.size)
        rgba = np.ones((picture.height, picture.width, 4), np.float32)
        # Blender's rows go upwards.
        rgba[::-1, :, :3] = np.asarray(picture, np.float32) / 255
        made.pixels.foreach_set(rgba.ravel())
        made.pack()
        return made

    # --- passes ---

    def _mask(self, width: int, height: int, sensor: float) -> np.ndarray:
        """The number of the object that is seen at each pixel's middle: uint8 ``[H, W]``."""
        stage = self.stage
        stage.cycles.samples, stage.cycles.use_denoising = 1, False
        # One ray a pixel, through its middle: no pixel can hold a mixture, nor its neighbour's number.
        stage.cycles.pixel_filter_type, stage.cycles.filter_width = "BOX", 0.01
        stage.cycles.max_bounces = 0
        stage.render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
        with (
            self._shot("mask.exr", width, height, sensor) as path,
            _loaded("OpenEXR").File(str(path), separate_channels=True) as file,
        ):
            values_HW = np.array(file.channels()[f"{_LAYER}.IndexOB.X"].pixels)
        mask_HW = values_HW.astype(np.uint8)
        assert values_HW.shape == (height, width)
        assert np.array_equal(mask_HW, values_HW), "a mask holds whole numbers"
        return mask_HW

    def _picture(self, number: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``."""
        stage = self.stage
        stage.cycles.samples, stage.cycles.use_denoising = self.samples, True
        stage.cycles.pixel_filter_type, stage.cycles.filter_width = "BLACKMAN_HARRIS", 1.5
        stage.cycles.max_bounces = BOUNCES
        stage.cycles.seed = number % 2**31
        stage.render.image_settings.file_format = "PNG"
        stage.render.image_settings.color_mode = "RGB"
        with self._shot("image.png", self.size, self.size, CROP_SENSOR) as path:
            return read_image(path, "RGB")

    @contextlib.contextmanager
    def _shot(self, name: str, width: int, height: int, sensor: float) -> Iterator[Path]:
        """Render into a file that is there for a while."""
        stage = self.stage
        stage.render.resolution_x, stage.render.resolution_y = width, height
        self.camera.data.sensor_width = sensor
        with tempfile.TemporaryDirectory() as folder:
            stage.render.filepath = str(Path(folder) / name)
            self.bpy.ops.render.render(write_still=True)
            yield Path(folder) / name

    @staticmethod
    def _counts(mask_HW: np.ndarray, count: int) -> tuple[int, ...]:
        return tuple(np.bincount(mask_HW.ravel(), minlength=count + 1)[1 : count + 1].tolist())


def _primitive(bpy: Any, shape: str) -> Any:
    """A mesh within a circle of radius 1, a cube's faces between -1 and 1, standing on -1."""
    bmesh = importlib.import_module("bmesh")
    made = bmesh.new()
    smooth = shape not in ("cube", "icosahedron", "ground")
    match shape:
        case "ground":
            bmesh.ops.create_grid(made, x_segments=1, y_segments=1, size=_GROUND / 2)
        case "cube":
            bmesh.ops.create_cube(made, size=2.0)
            _rounded(bmesh, made, made.edges[:])
        case "cylinder" | "cone":
            top = 1.0 if shape == "cylinder" else 0.0
            bmesh.ops.create_cone(made, cap_ends=True, segments=64, radius1=1.0, radius2=top, depth=2.0)
            _rounded(bmesh, made, [edge for edge in made.edges if any(len(face.verts) > 4 for face in edge.link_faces)])
        case "sphere":
            bmesh.ops.create_uvsphere(made, u_segments=48, v_segments=24, radius=1.0)
        case "torus":
            _torus(made, 48, 24)
        case "icosahedron":
            bmesh.ops.create_icosphere(made, subdivisions=1, radius=1.0)
            # It stands on a face.
            mathutils = importlib.import_module("mathutils")
            made.normal_update()
            lowest = min((face.normal.copy() for face in made.faces), key=lambda normal: normal.z)
            turn = lowest.rotation_difference(mathutils.Vector((0.0, 0.0, -1.0))).to_matrix()
            bmesh.ops.rotate(made, cent=(0.0, 0.0, 0.0), matrix=turn, verts=made.verts[:])
        case "monkey":
            bmesh.ops.create_monkey(made)
        case _:
            raise AssertionError(shape)
    for face in made.faces:
        # A cap is flat, whatever is beside it.
        face.smooth = smooth and len(face.verts) <= 4
    mesh = bpy.data.meshes.new(shape)
    made.to_mesh(mesh)
    made.free()
    if shape == "monkey":
        mesh = _subdivided(bpy, mesh)
    if shape not in ("ground", "cube"):
        _fit(mesh)
    return mesh


def _rounded(bmesh: Any, made: Any, edges: Sequence[Any]) -> None:
    """Sharp edges catch no light."""
    bmesh.ops.bevel(made, geom=list(edges), offset=0.06, segments=3, profile=0.5, affect="EDGES")


def _torus(made: Any, around: int, across: int) -> None:
    outer, inner = 0.74, 0.26
    rings: list[list[Any]] = []
    for turn in [2 * math.pi * step / around for step in range(around)]:
        ring = []
        for angle in [2 * math.pi * step / across for step in range(across)]:
            away = outer + inner * math.cos(angle)
            ring.append(made.verts.new((away * math.cos(turn), away * math.sin(turn), inner * math.sin(angle))))
        rings.append(ring)
    # The last ring meets the first one, and so do the points of each.
    for here, after in itertools.pairwise([*rings, rings[0]]):
        for one, other in itertools.pairwise([*range(across), 0]):
            made.faces.new((here[one], after[one], after[other], here[other]))


def _subdivided(bpy: Any, mesh: Any) -> Any:
    holder = bpy.data.objects.new("holder", mesh)
    bpy.context.scene.collection.objects.link(holder)
    holder.modifiers.new("smooth", "SUBSURF").render_levels = 2
    holder.modifiers[0].levels = 2
    finer = bpy.data.meshes.new_from_object(holder.evaluated_get(bpy.context.evaluated_depsgraph_get()))
    bpy.data.objects.remove(holder)
    bpy.data.meshes.remove(mesh)
    return finer


def _fit(mesh: Any) -> None:
    """Scale to the circle of radius 1 around the middle, as seen from above, and set down on -1."""
    points = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", points)
    points_V3 = points.reshape(-1, 3)
    low, high = points_V3.min(0), points_V3.max(0)
    points_V3[:, :2] -= (low[:2] + high[:2]) / 2
    points_V3 /= np.hypot(points_V3[:, 0], points_V3[:, 1]).max()
    points_V3[:, 2] += -1 - points_V3[:, 2].min()
    mesh.vertices.foreach_set("co", points_V3.ravel())
    mesh.update()


@functools.cache
def _loaded(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise UserError(f"{name} cannot be loaded ({error}), and needs Python 3.11: {extra('render')}") from error
