"""An account of what is read: the pictures of a tree with their splits and classes, and what is left out and why.

Picture folders, pairs, supports, scenes and the inputs of predictions are all found here.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.core.errors import nearest
from etude.data.images import DARK, ImageError, printable, shortened
from etude.data.tree import NO_PICTURE, Tree, joined

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "validating": "val", "dev": "val",
    "development": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The words that the folders of splits are called by, see `split_of`; eval is test to Hugging Face's datasets too."""
_CLASSES = "make one sub-folder a class and put its images there, as in FOLDER/cat/1.jpg, FOLDER/dog/1.jpg"
_PAIRS = "put side-by-side A|B pictures there, or into train, val and test sub-folders"
_log = logging.getLogger("etude")


def split_of(name: str) -> str:
    """The split that a folder is called after, as ``Test_set``, ``train-2017`` or ``Validation images``; else empty."""
    key = re.sub(r"[\W_]", "", name.casefold())
    return SPLITS.get(re.sub(r"(set|data|images?|imgs?|pictures?|split|folder)*\d*$", "", key), "")


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
        """The record that a run keeps, all of JSON; its ``lines`` are for people.

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
        equal["in two classes"] = self.in_two_classes(everything)
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
        left_out = {
            why: {"count": len(names), "such_as": [*map(printable, names[:5])]} for why, names in reasons.items()
        }
        return {
            "kept": kept, "splits": dict(self.splits), "left_out": left_out, "equal": equal, "nearly_black": dark,
            "lines": lines,
        }  # fmt: skip

    def in_two_classes(self, rows: Sequence[int]) -> dict[str, Any]:
        """The number of pictures that equal one of another class, and such a pair."""
        return self._equal(rows, rows, [picture.class_name for picture in self.pictures])

    def _equal(self, here: Sequence[int], there: Sequence[int], classes: Sequence[str] | None = None) -> dict[str, Any]:
        found = [(row, other) for row, other in partners(self.marks, here, there, classes) if other is not None]
        named = [printable(self.pictures[row].name) for row in (found[0] if found else ())]
        return {"count": len(found), "such_as": " = ".join(named)}


_ACROSS = (("test", "train"), ("test", "val"), ("val", "train"))


def partners(
    marks: Sequence[Any], here: Sequence[int], there: Sequence[int], classes: Sequence[Any] | None = None
) -> Iterator[tuple[int, int | None]]:
    """Each row of one place with the first other row of another place that has its mark, and another class if given."""
    kinds = range(len(marks)) if classes is None else classes
    # The first row of each kind: of ten thousand equal ones none is compared with all others.
    holders: dict[Any, dict[Any, int]] = defaultdict(dict)
    for row in there:
        holders[marks[row]].setdefault(kinds[row], row)
    for row in here:
        yield row, next((other for kind, other in holders.get(marks[row], {}).items() if kind != kinds[row]), None)


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


def classes_of(tree: Tree) -> Inventory:
    """The pictures of classes without splits, with a warning of what is left out and of equal files in two classes.

    Raises:
        ImageError: see `inventory`; or it has splits.
    """
    found = inventory(tree, classes=True)
    if found.splits:
        fix = "give the folder of one of them"
        raise ImageError(tree.path, f"has the splits {shortened([*found.splits])}", fix)
    say_left_out(tree.path, found.left_out)
    twice = found.in_two_classes(range(len(found.pictures)))
    if twice["count"]:
        _log.warning("%s: %d equal files in two classes (%s)", printable(tree.path), twice["count"], twice["such_as"])
    return found


def say_left_out(path: Path, left_out: Mapping[str, str]) -> None:
    """Warn of what a prediction does not read, but for hidden files and what is plainly no picture."""
    told = [name for name, why in left_out.items() if why not in ("hidden", "no picture")]
    if told:
        reasons = ", ".join(sorted({left_out[name] for name in told}))
        _log.warning("%s: left out %d (%s): %s", printable(path), len(told), reasons, shortened(sorted(told)))
