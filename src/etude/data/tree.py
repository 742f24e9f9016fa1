"""The pictures below a folder or in a zip file, listed: which are read, of which split and class, and what is left out.

Picture folders, pairs, supports, scenes and the inputs of predictions are all found here. Paths in a tree are written
with ``/``, and its top is the empty path. Hidden files and folders are passed over, and ``__MACOSX`` with them. Zip
files are read in memory: nothing of them is ever written by the names they hold.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etude.core.errors import UserError, nearest
from etude.data.images import EXTENSIONS, ImageError, printable

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The splits that folders may be called after, whatever their case."""
_LARGEST_MEMBER = 1 << 29
"""Bytes of a zip file's image before it is unpacked: 64 million pixels of 8 bytes."""
_UNSUSPECTED = 1 << 24
_LARGEST_RATIO = 200
"""Times its packed size that a larger image may have: deflate shrinks photographs by a little, zeros by a thousand."""
_DEEPEST = 64
_CLASSES = "make one sub-folder a class and put its images there, as in FOLDER/cat/1.jpg, FOLDER/dog/1.jpg"
_PAIRS = "put side-by-side A|B pictures there, or into train, val and test sub-folders"
NO_PICTURE = f"holds no image ({', '.join(EXTENSIONS)})"


def is_picture(name: str) -> bool:
    """True where a file's name ends as a picture's."""
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """True for a name that systems keep to themselves."""
    return name.startswith(".") or name == "__MACOSX"


def joined(*parts: str) -> str:
    """A path in a tree; empty parts are left out."""
    return "/".join(part for part in parts if part)


class Tree:
    """Everything below a folder on disk, listed once; links to folders are followed.

    Args:
        path: the folder.
        depth: the number of levels that are listed.

    Attributes:
        mark: what it adds to the key of its decoded images.
        left_out: what is passed over, and why.

    Raises:
        ImageError: a folder cannot be listed.
    """

    def __init__(self, path: Path, depth: int = _DEEPEST) -> None:
        # Sizes and times alone may be those of another folder, unpacked by the same program.
        self._list(path, ascii(str(path.resolve())), _walked(path, "", depth))

    def _list(self, path: Path, mark: str, entries: Iterable[tuple[str, bool]]) -> None:
        """Sort paths, each with whether it is a folder, by their folders."""
        self.path, self.mark = path, mark
        self.left_out: dict[str, str] = {}
        self._folders: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for name, is_folder in entries:
            parts = name.split("/")
            # Every folder on the way is kept by its whole name: one name of 64 kB would fill a gigabyte.
            if len(parts) > _DEEPEST:
                fault = f"holds a place that has folders {len(parts):,} deep"
                raise ImageError(path, fault, "pack it again with fewer")
            # This passes over ".." too.
            hidden = next((place for place, part in enumerate(parts) if is_hidden(part)), None)
            if hidden is not None:
                self.left_out["/".join(parts[: hidden + 1])] = "hidden"
                continue
            if not is_folder and not is_picture(name):
                self.left_out[name] = "no picture"
                continue
            at = ""
            for part in parts if is_folder else parts[:-1]:
                self._folders[at][0].add(part)
                at = joined(at, part)
                self._folders.setdefault(at, (set(), set()))
            if not is_folder:
                self._folders[at][1].add(parts[-1])

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders and of the pictures of a folder, sorted."""
        folders, pictures = self._folders[at]
        return sorted(folders), sorted(pictures)

    def anywhere(self) -> list[str]:
        """All pictures at any depth, by folder."""
        return [joined(at, name) for at in sorted(self._folders) for name in self.contents(at)[1]]

    def stamp(self, at: str) -> str:
        """A text that changes when an image does."""
        # What cannot be read is found out, and said, when it is read.
        with contextlib.suppress(OSError):
            found = (self.path / at).stat()
            return f"{found.st_size}:{found.st_mtime_ns}"
        return ""

    def image(self, at: str) -> Path | tuple[str, bytes]:
        """An image for `read_image`."""
        return self.path / at


def _walked(here: Path, at: str, depth: int) -> Iterator[tuple[str, bool]]:
    try:
        entries = [(entry.name, entry.is_dir()) for entry in here.iterdir()]
    except FileNotFoundError as error:
        raise ImageError(here, "does not exist", "check the path") from error
    except NotADirectoryError as error:
        raise ImageError(here, "is a file", "give the folder that holds the images") from error
    except OSError as error:
        fix = "check the path and its permissions"
        raise ImageError(Path(error.filename or here), f"cannot be read ({error.strerror})", fix) from error
    for name, is_folder in entries:
        yield joined(at, name), is_folder
        # A link to a folder around it has no end.
        endless = is_folder and here.resolve().is_relative_to((here / name).resolve())
        if is_folder and not endless and depth > 1 and not is_hidden(name):
            yield from _walked(here / name, joined(at, name), depth - 1)


class Zip(Tree):
    """Everything in a zip file, listed once."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members = {joined(*member.filename.replace("\\", "/").split("/")): member for member in archive.infolist()}
        self._members = {name: member for name, member in members.items() if name}
        self._list(path, "", ((name, member.is_dir()) for name, member in self._members.items()))

    def stamp(self, at: str) -> str:
        member = self._members[at]
        return f"{member.file_size}:{member.CRC}"

    def image(self, at: str) -> Path | tuple[str, bytes]:
        member = self._members[at]
        if member.file_size > _LARGEST_MEMBER:
            raise ImageError(Path(at), f"has {member.file_size:,} bytes", "make it smaller")
        if member.file_size > max(_UNSUSPECTED, _LARGEST_RATIO * member.compress_size):
            fault = f"would unpack from {member.compress_size:,} bytes to {member.file_size:,}"
            raise ImageError(Path(at), fault, "pack a picture of a compressed format, such as PNG")
        try:
            return at, self._archive.read(member)
        # A wrong checksum, a password, an unknown packing, bytes that do not unpack.
        except Exception as error:
            fault = "needs a password" if member.flag_bits & 1 else "cannot be unpacked"
            raise ImageError(Path(at), fault, "pack it again") from error


