"""The pictures below a folder or in a zip file, listed.

Paths in a tree are written with ``/`` and in one Unicode form (NFC), and its top is the empty path. Hidden files and
folders are passed over, and what systems leave behind. Zip files are read in memory: nothing of them is ever written by
the names they hold.
"""

import contextlib
import hashlib
import os
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from etude.core.errors import UserError
from etude.data.images import EXTENSIONS, KINDS, ImageError, in_threads, printable

_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}
_UNREAD = {
    "heic", "heif", "jxl", "svg", "psd", "tga", "pcx", "ico", "dib", "dds", "exr", "hdr", "pfm", "raw", "dng", "cr2",
    "cr3", "nef", "arw", "orf", "rw2", "eps", "pdf", "qoi", "sgi", "xbm", "xpm", "dcm", "fits", "jp2", "j2k", "jpf",
    "jpx", "jpc", "j2c", "avif", "avifs",
}  # fmt: skip
"""Endings of pictures; those of them that are not read are told apart from what is no picture."""
_LARGEST_MEMBER = 1 << 29
"""Bytes of a zip file's image before it is unpacked: 64 million pixels of 8 bytes."""
_UNSUSPECTED = 1 << 24
_LARGEST_RATIO = 200
"""Times its packed size that a larger image may have: deflate shrinks photographs by a little, zeros by a thousand."""
_DEEPEST = 64
_TOGETHER = 64
NO_PICTURE = f"holds no image ({KINDS})"


def is_picture(name: str) -> bool:
    """True where a file's name ends as a picture's."""
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """True for a name that systems keep to themselves."""
    return name.startswith(".") or name.casefold() in _LITTER


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
