"""Episodes: no class and no drawing twice, every one equally likely, too much asked for in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from etude.core.errors import UserError
from etude.studies.protonet.episodes import (
    draw_classes,
    draw_drawings,
    draw_episode,
    nearest_distances,
    score_pool,
)
from etude.studies.protonet.model import squared_euclidean

FUZZ = settings(max_examples=60, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_different(rows: torch.Tensor) -> bool:
    """No value twice in the last dimension."""
    ordered = rows.sort(-1).values
    return bool((ordered[..., 1:] != ordered[..., :-1]).all())


# --- what an episode holds ---


@FUZZ
@given(st.integers(1, 40), st.data(), SEEDS)
def test_an_episode_repeats_no_class_and_no_drawing(num_classes: int, data: st.DataObject, seed: int) -> None:
    way = data.draw(st.integers(1, num_classes))
    num_drawings = data.draw(st.integers(1, 20))
    count = data.draw(st.integers(1, num_drawings))
    classes, drawings = draw_episode(num_classes, num_drawings, way, count, keyed(seed))
    assert (classes.shape, drawings.shape) == ((way, 1), (way, count))
    assert all_different(classes.flatten())
    # So support and query share none either.
    assert all_different(drawings)
    assert classes.min() >= 0
    assert classes.max() < num_classes
    assert drawings.min() >= 0
    assert drawings.max() < num_drawings


@FUZZ
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.booleans(), st.data(), SEEDS)
def test_classes_of_many_episodes(groups: list[int], within: bool, data: st.DataObject, seed: int) -> None:
    groups_C = torch.tensor(groups)
    largest = int(groups_C.bincount().max())
    way = data.draw(st.integers(1, largest if within else len(groups)))
    classes_EN = draw_classes(30, way, groups_C, within, keyed(seed))
    assert classes_EN.shape == (30, way)
    assert all_different(classes_EN)
    assert classes_EN.min() >= 0
    assert classes_EN.max() < len(groups)
    if within:
        drawn = groups_C[classes_EN]
        assert (drawn == drawn[:, :1]).all()


def test_the_same_generator_gives_the_same_episodes() -> None:
    groups_C = torch.arange(30) % 3
    for within in (False, True):
        one, two, other = (draw_classes(50, 5, groups_C, within, keyed(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


# --- every one equally likely ---


def even(counts: np.ndarray, expected: np.ndarray | None = None) -> bool:
    """Whether counts could well be even; a fair draw fails once in ten thousand seeds."""
    return chisquare(counts, expected).pvalue > 1e-4


def test_classes_are_equally_likely() -> None:
    classes_EN = draw_classes(20_000, 5, torch.zeros(23, dtype=torch.long), False, keyed(0))
    for position in range(5):
        assert even(np.bincount(classes_EN[:, position], minlength=23))
    pairs = classes_EN[:, 0] * 23 + classes_EN[:, 1]
    counts = np.bincount(pairs, minlength=23 * 23).reshape(23, 23)
    assert even(counts[~np.eye(23, dtype=bool)])


def test_groups_are_equally_likely_whatever_their_size_and_small_ones_are_left_out() -> None:
    sizes = [3, 5, 20, 9, 4, 5]
    groups_C = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    classes_EN = draw_classes(20_000, 5, groups_C, True, keyed(0))
    counts = np.bincount(groups_C[classes_EN[:, 0]], minlength=6)
    assert counts[0] == counts[4] == 0
    assert even(counts[[1, 2, 3, 5]])
    # And the classes within one.
    for group in (2, 3):
        inside = classes_EN[groups_C[classes_EN[:, 0]] == group].flatten()
        members = (groups_C == group).nonzero().flatten()
        assert even(np.bincount(inside, minlength=len(groups_C))[members])


def test_drawings_are_equally_likely_at_every_place() -> None:
    drawings = draw_drawings((4000, 3), 20, 6, keyed(0)).flatten(0, 1)
    for place in range(6):
        assert even(np.bincount(drawings[:, place], minlength=20))


def test_training_episodes_are_even() -> None:
    classes, drawings = zip(*(draw_episode(12, 20, 4, 5, keyed(seed)) for seed in range(3000)), strict=True)
    assert even(np.bincount(torch.cat(classes).flatten(), minlength=12))
    assert even(np.bincount(torch.cat(drawings).flatten(), minlength=20))
    first = torch.stack(drawings)[:, 0, 0] * 12 + torch.stack(classes)[:, 0, 0]
    assert even(np.bincount(first, minlength=240))


# --- too much asked for ---


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_more_ways_than_classes() -> None:
    for draw in (
        lambda: draw_classes(1, 9, torch.zeros(8, dtype=torch.long), False, keyed(0)),
        lambda: draw_episode(8, 20, 9, 2, keyed(0)),
    ):
        with pytest.raises(UserError) as caught:
            draw()
        one_line(caught, "9 ways were asked for, and there are 8 classes", "fewer ways")


def test_more_ways_than_any_alphabet_has() -> None:
    with pytest.raises(UserError) as caught:
        draw_classes(1, 5, torch.arange(12) % 3, True, keyed(0))
    one_line(caught, "no alphabet of this split has 5 classes", "fewer ways")


def test_more_shots_and_queries_than_drawings() -> None:
    for draw in (lambda: draw_drawings((2,), 20, 21, keyed(0)), lambda: draw_episode(8, 20, 2, 21, keyed(0))):
        with pytest.raises(UserError) as caught:
            draw()
        one_line(caught, "shots and queries make 21, and a class has 20 drawings", "fewer")


# --- what is scored ---


def clusters(num_classes: int, spread: float) -> torch.Tensor:
    noise = keyed(0)
    centre = torch.randn(num_classes, 1, 8, generator=noise)
    return centre + spread * torch.randn(num_classes, 20, 8, generator=noise)


def test_scores_fall_with_ways_and_rise_with_shots() -> None:
    z_CPD, groups_C = clusters(40, 1.5), torch.zeros(40, dtype=torch.long)

    def mean(way: int, shot: int) -> float:
        sizes = {"way": way, "shot": shot, "query": 5, "num_episodes": 600}
        return score_pool(z_CPD, groups_C, squared_euclidean, keyed(1), **sizes).mean

    assert mean(2, 1) > mean(5, 1) > mean(20, 1) > 100 / 20
    assert mean(5, 1) < mean(5, 5) < mean(5, 15)


def test_queries_are_not_their_own_support() -> None:
    # Every drawing lies alone: only a query that is in the support too could be right more often than by chance.
    z_CPD = torch.randn(30, 20, 64, generator=keyed(0))
    score = score_pool(
        z_CPD,
        torch.zeros(30, dtype=torch.long),
        squared_euclidean,
        keyed(1),
        way=5,
        shot=10,
        query=10,
        num_episodes=2000,
    )
    assert score.mean == pytest.approx(20, abs=5)


def test_distances_of_known_queries_and_of_strangers() -> None:
    z_CPD = clusters(30, 0.2)
    known, strange = nearest_distances(z_CPD, squared_euclidean, keyed(0), way=5, shot=3, num_episodes=50)
    assert len(known) == len(strange) == 50 * 5 * 17
    assert known.mean() < 0.3 * strange.mean()
    # Where all drawings of a class coincide, a known query lies on its prototype and no stranger does.
    same = z_CPD[:, :1].expand(-1, 20, -1)
    known, strange = nearest_distances(same, squared_euclidean, keyed(0), way=5, shot=3, num_episodes=50)
    assert known.max() < 1e-4
    assert strange.min() > 1e-2


def test_strangers_need_twice_the_classes() -> None:
    with pytest.raises(UserError, match="10 ways were asked for, and there are 9 classes"):
        nearest_distances(clusters(9, 1), squared_euclidean, keyed(0), way=5, shot=1, num_episodes=1)
