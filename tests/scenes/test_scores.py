"""Scores of masks by hand."""

import math

import pytest
import torch
from tests.studies.slots.common import draw
from torch import Tensor

from etude.scenes.scores import Scores, dead, half_width, sameness, score

SIDE = 40
"""Of 1,600 pixels a thousandth is more than one and less than two."""
K = 4
BLACK = torch.zeros(1, 3, SIDE, SIDE)


def rows(*counts: int) -> Tensor:
    """A mask ``[1, SIDE, SIDE]`` with so many pixels of 0, of 1 and so on, one after the other."""
    assert sum(counts) == SIDE**2
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).view(1, SIDE, SIDE)


def of(found: Tensor, true: Tensor) -> dict[str, float]:
    made = BLACK.expand(len(found), -1, -1, -1)
    return {name: value.item() for name, value in score(found, true, made, made, K).of_image.items()}


def test_a_slot_with_under_a_thousandth_is_empty() -> None:
    half = rows(800, 800)
    assert of(rows(800, 800), half)["empty"] == 2
    assert of(rows(800, 799, 1), half)["empty"] == 2, "one pixel is less than a thousandth"
    assert of(rows(800, 798, 2), half)["empty"] == 1
    assert of(rows(800, 0, 0, 800), half)["empty"] == 2
    assert of(rows(400, 400, 400, 400), half)["empty"] == 0


def test_who_shares_the_background() -> None:
    """A slot has part in it with more than a twentieth of its pixels."""
    true = rows(1000, 600)
    whole = of(rows(1000, 600), true)
    assert (whole["background_slots"], whole["background_share"]) == (1, 1)
    some = of(rows(700, 250, 50, 600), true)
    assert (some["background_slots"], some["background_share"]) == (2, 0.7), "exactly a twentieth is not more"
    more = of(rows(699, 250, 51, 600), true)
    assert (more["background_slots"], more["background_share"]) == (3, 0.699)
    # What a slot has of objects does not count.
    object_too = of(rows(500, 1100), true)
    assert (object_too["background_slots"], object_too["background_share"]) == (2, 0.5)


def test_without_a_background_or_an_object_there_is_no_number() -> None:
    found = rows(800, 800)
    bare = of(found, rows(0, 800, 800))
    assert math.isnan(bare["background_slots"])
    assert math.isnan(bare["background_share"])
    assert (bare["fg_ari"], bare["ari"], bare["miou"], bare["mbo"]) == (1, 1, 1, 1)
    ground = of(found, rows(1600))
    assert math.isnan(ground["fg_ari"])
    assert math.isnan(ground["mbo"])
    assert (ground["background_slots"], ground["background_share"]) == (2, 0.5)
    assert ground["ari"] == 0
    assert (ground["miou"], ground["miou_gt"]) == (0.25, 0.5)


def test_masks_cut_by_hand() -> None:
    """The object is cut in two halves: its best overlap is a half, and the ground is whole."""
    found = of(rows(800, 400, 400), rows(800, 800))
    assert found["mbo"] == 0.5
    assert (found["miou"], found["miou_fg"], found["miou_gt"]) == (0.5, 0.25, 0.75)
    assert found["fg_ari"] == 0


def test_the_error_is_summed_over_pixels_and_colours() -> None:
    images, made = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    made[1, 0, 0, 0], made[1, 2, 3, 3] = 0.5, 1.0
    masks = torch.zeros(2, 4, 4, dtype=torch.int64)
    assert score(masks, masks, made, images, K).of_image["mse"].tolist() == [0, 1.25]


def test_pixels_are_counted_for_every_slot() -> None:
    """Also for those that nothing in the batch has."""
    found = score(rows(1000, 600), rows(1600), BLACK, BLACK, K)
    assert found.pixels_BK.tolist() == [[1000, 600, 0, 0]]
    assert score(rows(1, 0, 0, 1599), rows(1600), BLACK, BLACK, K).pixels_BK.tolist() == [[1, 0, 0, 1599]]


def test_means_pass_over_what_has_no_number() -> None:
    found = Scores({"a": torch.tensor([1.0, torch.nan, 4.0]), "b": torch.full((3,), torch.nan)}, torch.zeros(3, K))
    means = found.means()
    assert means["a"] == 2.5
    assert math.isnan(means["b"])
    # Two values: their deviation is 3 / sqrt(2), and that of the mean 3 / 2.
    assert half_width(found.of_image["a"]) == pytest.approx(1.96 * 1.5)
    assert half_width(found.of_image["b"]) is None


def test_a_batch_scores_as_its_images() -> None:
    draws = torch.Generator().manual_seed(0)
    found, true = (torch.randint(0, K, (5, 9, 9), generator=draws) for _ in range(2))
    made, images = draw(5, 3, 9, 9).float(), draw(5, 3, 9, 9, seed=1).float()
    together = score(found, true, made, images, K)
    for row in range(5):
        one = slice(row, row + 1)
        alone = score(found[one], true[one], made[one], images[one], K)
        assert {name: value.item() for name, value in alone.of_image.items()} == {
            name: value[row].item() for name, value in together.of_image.items()
        }
        assert torch.equal(alone.pixels_BK[0], together.pixels_BK[row])


def test_a_slot_is_dead_that_holds_nothing_in_any_image() -> None:
    pixels = torch.tensor([[1000, 599, 1, 0], [0, 1599, 1, 0], [1590, 0, 0, 10]])
    assert dead(pixels) == 1
    assert dead(pixels[:2]) == 2
    assert dead(torch.tensor([[400, 400, 400, 400]])) == 0


def test_sameness_is_the_mean_cosine_of_two_slots() -> None:
    unit = torch.eye(3)
    assert sameness(unit[None]).item() == pytest.approx(0)
    # Of three pairs one is the same; lengths do not count.
    assert sameness(torch.stack([unit[0], 5 * unit[0], unit[1]])[None]).item() == pytest.approx(1 / 3)
    assert sameness(unit[:1].expand(4, -1)[None]).item() == pytest.approx(1)
    assert sameness(torch.stack([unit[0], -unit[0]])[None]).item() == pytest.approx(-1)
    both = torch.stack([torch.stack([unit[0], unit[0]]), torch.stack([unit[0], unit[1]])])
    assert sameness(both).tolist() == pytest.approx([1, 0]), "of each image"
