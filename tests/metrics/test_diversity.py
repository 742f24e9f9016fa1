"""The collapse monitor: what it says of varied, repeated and few pictures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from etude.metrics import diversity
from etude.metrics.diversity import Diversity, measure


def pictures(count: int, *, size: int = 16, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    # Distances 3, 4 and 5 against one of 8; the nearest are 3, 3 and 4 beside a median of 8.
    fake = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).view(3, 1, 1, 2)
    real = torch.tensor([[0.0, 0.0], [0.0, 8.0]]).view(2, 1, 1, 2)
    found = measure(fake, real)
    assert found.ratio == pytest.approx(4 / 8)
    assert found.duplicates == 0
    assert measure(fake / 1.5, real).duplicates == pytest.approx(2 / 3)
    assert measure(real, fake).ratio == pytest.approx(2)


def test_areas_are_averaged_first() -> None:
    flat, real = torch.full((20, 1, 32, 32), 0.5), pictures(20, size=32)
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    signs = torch.where(torch.rand(20, 1, 1, 1, generator=torch.Generator().manual_seed(1)) < 0.5, -0.5, 0.5)
    # A pattern of single pixels is no variety: its areas are all alike.
    assert measure(flat + signs * (2 * checks - 1), real).ratio == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1, 7, 16, 17, 28, 32, 70])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_pictures_are_as_varied(size: int, channels: int) -> None:
    images = pictures(12, size=size, channels=channels)
    found = measure(images, images)
    assert found.ratio == pytest.approx(1)
    assert not found.faults


@given(st.integers(0, 2**31), st.integers(2, 30))
def test_order_means_nothing(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    fake, real = pictures(count, size=4, seed=seed), pictures(9, size=4, seed=seed + 1)
    labels, real_labels = torch.randint(3, (count,), generator=draw), torch.randint(3, (9,), generator=draw)
    order, real_order = torch.randperm(count, generator=draw), torch.randperm(9, generator=draw)
    one = measure(fake, real, labels, real_labels)
    two = measure(fake[order], real[real_order], labels[order], real_labels[real_order])
    assert two.ratio == pytest.approx(one.ratio)
    assert two.duplicates == one.duplicates
    assert two.by_class == pytest.approx(one.by_class)


@given(st.floats(0.01, 300), st.floats(-100, 100))
def test_scale_and_offset_of_both_mean_nothing(scale: float, offset: float) -> None:
    fake, real = pictures(8), pictures(8, seed=1)
    assert measure(fake * scale + offset, real * scale + offset).ratio == pytest.approx(
        measure(fake, real).ratio, rel=1e-2
    )


def test_bytes_are_read_as_numbers() -> None:
    fake, real = ((pictures(8, seed=seed) * 255).to(torch.uint8) for seed in (0, 1))
    assert measure(fake, real).ratio == pytest.approx(measure(fake.double(), real.double()).ratio)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50])
def test_few_pictures_over_and_over_are_a_collapse(count: int) -> None:
    real = pictures(100, seed=1)
    fake = pictures(count).repeat(100 // count + 1, 1, 1, 1)[:100]
    found = measure(fake, real)
    # Of all pairs 1/k are of one picture with itself.
    assert found.ratio == pytest.approx(1 - 1 / count, abs=0.05)
    assert found.duplicates == 1
    assert found.collapsed
    assert measure(fake, real).collapsed
    noisy = fake + 0.02 * torch.randn(fake.shape, generator=torch.Generator().manual_seed(2))
    assert measure(noisy, real).duplicates == 1
    assert any("repeat" in fault for fault in found.faults)


def test_the_faults_in_words() -> None:
    real = pictures(100, seed=1)
    # Two modes nearer to each other than real pictures are.
    two = 0.9 * pictures(1) + 0.1 * pictures(100, seed=2)[torch.arange(100) % 2]
    for fake in (two, pictures(1).expand(100, -1, -1, -1)):
        found = measure(fake, real)
        assert found.faults == (
            f"generated pictures differ {found.ratio:.2f} times as much as real ones",
            "100% of them nearly repeat another",
        )
    assert measure(pictures(100), real).faults == ()


def test_a_class_that_is_always_the_same_picture_is_found() -> None:
    labels = torch.arange(100) % 4
    fake, real = pictures(100), pictures(100, seed=1)
    fake[labels == 3] = fake[3].clone()
    found = measure(fake, real, labels, labels)
    assert sorted(found.by_class) == [0, 1, 2, 3]
    assert found.by_class[3] == pytest.approx(0, abs=1e-6)
    assert [found.by_class[label] for label in range(3)] == pytest.approx([1, 1, 1], abs=0.1)
    assert found.faults == ("within classes: 3 (0.00)",)


def test_a_class_of_one_picture_says_nothing() -> None:
    images, labels = pictures(5), torch.tensor([0, 0, 1, 2, 2])
    assert sorted(measure(images, images, labels, torch.tensor([0, 0, 1, 1, 3])).by_class) == [0]
    assert measure(images, images, labels).by_class == {}


def test_what_is_no_number_is_a_collapse() -> None:
    fake = pictures(8)
    fake[3, 0, 0, 0] = torch.nan
    found = measure(fake, pictures(8, seed=1))
    assert math.isnan(found.ratio)
    assert found.collapsed


def test_real_pictures_that_are_all_one() -> None:
    one = pictures(1).expand(4, -1, -1, -1)
    assert measure(pictures(4), one).ratio == math.inf
    assert math.isnan(measure(one, one).ratio)


@pytest.mark.parametrize(
    ("found", "is_collapsed"),
    [
        (Diversity(diversity.LEAST_RATIO, diversity.MOST_DUPLICATES), False),
        (Diversity(diversity.LEAST_RATIO - 0.01, 0.0), True),
        (Diversity(1.0, diversity.MOST_DUPLICATES + 0.01), True),
        (Diversity(1.0, 0.0, {7: diversity.LEAST_RATIO}), False),
        (Diversity(1.0, 0.0, {7: 0.2}), True),
    ],
)
def test_the_thresholds_are_as_stated(found: Diversity, is_collapsed: bool) -> None:
    assert found.collapsed == is_collapsed


def test_many_pictures_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = pictures(23, size=4), pictures(17, size=4, seed=1)
    whole = measure(fake, real)
    monkeypatch.setattr(diversity, "_ROWS", 5)
    parts = measure(fake, real)
    assert parts.ratio == pytest.approx(whole.ratio)
    assert parts.duplicates == whole.duplicates
