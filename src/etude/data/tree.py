"""The pictures below a folder or in a zip file, listed: which are read, of which split and class, and what is left out.

Picture folders, pairs, supports, scenes and the inputs of predictions are all found here. Paths in a tree are written
with ``/`` and in one Unicode form (NFC), and its top is the empty path. Hidden files and folders are passed over, and
what systems leave behind. Zip files are read in memory: nothing of them is ever written by the names they hold.
"""

import contextlib
import hashlib
import logging
import os
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.core.errors import UserError, nearest
from etude.data.images import DARK, EXTENSIONS, KINDS, ImageError, in_threads, printable, shortened

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "validating": "val", "dev": "val",
    "development": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The words that the folders of splits are called by, see `split_of`; eval is test to Hugging Face's datasets too."""
_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}
_UNREAD = {
    "heic", "heif", "jxl", "svg", "psd", "tga", "pcx", "ico", "dib", "dds", "exr", "hdr", "pfm", "raw", "dng", "cr2",
    "cr3", "nef", "arw", "orf", "rw2", "eps", "pdf", "qoi", "sgi", "xbm", "xpm", "dcm", "fits", "jp2", "j2k", "jpf",
    "jpx", "jpc", "j2c", "avif", "avifs",
}  # fmt: skip
"""Endings of pictures; those of them that are not read are told apart from what is no picture."""
_log = logging.getLogger("etude")
_LARGEST_MEMBER = 1 << 29
"""Bytes of a zip file's image before it is unpacked: 64 million pixels of 8 bytes."""
_UNSUSPECTED = 1 << 24
_LARGEST_RATIO = 200
"""Times its packed size that a larger image may have: deflate shrinks photographs by a little, zeros by a thousand."""
_DEEPEST = 64
_TOGETHER = 64
_CLASSES = "make one sub-folder a class and put its images there, as in FOLDER/cat/1.jpg, FOLDER/dog/1.jpg"
_PAIRS = "put side-by-side A|B pictures there, or into train, val and test sub-folders"
NO_PICTURE = f"holds no image ({KINDS})"


def is_picture(name: str) -> bool:
    """True where a file's name ends as a picture's."""
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """True for a name that systems keep to themselves."""
    return name.startswith(".") or name.casefold() in _LITTER


