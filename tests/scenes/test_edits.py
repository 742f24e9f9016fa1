"""Edits where none is named, and slots of pictures that are not alike. tests/studies/slots/test_predict.py has the
words of edits, and what each makes of two pictures."""

import pytest
import torch
from torch import Tensor

from etude.core.errors import UserError
from etude.scenes.edits import Edit, edited, parse_edit, shares_of, suggested


def slots(*numbers: int) -> list[Tensor]:
    return [torch.tensor([float(number)]) for number in numbers]


def test_each_object_is_taken_out_in_turn() -> None:
    """All but the largest slot, the ground."""
    found = suggested([{"4": 0.6, "0": 0.3, "2": 0.1}])
    assert list(found.items()) == [("without 0", [Edit("delete", 0)]), ("without 2", [Edit("delete", 2)])]


def test_the_largest_objects_are_swapped() -> None:
    found = suggested([{"4": 0.6, "0": 0.3, "2": 0.1}, {"1": 0.7, "10": 0.3}])
    assert found == {"swapped": [Edit("swap", 0, 10)]}


@pytest.mark.parametrize("shares", [[{"1": 1.0}], [{"1": 1.0}, {"0": 0.5, "1": 0.5}], [{"0": 0.5, "1": 0.5}, {}]])
def test_a_picture_without_objects(shares: list[dict[str, float]]) -> None:
    with pytest.raises(UserError, match="one slot has all of a picture") as caught:
        suggested(shares)
    assert "\n" not in str(caught.value)


def test_equal_shares_are_told_by_their_number() -> None:
    found = shares_of(torch.tensor([[3, 3, 1, 1], [0, 0, 2, 2]]), 5)
    assert list(found.items()) == [("0", 0.25), ("1", 0.25), ("2", 0.25), ("3", 0.25)]
    assert shares_of(torch.zeros(2, 2, dtype=torch.int64), 3) == {"0": 1.0}


def test_suggestions_follow_shares() -> None:
    segments = torch.tensor([[2, 2, 2, 2], [0, 1, 1, 1]])
    assert list(suggested([shares_of(segments, 3)])) == ["without 1", "without 0"]


def test_pictures_of_unlike_numbers_of_slots() -> None:
    first, second = slots(0, 1, 2), slots(10)
    edits = [parse_edit(word, 3, two=True) for word in ("move:0", "swap:2:0")]
    left, right = edited([first, second], edits)
    assert left == [first[1], second[0]], "the slots themselves, in order, what is new at the end"
    assert right == [first[0], first[2]]
    assert (len(first), len(second)) == (3, 1), "what is given stays"


def test_a_number_is_that_of_the_start() -> None:
    """A slot that has moved in is not taken again, and numbers do not shift."""
    first, second = slots(0, 1, 2), slots(10, 11, 12)
    left, right = edited([first, second], [Edit("delete", 0), Edit("swap", 1, 0), Edit("move", 2)])
    assert (left, right) == ([second[0]], [second[1], second[2], first[1], first[2]])