def find(name: str, fix: str = "give another with --data.folder", dataset: str = "") -> Path:
    """A folder or file as given, or else below the folder that ETUDE_MIRROR names.

    Args:
        name: a path; ``~`` is the home folder.
        fix: what the error says to do.
        dataset: a folder of the mirror where it may lie too.

    Raises:
        UserError: it is in neither place.
    """
    places, mirror = [Path(name)], os.environ.get("ETUDE_MIRROR", "")
    if mirror and not mirror.startswith(("http://", "https://")):
        places += [Path(mirror, dataset, name), Path(mirror, name)]
    for place in places if name else []:
        # A name may be too long for the system, lie where one may not look, or name a home that is not there.
        with contextlib.suppress(OSError, RuntimeError):
            if (found := place.expanduser()).exists():
                return found
    fault = "does not exist here, and ETUDE_MIRROR is not set to a folder to look in"
    if name and len(places) > 1:
        fault = f"does not exist here, nor does {printable(places[-1])} (ETUDE_MIRROR)"
    raise UserError(f"{printable(name) or 'an empty path'} {fault}: {fix}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Tree]:
    """A folder or a zip file as a tree.

    Raises:
        ImageError: it is neither, or cannot be read.
    """
    fix = "give a folder or a zip file with --data.folder"
    try:
        is_folder, is_there = path.is_dir(), path.exists()
        is_zip = is_there and not is_folder and zipfile.is_zipfile(path)
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error})", "check the path and its permissions") from error
    if is_folder:
        yield Tree(path)
    elif not is_there:
        raise ImageError(path, "does not exist", fix)
    elif is_zip:
        with contextlib.ExitStack() as held:
            try:
                tree = Zip(path, held.enter_context(zipfile.ZipFile(path)))
            except UserError:
                raise
            # A broken list of contents is answered with many kinds of exception.
            except Exception as error:
                raise ImageError(path, "is no zip file that can be read", "copy or pack it again") from error
            yield tree
    elif path.suffix.lower() == ".zip":
        raise ImageError(path, "is no whole zip file", "copy or pack it again")
    else:
        raise ImageError(path, "is neither a folder nor a zip file", fix)


# --- splits and classes ---


@dataclass(frozen=True)
class Picture:
    """One picture of a tree.

    Attributes:
        name: its path below the folder of the classes or splits.
        at: its path in the tree.
        part: ``train``, ``val`` or ``test``; empty where the layout has no splits.
        class_name: empty where it has no classes.
    """

    name: str
    at: str
    part: str = ""
    class_name: str = ""


@dataclass(frozen=True)
class Inventory:
    """The pictures that are read of a tree, and the rest with its reasons.

    Attributes:
        pictures: by class, then by name.
        splits: the folders of splits, each with its split; empty where the layout has none.
        left_out: what is not read, and why.
    """

    pictures: tuple[Picture, ...]
    splits: Mapping[str, str]
    left_out: Mapping[str, str]


