"""Changes of pictures by their slots: one is taken out, moved to another picture, or exchanged for one of it.

Shape suffixes: S a slot's size, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from etude.core.errors import UserError

_LEAST = 0.005
"""The share of a picture below which a slot is not told of."""
_EDITS = "swap:I:J, move:I and delete:I, with the slots' numbers"


@dataclass(frozen=True)
class Edit:
    """A slot of the first picture is taken out, moved to the second, or exchanged for one of the second."""

    kind: Literal["swap", "move", "delete"]
    slot: int
    other: int = -1
    """The slot of the second picture, with swap."""


def parse_edit(word: str, num_slots: int, *, two: bool) -> Edit:
    """The change that a word such as ``swap:2:5`` names, of K slots, with a second picture or without."""
    kind, *numbers = word.split(":")
    wanted = {"swap": 2, "move": 1, "delete": 1}.get(kind)
    # Python refuses to read a number of thousands of digits.
    short = all(part.isascii() and part.isdigit() and len(part) < 10 for part in numbers)
    if wanted is None or len(numbers) != wanted or not short:
        raise UserError(f"no edit {word!r}: there are {_EDITS}")
    if kind != "delete" and not two:
        raise UserError(f"{word} needs a second picture: name it after the first")
    slots = [int(part) for part in numbers]
    if max(slots) >= num_slots:
        raise UserError(f"{word}: the slots are 0 to {num_slots - 1}")
    return Edit(kind, *slots)  # pyright: ignore[reportArgumentType]


def shares_of(segments_HW: Tensor, num_slots: int) -> dict[str, float]:
    """The share of the pixels of each slot that has some, the largest first."""
    counts = segments_HW.flatten().bincount(minlength=num_slots).double() / segments_HW.numel()
    order = counts.argsort(descending=True, stable=True).tolist()
    return {str(slot): counts[slot].item() for slot in order if counts[slot] >= _LEAST}


def suggested(shares: Sequence[Mapping[str, float]]) -> dict[str, list[Edit]]:
    """Edits where none is named, by title: the largest slot of a picture is the ground, the others are objects."""
    objects = [[int(slot) for slot in of_picture][1:] for of_picture in shares]
    if not all(objects):
        raise UserError("one slot has all of a picture, so there is no object to edit: name the edits, or train longer")
    if len(objects) == 1:
        return {f"without {slot}": [Edit("delete", slot)] for slot in objects[0]}
    return {"swapped": [Edit("swap", objects[0][0], objects[1][0])]}


def edited(slots: Sequence[Sequence[Tensor]], edits: Sequence[Edit]) -> list[list[Tensor]]:
    """The slots of one picture or two after some changes, each made once.

    Args:
        slots: by picture, ``[S]`` each.
        edits: a number means the slot that had it at first.

    Raises:
        UserError: a slot that an earlier change has taken, or a picture that would have none left.
    """
    sets: list[dict[int, Tensor]] = [dict(enumerate(part)) for part in slots]
    added: list[list[Tensor]] = [[] for _ in slots]
    for edit in edits:
        named = [edit.slot, edit.other] if edit.kind == "swap" else [edit.slot]
        told = ":".join([edit.kind, *map(str, named)])
        for slot, left in zip(named, sets, strict=False):
            if slot not in left:
                raise UserError(f"{told}: slot {slot} was taken by an edit before it")
        taken = sets[0].pop(edit.slot)
        if edit.kind == "move":
            added[1].append(taken)
        elif edit.kind == "swap":
            added[0].append(sets[1].pop(edit.other))
            added[1].append(taken)
    after = [[*left.values(), *new] for left, new in zip(sets, added, strict=True)]
    if not all(after):
        raise UserError("these edits leave a picture without a slot: keep at least one")
    return after
