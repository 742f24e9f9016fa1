"""Many scenes into one folder: what is done stays, what is missing is rendered, in some processes.

``FOLDER/K/CLEVRTEX_render_NNNNNN.png`` is a picture, ``..._flat.png`` its mask and ``....json`` its scene; K is the
number's thousands. ``meta.json`` holds the settings and the splits, ``checksums.json`` the SHA-256 of every file; it is
there when all scenes are. The layout and the splits are those of the released set, in which the first tenth is for
test, the second for validation.
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from etude import __version__
from etude.core.errors import Interrupted, UserError, extra
from etude.core.files import locked, one_line_faults, read_json, sha256, sweep, write_atomic, write_json
from etude.data.images import KINDS, in_threads, printable, read_image
from etude.data.inventory import say_left_out
from etude.data.render.scene import PUBLISHED, SHAPES, Shape
from etude.data.tree import Tree

FORMAT = 1
"""Raised by any change that makes other scenes of the same settings."""
SIZES = (32, 512)
_PREFIX = "CLEVRTEX_render"
_PER_FOLDER = 1000
_RESTART = 500
"""Scenes after which a process is replaced, should Blender keep some memory."""
_BLENDER = f"rendering needs Blender, and it Python 3.11: {extra('render')}"


@dataclass(frozen=True)
class Settings:
    """The settings that make the scenes what they are; a folder has one of each.

    Attributes:
        size: pixels a side of a picture.
        samples: paths of light a pixel, before the denoiser.
        seed: the seed of all draws.
        shapes: the shapes to choose from.
        textures: SHA-256 of the pictures that surfaces are made of, with their names; empty for made-up patterns.
        blender: its version.
        format: the version of this renderer.
    """

    size: int
    samples: int
    seed: int
    shapes: tuple[Shape, ...]
    textures: str
    blender: str
    format: int = FORMAT


@dataclass(frozen=True)
class Job:
    """All that a process needs to know to render any scene of a folder."""

    out: Path
    settings: Settings
    folder: Path | None
    """The folder of the textures."""
    textures: tuple[str, ...]
    """The textures' names within it."""


@dataclass(frozen=True)
class Done:
    """The scenes that were rendered now, and those that were there before."""

    rendered: int
    kept: int