def inventory(tree: Tree, *, classes: bool) -> Inventory:
    """The pictures of a folder, or of its folders of splits; both may lie below one folder around everything.

    Args:
        tree: the place that is read.
        classes: whether pictures lie in one folder a class.

    Raises:
        ImageError: a layout that is not read, in one line with what to do.
    """
    top, splits = _layout(tree, classes)
    here = tree.path / top
    folders, loose = tree.contents(top)
    if classes and not folders:
        what = "holds images but no sub-folders" if loose else "has no sub-folders"
        raise ImageError(here, what, _CLASSES)
    pictures: list[Picture] = []
    for folder, part in (splits or {"": ""}).items():
        for class_name in tree.contents(joined(top, folder))[0] if classes else [""]:
            name = joined(folder, class_name)
            below, images = tree.contents(joined(top, name))
            for deeper in below if classes else ():
                if tree.contents(joined(top, name, deeper))[1]:
                    fix = "move them up into the class folder, or elsewhere"
                    raise ImageError(here / name / deeper, "holds images below a class folder", fix)
            if classes and not images:
                raise ImageError(here / name, NO_PICTURE, "put images into it, or remove it")
            pictures += [Picture(joined(name, i), joined(top, name, i), part, class_name) for i in images]
    if not pictures:
        raise ImageError(here, NO_PICTURE, _PAIRS)
    for picture in pictures:
        if any("\ud800" <= letter <= "\udfff" for letter in picture.at):
            raise ImageError(tree.path / picture.at, "has a name that is no Unicode text", "rename it")
    if classes:
        _check_classes(here, splits, pictures)
    if classes or splits:
        tree.left_out |= {joined(top, image): "beside the folders that are read" for image in loose}
    pictures.sort(key=lambda picture: (picture.class_name, picture.name))
    return Inventory(tuple(pictures), splits, tree.left_out)


def _layout(tree: Tree, classes: bool) -> tuple[str, dict[str, str]]:
    """The folder that holds the classes, pictures or splits, and the folders of splits, each with its split."""

    def holds(folder: str) -> bool:
        below, images = tree.contents(folder)
        return bool(below and not images) if classes else bool(images)

    top = ""
    while True:
        folders, images = tree.contents(top)
        named = {folder: SPLITS[folder.casefold()] for folder in folders if folder.casefold() in SPLITS}
        held = {folder: part for folder, part in named.items() if holds(joined(top, folder))}
        # One folder around everything. With pictures in it, one called val is a name like another.
        alone = len(folders) == 1 and not images
        if not alone or ("train" in held.values() if not classes else held or not holds(joined(top, folders[0]))):
            break
        top = joined(top, folders[0])
    here = tree.path / top
    if held and "train" not in held.values():
        what, fix = "pictures", "put the training pictures into 'train'"
        if classes:
            what, fix = "class folders", "put the class folders of the training images into 'train'"
        raise ImageError(here, f"has '{min(held)}' but no 'train' with {what} in it", fix)
    taken: dict[str, str] = {}
    for folder, part in (named if classes and held else held).items():
        twin = taken.setdefault(part, folder)
        if twin != folder:
            raise ImageError(here, f"has both '{twin}' and '{folder}'", "keep one of them")
        if folder not in held:
            fix = "put its images into one folder a class, or move it elsewhere"
            raise ImageError(here / folder, "has no class folders as 'train' does", fix)
    return top, held


def _check_classes(path: Path, splits: Mapping[str, str], pictures: Sequence[Picture]) -> None:
    """Refuse one class alone, and classes that are not in every split."""
    names = sorted({picture.class_name for picture in pictures})
    if len(names) < 2:
        raise ImageError(path, f"has only one class, '{printable(names[0])}'", _CLASSES)
    for folder, part in splits.items():
        held = {picture.class_name for picture in pictures if picture.part == part}
        missing = next((name for name in names if name not in held), None)
        if missing is not None:
            hint = nearest(missing, held).partition(" (known")[0]
            fault = f"has no class '{printable(missing)}', which another split has{hint}"
            raise ImageError(path / folder, fault, "give every split the same class folders")


# --- plain folders ---


def list_images(folder: Path | str) -> list[Path]:
    """The image files of a folder, by name; sub-folders are passed over.

    Raises:
        UserError: no such folder, or no image in it.
    """
    folder = Path(folder)
    _, images = Tree(folder, depth=1).contents()
    if not images:
        raise ImageError(folder, NO_PICTURE, "put images into it, or choose another folder")
    return [folder / image for image in images]


def class_folders(folder: Path | str) -> dict[str, list[Path]]:
    """The images of a folder with one sub-folder a class: class name to files, both by name.

    Raises:
        UserError: no such folder, no sub-folders, or a sub-folder without an image.
    """
    classes, _ = Tree(Path(folder), depth=1).contents()
    if not classes:
        layout = "make one sub-folder a class and put its images there, as in FOLDER/cat/1.png, FOLDER/dog/1.png"
        raise ImageError(Path(folder), "has no sub-folders", layout)
    return {name: list_images(Path(folder) / name) for name in classes}
