"""L1, RMSE, PSNR, SSIM and the pixel accuracy of maps: by hand, and against a slow twin."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch import Tensor

from etude.metrics.pairs import l1, pixel_accuracy, psnr, rmse, ssim


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def slow_ssim(x_HW: np.ndarray, y_HW: np.ndarray) -> float:
    """Wang et al. 2004 as it is written, window by window."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for top in range(x_HW.shape[0] - 10):
        for left in range(x_HW.shape[1] - 10):
            x, y = (image[top : top + 11, left : left + 11].astype(np.float64) for image in (x_HW, y_HW))
            mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
            var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
            both = (weight * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 6.5025, 58.5225
            value = (2 * mean_x * mean_y + c1) * (2 * both + c2)
            values.append(value / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_the_slow_twin() -> None:
    x, y = noise(0, 2, 14, 17, 3), noise(1, 2, 14, 17, 3)
    y[1] = (x[1].float() * 0.7 + 30).byte()
    expected = [np.mean([slow_ssim(x[n, ..., c].numpy(), y[n, ..., c].numpy()) for c in range(3)]) for n in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-10)
    assert abs(expected[0] - expected[1]) > 0.3


def test_values_by_hand() -> None:
    truth = torch.zeros(2, 11, 11, 3, dtype=torch.uint8)
    made = truth.clone()
    made[0] = 10
    made[1, 0, 0, 1] = 255
    assert l1(made, truth).tolist() == pytest.approx([10, 255 / 363])
    assert rmse(made, truth).tolist() == pytest.approx([10 * math.sqrt(3), 255 / math.sqrt(121)])
    assert psnr(made, truth).tolist() == pytest.approx([20 * math.log10(25.5), 10 * math.log10(363)])
    # Two flat pictures differ by their means only: C1 / (100 + C1).
    assert ssim(made, truth)[0].item() == pytest.approx(6.5025 / 106.5025)
    assert pixel_accuracy(made, truth, 10).tolist() == pytest.approx([0, 100 * 120 / 121])
    assert pixel_accuracy(made, truth, 11).tolist() == pytest.approx([100, 100 * 120 / 121])


def test_the_errors_are_scikit_learns() -> None:
    """The worst channel of a pixel counts for its accuracy, as the authors' script of Fu et al. 2019 has it."""
    made, truth = noise(2, 3, 12, 13, 3), noise(3, 3, 12, 13, 3)
    made[1] = (truth[1].int() + noise(4, 12, 13, 3).int() % 14 - 7).clamp(0, 255).byte()
    for number, (x, y) in enumerate(zip(made.double().numpy(), truth.double().numpy(), strict=True)):
        flat_x, flat_y = x.reshape(-1), y.reshape(-1)
        assert l1(made, truth)[number].item() == pytest.approx(mean_absolute_error(flat_y, flat_x))
        assert rmse(made, truth)[number].item() == pytest.approx(math.sqrt(3) * root_mean_squared_error(flat_y, flat_x))
        for tolerance in (5, 10):
            right = [max(abs(a - b) for a, b in zip(one, other, strict=True)) < tolerance
                     for one, other in zip(x.reshape(-1, 3), y.reshape(-1, 3), strict=True)]  # fmt: skip
            assert pixel_accuracy(made, truth, tolerance)[number].item() == pytest.approx(100 * np.mean(right))


@given(st.integers(0, 1000), st.integers(11, 20), st.integers(11, 20))
def test_equal_pictures_and_symmetry(seed: int, height: int, width: int) -> None:
    x, y = noise(seed, 2, height, width, 3), noise(seed + 1, 2, height, width, 3)
    assert l1(x, x).tolist() == [0, 0]
    assert psnr(x, x).tolist() == [100, 100]
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    assert pixel_accuracy(x, x, 5).tolist() == [100, 100]
    for measure in (l1, psnr, ssim):
        torch.testing.assert_close(measure(x, y), measure(y, x))
    assert -1 <= ssim(x, y).min() <= ssim(x, y).max() < 0.5


def test_one_channel_off_makes_a_pixel_wrong() -> None:
    truth = torch.full((1, 11, 11, 3), 100, dtype=torch.uint8)
    for channel in range(3):
        made = truth.clone()
        made[..., channel] = 95
        assert pixel_accuracy(made, truth, 5).item() == 0
        assert pixel_accuracy(made, truth, 6).item() == 100