Split = Literal["train", "val", "test"]
Work = Callable[[Job, int], None]
Pool = Callable[[int], Executor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of a rendering."""

    count: int
    """Scenes in all; those that are there already stay."""
    out: Path
    """The folder they go to."""
    textures: Path | None = None
    """A folder of pictures, at any depth, for the surfaces; made-up patterns without one."""
    size: int = 128
    """Pixels a side, from 32 to 512."""
    shapes: tuple[Shape, ...] = PUBLISHED
    """The shapes to choose from; cone, torus and icosahedron are for tests out of distribution."""
    jobs: int = 1
    """Processes, each with its own Blender, one core and half a gigabyte of memory."""
    samples: int = 12
    """Paths of light a pixel, before the denoiser."""
    seed: int = 0
    """The seed of all draws."""

    def check(self) -> None:
        """Refuse what is out of range; a `UserError`."""
        for flag, least in (("count", 1), ("jobs", 1), ("samples", 1), ("seed", 0)):
            if getattr(self, flag) < least:
                raise UserError(f"--{flag} must be at least {least}, not {getattr(self, flag)}")
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise UserError(f"--size must be from {SIZES[0]} to {SIZES[1]} pixels, not {self.size}")
        if not self.shapes:
            raise UserError(f"--shapes needs at least one of {', '.join(SHAPES)}")
        if len(set(self.shapes)) < len(self.shapes):
            raise UserError("--shapes names a shape twice: name each once")


def render(options: Options, work: Work | None = None, pool: Pool | None = None) -> Done:
    """Render the scenes of a folder that are not there yet.

    Scene number n is the same for a seed whatever the count and the jobs.

    Args:
        options: the folder and its scenes.
        work: renders and writes one scene; Blender's, unless a test has another.
        pool: makes the processes for a number of jobs.

    Raises:
        UserError: a setting out of range, no Blender, textures that cannot be read, or a folder that holds something
            else.
        Interrupted: by Ctrl-C, after the scenes under way; what is done stays.
    """
    options.check()
    out, count, textures = options.out, options.count, options.textures
    _check_folder(out)
    if work is None and not all(importlib.util.find_spec(name) for name in ("bpy", "OpenEXR")):
        raise UserError(_BLENDER)
    names, digest = _textures(textures) if textures is not None else ((), "")
    blender = metadata.version("bpy") if work is None else "none"
    settings = Settings(options.size, options.samples, options.seed, options.shapes, digest, blender)
    before = _settled(out, settings)
    _check_lower(out, count)
    # Two commands would sweep each other's half-written files away.
    with locked(out / ".lock", f"{printable(out)} is in use by another process: wait for it, or give another --out"):
        if before != count:
            (out / "checksums.json").unlink(missing_ok=True)
            about = "CLEVRTex-like scenes rendered by `etude data render clevrtex`; not the released set"
            meta = {"about": about, "etude": __version__, "count": count, "settings": _as_json(settings)}
            write_json(out / "meta.json", meta | {"splits": splits(count), "textures": list(names)})
        for folder in (out, *(path for path in out.iterdir() if path.name.isdigit())):
            sweep(folder)
        missing = [number for number in range(count) if not all(path.is_file() for path in files(out, number))]
        if missing:
            (out / "checksums.json").unlink(missing_ok=True)
            job = Job(out.resolve(), settings, textures.resolve() if textures else None, names)
            _render(job, missing, count, options.jobs, work or render_one, pool or _processes)
        if not (out / "checksums.json").exists():
            paths = [path for number in range(count) for path in files(out, number)]
            write_json(out / "checksums.json", {path.relative_to(out).as_posix(): sha256(path) for path in paths})
    return Done(rendered=len(missing), kept=count - len(missing))


def files(out: Path, number: int) -> tuple[Path, Path, Path]:
    """The paths of a scene's picture, mask and JSON."""
    stem = out / str(number // _PER_FOLDER) / f"{_PREFIX}_{number:06d}"
    return stem.with_suffix(".png"), stem.with_name(f"{stem.name}_flat.png"), stem.with_suffix(".json")


def splits(count: int) -> dict[Split, list[int]]:
    """First number and the one after the last of each split; of three scenes and more, none is empty."""
    one = int(count >= 3)
    test = max(count // 10, one)
    val = max(count * 2 // 10, test + one)
    return {"test": [0, test], "val": [test, val], "train": [val, count]}


def write_scene(out: Path, number: int, image: np.ndarray, mask: np.ndarray, about: dict[str, Any]) -> None:
    """Write one scene; the JSON comes last, so that a scene that has it is whole.

    Args:
        out: the folder of all scenes.
        number: the scene's own.
        image: uint8 ``[H, W, 3]``.
        mask: uint8 ``[H, W]``.
        about: describes what is in it.
    """
    *pictures, json_path = files(out, number)
    for path, pixels in zip(pictures, (image, mask), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        write_atomic(path, file.getvalue())
    # Without line ends between numbers: there are tens of thousands of these.
    write_atomic(json_path, json.dumps(about) + "\n")


# --- in a process of its own ---

_studio: tuple[Job, Any] | None = None


def render_one(job: Job, number: int) -> None:
    """Render and write one scene, with the Blender of this process."""
    global _studio  # noqa: PLW0603 - there can be one Blender a process
    from etude.data.render.blender import Studio  # only where Blender is installed

    settings = job.settings
    try:
        if _studio is None or _studio[0] != job:
            _studio = (job, Studio(job.folder, settings.size, settings.samples))
        made = _studio[1].render(settings.seed, number, settings.shapes, job.textures)
    except UserError as error:
        # A subclass with arguments of its own does not survive the way to the other process.
        raise UserError(str(error)) from None
    about = dataclasses.asdict(made.scene)
    counts = zip(about["objects"], made.pixels, made.frame_pixels, strict=True)
    about["objects"] = [thing | {"pixels": pixels, "frame_pixels": frame} for thing, pixels, frame in counts]
    write_scene(job.out, number, made.image, made.mask, about)


def _processes(jobs: int) -> Executor:
    return ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_prepare, max_tasks_per_child=_RESTART
    )


def _prepare() -> None:
    """Make a new process ready: Ctrl-C is the parent's to handle, Blender talks to nobody, no parent means no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# --- the driver ---


def _render(job: Job, missing: Sequence[int], count: int, jobs: int, work: Work, pool: Pool) -> None:
    from etude.core.loop import progress_bar  # PyTorch comes with it, and the processes need none

    running: set[Future[None]] = set()
    kept = count - len(missing)
    executor = pool(min(jobs, len(missing)))
    with progress_bar() as bar:
        task = bar.add_task("rendering", total=len(missing), note=f"({kept:,} there)" if kept else "")
        done = 0
        try:
            for number in missing:
                running.add(executor.submit(work, job, number))
                # No more than the processes can take at once, so that a stop need not wait for a queue.
                while len(running) >= jobs or (number == missing[-1] and running):
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()
                        done += 1
                        bar.update(task, completed=done)
        except BrokenProcessPool as error:
            fault = "Blender ended without a word, perhaps for want of memory"
            raise UserError(f"{fault}: the same command goes on; fewer --jobs need less memory") from error
        except KeyboardInterrupt:
            for future in wait(running).done:
                done += future.exception() is None
            raise Interrupted(f"stopped with {kept + done:,} of {count:,} scenes: the same command goes on") from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _check_folder(out: Path) -> None:
    with one_line_faults(out):
        if out.exists() and not out.is_dir():
            raise UserError(f"{printable(out)} is a file: give a folder with --out")
        if out.is_dir() and not (out / "meta.json").exists():
            there = [path.name for path in out.iterdir() if not path.name.startswith(".")]
            if there:
                raise UserError(
                    f"{printable(out)} holds other things ({printable(sorted(there)[0])}) and no meta.json: "
                    "give an empty or a new folder with --out"
                )


def _settled(out: Path, settings: Settings) -> int | None:
    """The count of a folder that has these settings, or None of a new one; `UserError` where it has others."""
    path = out / "meta.json"
    if not path.exists():
        return None
    fix = "give another --out, or remove the folder"
    try:
        found = read_json(path)
        theirs, count = found["settings"], found["count"]
        if not isinstance(theirs, dict) or not isinstance(count, int) or isinstance(count, bool):
            raise TypeError
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{printable(path)} is damaged: {fix}") from error
    mine = _as_json(settings)
    for name in mine | theirs:
        if theirs.get(name) == mine.get(name):
            continue
        if name == "textures":
            raise UserError(f"{printable(out)} was made with other textures: give the same folder, or another --out")
        values = (theirs.get(name), mine.get(name))
        was, now = (" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
        raise UserError(f"{printable(out)} was made with {name} {was}, not {now}: {fix}")
    return count


def _check_lower(out: Path, count: int) -> None:
    """Refuse a count below a scene that is there: the splits are by number."""
    names = [path.stem.removeprefix(f"{_PREFIX}_") for path in out.glob(f"*/{_PREFIX}_??????*.json")]
    last = max((int(name) for name in names if name.isdigit()), default=-1)
    if last >= count:
        least = f"give at least --count {last + 1}, or another --out"
        raise UserError(f"{printable(out)} holds scene {last}, and --count {count} ends before it: {least}")


def _textures(folder: Path) -> tuple[tuple[str, ...], str]:
    """Names of the pictures below a folder, and a digest of all; each is read, so that none fails after hours."""
    if not folder.exists():
        raise UserError(f"no textures folder {printable(folder)}: check the path")
    if not folder.is_dir():
        raise UserError(f"--textures {printable(folder)} is a file: give the folder of pictures")
    tree = Tree(folder)
    # As they are written, for Blender.
    found = sorted(tree.file(at).relative_to(folder).as_posix() for at in tree.anywhere())
    say_left_out(folder, tree.left_out)
    if not found:
        raise UserError(f"{printable(folder)} holds no picture ({KINDS}): give a folder of textures")
    digests = [""] * len(found)

    def read(row: int) -> None:
        digests[row] = sha256(folder / found[row])
        read_image(folder / found[row], "RGB", min_side=256)

    in_threads(read, len(found), "reading textures")
    whole = hashlib.sha256()
    for name, digest in zip(found, digests, strict=True):
        whole.update(f"{name}\0{digest}\n".encode(errors="surrogateescape"))
    return tuple(found), whole.hexdigest()


def _as_json(settings: Settings) -> dict[str, Any]:
    return dataclasses.asdict(settings) | {"shapes": list(settings.shapes)}
