r"""The likeness of generated pictures to the true ones, picture by picture.

- L1: $\frac{1}{HWC} \sum |x - y|$, in levels of 0 to 255.
- RMSE: the root of a picture's $\mathrm{MSE}$, in levels; with the pixel accuracy what papers on maps print.
- PSNR: $10 \log_{10}(255^2 / \mathrm{MSE})$, in dB.
- SSIM (Wang, Bovik, Sheikh, Simoncelli 2004, equations 13 to 16):
  $\frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}$
  with a Gaussian window of 11 x 11 pixels and a standard deviation of 1.5, $C_1 = (0.01 \cdot 255)^2$ and
  $C_2 = (0.03 \cdot 255)^2$; the mean over all places of the whole window, and over the channels, each by itself.
- Pixel accuracy of maps: the share of the pixels whose largest difference in a channel is below a tolerance of 5 or 10
  levels, for a map has few colours (Fu et al. 2019, "Geometry-consistent generative adversarial networks for one-sided
  unsupervised domain mapping", their experiment on Google Maps).

Shape suffixes: N pictures, H height, W width, C channels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

TOLERANCES = (5, 10)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MOST_DB = 100.0


def l1(made_NHWC: Tensor, truth_NHWC: Tensor) -> Tensor:
    """Mean absolute difference of uint8 pictures ``[N, H, W, C]``: float64 ``[N]``, in levels."""
    return _difference(made_NHWC, truth_NHWC).abs().flatten(1).double().mean(1)


def rmse(made_NHWC: Tensor, truth_NHWC: Tensor) -> Tensor:
    """Root of the mean squared distance of the pixels of uint8 pictures ``[N, H, W, C]``: float64 ``[N]``, in levels.

    A pixel's distance is over its channels together, as in the evaluation of maps that GcGAN's authors publish
    (evaluate_maps.py): of three channels it is the square root of three times the deviation of one.
    """
    return _difference(made_NHWC, truth_NHWC).double().square().sum(3).flatten(1).mean(1).sqrt()


def psnr(made_NHWC: Tensor, truth_NHWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 pictures ``[N, H, W, C]``: float64 ``[N]``, in dB; 100 where all is equal."""
    square = _difference(made_NHWC, truth_NHWC).double().square().flatten(1).mean(1)
    return (20 * math.log10(255) - 10 * square.log10()).clamp(max=_MOST_DB)


def ssim(made_NHWC: Tensor, truth_NHWC: Tensor) -> Tensor:
    """Structural similarity of uint8 pictures ``[N, H, W, C]``, at least 11 x 11 pixels: float64 ``[N]``."""
    assert min(made_NHWC.shape[1:3]) >= _WINDOW, "no place for a whole window"
    assert made_NHWC.shape == truth_NHWC.shape
    x, y = (_planes(images) for images in (made_NHWC, truth_NHWC))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x.square()
    var_y = _blurred(y * y) - mean_y.square()
    both = _blurred(x * y) - mean_x * mean_y
    upper = (2 * mean_x * mean_y + _C1) * (2 * both + _C2)
    lower = (mean_x.square() + mean_y.square() + _C1) * (var_x + var_y + _C2)
    return (upper / lower).flatten(1).mean(1).view(len(made_NHWC), -1).mean(1)


def pixel_accuracy(made_NHWC: Tensor, truth_NHWC: Tensor, tolerance: int) -> Tensor:
    """Per cent of the pixels of uint8 pictures ``[N, H, W, C]`` whose every channel is off by less: float64 ``[N]``."""
    worst_NHW = _difference(made_NHWC, truth_NHWC).abs().amax(-1)
    return (worst_NHW < tolerance).flatten(1).double().mean(1) * 100


def _difference(made: Tensor, truth: Tensor) -> Tensor:
    assert made.dtype == truth.dtype == torch.uint8
    assert made.shape == truth.shape
    return made.to(torch.int16) - truth.to(torch.int16)


def _planes(images_NHWC: Tensor) -> Tensor:
    """Each channel as a picture of its own, float64 ``[N * C, 1, H, W]``."""
    return images_NHWC.permute(0, 3, 1, 2).double().flatten(0, 1)[:, None]


def _blurred(planes: Tensor) -> Tensor:
    """The Gaussian's mean at every place of the whole window: rows, then columns."""
    place = torch.arange(_WINDOW, dtype=planes.dtype, device=planes.device) - _WINDOW // 2
    weight = torch.exp(-(place**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    return functional.conv2d(functional.conv2d(planes, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