def split_of(name: str) -> str:
    """The split that a folder is called after, as ``Test_set``, ``train-2017`` or ``Validation images``; else empty."""
    key = re.sub(r"[\W_]", "", name.casefold())
    return SPLITS.get(re.sub(r"(set|data|images?|imgs?|pictures?|split|folder)*\d*$", "", key), "")


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

    def __init__(self, path: Path, depth: int = _DEEPEST + 1) -> None:
        # Sizes and times alone may be those of another folder, unpacked by the same program.
        self._list(path, ascii(str(path.resolve())), _walked(path, "", depth, frozenset()))

    def _list(self, path: Path, mark: str, entries: Iterable[tuple[str, bool]]) -> None:
        """Sort paths, each with whether it is a folder, by their folders."""
        self.path, self.mark = path, mark
        self.left_out: dict[str, str] = {}
        self._folders: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        self._spelled: dict[str, str] = {}
        self._filled: set[str] = set()
        for given, is_folder in entries:
            name = unicodedata.normalize("NFC", given)
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
            self._spell(parts, given.split("/"))
            if not is_folder and not is_picture(name):
                self.left_out[name] = self._why_not(name)
                continue
            at, way = "", [""]
            for part in parts if is_folder else parts[:-1]:
                self._folders[at][0].add(part)
                at = joined(at, part)
                way.append(at)
                self._folders.setdefault(at, (set(), set()))
            if not is_folder:
                self._folders[at][1].add(parts[-1])
                self._filled.update(way)

    def _spell(self, parts: Sequence[str], given: Sequence[str]) -> None:
        """Keep how a path is written; refuse two that differ in their Unicode form alone."""
        for end in range(1, len(parts) + 1):
            one = "/".join(given[:end])
            other = self._spelled.setdefault("/".join(parts[:end]), one)
            if other != one:
                fault = f"has {other!a} and {one!a}, which are one name in two Unicode forms"
                raise ImageError(self.path, fault, "rename one of them, or put them together")

    def _why_not(self, name: str) -> str:
        if name.rpartition(".")[2].lower() in _UNREAD:
            return "of a format that is not read"
        here = self.file(name)
        return "a broken link" if here.is_symlink() and not here.exists() else "no picture"

    def contents(self, at: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders and of the pictures of a folder, sorted."""
        folders, pictures = self._folders[at]
        return sorted(folders), sorted(pictures)

    def filled(self, at: str) -> bool:
        """True where there is a picture below a folder, at any depth."""
        return at in self._filled

    def anywhere(self) -> list[str]:
        """All pictures at any depth, by folder."""
        return [joined(at, name) for at in sorted(self._folders) for name in self.contents(at)[1]]

    def stamp(self, at: str) -> str:
        """A text that changes when an image does."""
        # What cannot be read is found out, and said, when it is read.
        with contextlib.suppress(OSError):
            found = self.file(at).stat()
            # Size and time of writing stay when another file is copied over this one with its times.
            return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}:{found.st_ctime_ns}"
        return ""

    def image(self, at: str) -> Path | tuple[str, bytes]:
        """An image for `read_image`."""
        return self.file(at)

    def file(self, at: str) -> Path:
        """The place of an image on disk."""
        return self.path / self._spelled[at]

    def marks(self, places: Sequence[str]) -> list[str]:
        """A text for each image that is another's where their files are equal."""
        by_size: dict[str, list[int]] = defaultdict(list)
        for row, at in enumerate(places):
            by_size[self.stamp(at).partition(":")[0]].append(row)
        # A pipe or a device has no size, and opening it may never end.
        alike = [row for size, rows in by_size.items() if size.strip("0") and len(rows) > 1 for row in rows]
        marks = list(places)

        def some(number: int) -> None:
            for row in alike[_TOGETHER * number : _TOGETHER * (number + 1)]:
                # What cannot be read equals nothing.
                with contextlib.suppress(OSError), self.file(places[row]).open("rb") as file:
                    marks[row] = hashlib.file_digest(file, "blake2b").hexdigest()

        in_threads(some, -(-len(alike) // _TOGETHER), "looking for equal files")
        return marks


def _walked(here: Path, at: str, depth: int, around: frozenset[Path]) -> Iterator[tuple[str, bool]]:
    try:
        around |= {here.resolve()}
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
        if is_folder and depth > 1 and not is_hidden(name):
            inside = (here / name).resolve()
            # A link to a folder around it, or around one that was passed on the way, has no end.
            if not any(place.is_relative_to(inside) for place in around):
                yield from _walked(here / name, joined(at, name), depth - 1, around)


def _name_in(member: zipfile.ZipInfo) -> str:
    """A member's name; some programs write UTF-8 and do not say so, which is then read as an old code page."""
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


class Zip(Tree):
    """Everything in a zip file, listed once."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members = {joined(*_name_in(member).replace("\\", "/").split("/")): member for member in archive.infolist()}
        self._members = {name: member for name, member in members.items() if name}
        self._list(path, "", ((name, member.is_dir()) for name, member in self._members.items()))

    def stamp(self, at: str) -> str:
        member = self._members[self._spelled[at]]
        return f"{member.file_size}:{member.CRC}"

    def marks(self, places: Sequence[str]) -> list[str]:
        return [self.stamp(at) for at in places]

    def image(self, at: str) -> Path | tuple[str, bytes]:
        member = self._members[self._spelled[at]]
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
    fix = "give a folder or a zip file"
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
        side: ``a`` or ``b``, of pairs in folders such as trainA and trainB; else empty.
    """

    name: str
    at: str
    part: str = ""
    class_name: str = ""
    side: str = ""


@dataclass(frozen=True)
class Inventory:
    """The pictures that are read of a tree, and the rest with its reasons.

    Attributes:
        pictures: by class, then by name.
        splits: the folders of splits, each with its split; empty where the layout has none.
        left_out: what is not read, and why.
        marks: equal for pictures whose files are.
    """

    pictures: tuple[Picture, ...]
    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    marks: tuple[str, ...] = ()

    def only(self, rows: Sequence[int]) -> "Inventory":
        """The same with some of the pictures."""
        pictures, marks = tuple(self.pictures[row] for row in rows), tuple(self.marks[row] for row in rows)
        return replace(self, pictures=pictures, marks=marks)

    def without(self, rows: Mapping[int, str]) -> "Inventory":
        """The same with some of the pictures left out, for a reason each."""
        gone = {self.pictures[row].at: why for row, why in rows.items()}
        kept = self.only([row for row in range(len(self.pictures)) if row not in rows])
        return replace(kept, left_out={**self.left_out, **gone})

    def of_side(self, side: str) -> "Inventory":
        """The same with the pictures of one side."""
        return self.only([row for row, picture in enumerate(self.pictures) if picture.side == side])

    def record(self, rows: Mapping[Any, Sequence[int]], images_N: Tensor) -> dict[str, Any]:
        """What a run keeps of it, all of JSON; ``lines`` says it to people.

        Args:
            rows: the pictures of each split.
            images_N: as they are seen, bytes ``[N, ...]``; some are looked at for whether they are nearly black.
        """
        kept = {split: len(rows[split]) for split in ("train", "val", "test") if split in rows}
        reasons: dict[str, list[str]] = defaultdict(list)
        for name, why in sorted(self.left_out.items()):
            reasons[why].append(name)
        equal = {
            f"{one} in {other}": self._equal(rows[one], rows[other])
            for one, other in _ACROSS
            if {one, other} <= {*rows}
        }
        everything = [row for some in rows.values() for row in some]
        equal["in two classes"] = self._equal(everything, everything, across_classes=True)
        equal = {where: found for where, found in equal.items() if found["count"]}
        some = images_N[:: 1 + len(images_N) // 100]
        dark = sum(int(image.max()) <= DARK for image in some)
        parts = {picture.part for picture in self.pictures} | {"train"}
        drawn = {split: " (drawn from train)" if self.splits and split not in parts else "" for split in kept}
        lines = ["pictures: " + ", ".join(f"{count:,} {split}{drawn[split]}" for split, count in kept.items())]
        if named := [
            f"'{printable(folder)}' is {split}" for folder, split in self.splits.items() if folder.casefold() != split
        ]:
            lines.append("splits: " + ", ".join(named))
        if reasons:
            told = [f"{len(names):,} {why} ({shortened(names, 3)})" for why, names in reasons.items()]
            lines.append("left out: " + "; ".join(told))
        if equal:
            told = [f"{found['count']:,} {where} ({found['such_as']})" for where, found in equal.items()]
            lines.append("equal files: " + "; ".join(told))
        if dark > len(some) / 2:
            lines.append(f"nearly black: {dark} of {len(some)} looked at; 12 bits in files of 16 want to be scaled")
        left_out = {why: {"count": len(names), "such_as": names[:5]} for why, names in reasons.items()}
        return {
            "kept": kept, "splits": dict(self.splits), "left_out": left_out, "equal": equal, "nearly_black": dark,
            "lines": lines,
        }  # fmt: skip

    def _equal(self, here: Sequence[int], there: Sequence[int], *, across_classes: bool = False) -> dict[str, Any]:
        classes = [picture.class_name for picture in self.pictures] if across_classes else None
        found = [(row, other) for row, other in partners(self.marks, here, there, classes) if other is not None]
        named = [printable(self.pictures[row].name) for row in (found[0] if found else ())]
        return {"count": len(found), "such_as": " = ".join(named)}


_ACROSS = (("test", "train"), ("test", "val"), ("val", "train"))


def partners(
    marks: Sequence[Any], here: Sequence[int], there: Sequence[int], classes: Sequence[Any] | None = None
) -> Iterator[tuple[int, int | None]]:
    """Each row of one place with the first other row of another place that has its mark, and another class if given."""
    holders: dict[Any, list[int]] = defaultdict(list)
    for row in there:
        holders[marks[row]].append(row)
    for row in here:
        others = (other for other in holders.get(marks[row], ()) if other != row)
        yield row, next((other for other in others if classes is None or classes[other] != classes[row]), None)


def inventory(tree: Tree, *, classes: bool) -> Inventory:
    """The pictures of a folder, or of its folders of splits; both may lie below one folder around everything.

    Args:
        tree: the place that is read.
        classes: whether pictures lie in one folder a class; else they are pairs, of which each half may have folders of
            its own, ``trainA`` and ``trainB``.

    Raises:
        ImageError: a layout that is not read, in one line with what to do.
    """
    top, parts = _layout(tree, classes)
    here = tree.path / top
    folders, loose = tree.contents(top)
    if classes and not folders:
        what = "holds images but no sub-folders" if loose else "has no sub-folders"
        raise ImageError(here, what, _CLASSES)
    pictures: list[Picture] = []
    for folder, (part, side) in (parts or {"": ("", "")}).items():
        for class_name in tree.contents(joined(top, folder))[0] if classes else [""]:
            name = joined(folder, class_name)
            below, images = tree.contents(joined(top, name))
            for deeper in below if classes else ():
                if tree.filled(joined(top, name, deeper)):
                    fix = "move them up into the class folder, or elsewhere"
                    raise ImageError(here / name / deeper, "holds images below a class folder", fix)
            if classes and not images:
                raise ImageError(here / name, NO_PICTURE, "put images into it, or remove it")
            pictures += [Picture(joined(name, i), joined(top, name, i), part, class_name, side) for i in images]
    if not pictures:
        filled = [folder for folder in folders if tree.filled(joined(top, folder))]
        what = f"holds images in {shortened(filled)} alone, no names of splits" if filled else NO_PICTURE
        raise ImageError(here, what, _PAIRS)
    splits = {folder: part for folder, (part, _) in parts.items()}
    if classes:
        _check_classes(here, splits, pictures)
    pictures.sort(key=lambda picture: (picture.class_name, picture.name))
    return taken(tree, pictures, splits)


def taken(
    tree: Tree, pictures: Sequence[Picture], splits: Mapping[str, str] | None = None, also: Iterable[str] = ()
) -> Inventory:
    """The inventory of a tree of which some pictures are read, and other files ``also``.

    Raises:
        ImageError: a picture's name is no text.
    """
    for picture in pictures:
        if any("\ud800" <= letter <= "\udfff" for letter in picture.at):
            raise ImageError(tree.path / picture.at, "has a name that is no Unicode text", "rename it")
    rest = sorted({*tree.anywhere()} - {picture.at for picture in pictures} - {*also})
    left_out = tree.left_out | dict.fromkeys(rest, "beside what is read")
    return Inventory(tuple(pictures), splits or {}, left_out, tuple(tree.marks([picture.at for picture in pictures])))


def _part_of(folder: str, classes: bool) -> tuple[str, str]:
    """The split and the side that a folder is called after, each empty where it is not."""
    if split := split_of(folder):
        return split, ""
    stem, side = folder[:-1].rstrip("_- ."), folder[-1:].casefold()
    if not classes and side in ("a", "b") and (not stem or split_of(stem)):
        return split_of(stem), side
    return "", ""


def _layout(tree: Tree, classes: bool) -> tuple[str, dict[str, tuple[str, str]]]:
    """The folder that holds the classes, pictures or splits, and the folders of splits, each with split and side."""

    def holds(folder: str) -> bool:
        below, images = tree.contents(folder)
        return any(tree.filled(joined(folder, each)) for each in below) if classes else bool(images)

    top = ""
    while True:
        folders, images = tree.contents(top)
        named = {folder: part for folder in folders if any(part := _part_of(folder, classes))}
        held = {folder: part for folder, part in named.items() if holds(joined(top, folder))}
        # Where the other half is elsewhere, trainA is a train, and A a name like another.
        if len({side for _, side in held.values()} - {""}) == 1:
            held = {folder: (part, "") for folder, (part, _) in held.items() if part}
        splits = {split for split, _ in held.values()}
        # One folder around everything. With pictures in it, one called val is a name like another.
        alone = len(folders) == 1 and not images
        if not alone or ("train" in splits if not classes else held or not holds(joined(top, folders[0]))):
            break
        top = joined(top, folders[0])
    here = tree.path / top
    if held and not splits & {"train", ""}:
        what, fix = "pictures", "put the training pictures into 'train'"
        if classes:
            what, fix = "class folders", "put the class folders of the training images into 'train'"
        raise ImageError(here, f"has '{printable(min(held))}' but no 'train' with {what} in it", fix)
    seen: dict[tuple[str, str], str] = {}
    for folder, part in (named if classes and held else held).items():
        twin = seen.setdefault(part, folder)
        if twin != folder:
            raise ImageError(here, f"has both '{printable(twin)}' and '{printable(folder)}'", "keep one of them")
        if folder not in held:
            fix = "put its images into one folder a class, or move it elsewhere"
            raise ImageError(here / folder, f"has no class folders as '{min(held)}' does", fix)
    others = [folder for folder in folders if folder not in held and tree.filled(joined(top, folder))]
    if held and (others or len({bool(side) for _, side in held.values()}) > 1):
        both = f"{shortened([*held])} beside {shortened(others)}" if others else shortened([*held])
        fix = "call the folders of splits train, val and test, and move what is none elsewhere"
        raise ImageError(here, f"has {both}: which are splits cannot be told", fix)
    if classes and not held and len(folders) > 1 and all(folder in named for folder in folders):
        what = f"has images in {shortened(folders)} without a folder a class"
        raise ImageError(here, what, "give each of them one sub-folder a class")
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


# --- the inputs of predictions ---


def list_images(folder: Path | str) -> list[Path]:
    """The image files of a folder, by name; sub-folders are passed over, with a warning.

    Raises:
        UserError: no such folder, or no image in it.
    """
    tree = Tree(Path(folder), depth=1)
    below, images = tree.contents()
    tree.left_out |= dict.fromkeys(below, "a sub-folder")
    if not images:
        fix = f"name its sub-folders ({shortened(below)})" if below else "put images into it, or choose another folder"
        raise ImageError(tree.path, f"{NO_PICTURE}{' itself' if below else ''}", fix)
    say_left_out(tree.path, tree.left_out)
    return [tree.file(image) for image in images]


def say_left_out(path: Path, left_out: Mapping[str, str]) -> None:
    """Warn of what a prediction does not read, but for hidden files and what is plainly no picture."""
    told = [name for name, why in left_out.items() if why not in ("hidden", "no picture")]
    if told:
        reasons = ", ".join(sorted({left_out[name] for name in told}))
        _log.warning("%s: left out %d (%s): %s", printable(path), len(told), reasons, shortened(sorted(told)))
