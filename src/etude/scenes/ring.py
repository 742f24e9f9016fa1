"""Scenes cut into segments without a network: the edge of a picture tells what the ground looks like.

Objects seldom touch the edge, so the pixels within three of it are nearly all of the ground. A mixture of three
Gaussians is fitted to their colours and textures (Dempster et al. 1977, by expectation and maximisation); what it finds
unlikely is an object, and those pixels are put into clusters by colour, texture and place (Lloyd 1982).

All of it is batched, on the device of the pictures, and draws nothing: the same pictures give the same segments.

Shape suffixes: B images, H W pixels, N pixels of an image, F features, M Gaussians, K clusters, C colours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RingConfig:
    """The settings, chosen on validation scenes."""

    ring: int = 3
    """Pixels from the edge that are taken for ground."""
    gaussians: int = 3
    """M."""
    clusters: int = 8
    """K of what is no ground."""
    quantile: float = 0.1
    """The share of the ring's own pixels that the ground may find unlikely."""
    place: float = 1.0
    """The weight of a pixel's place in the clusters: 1, the picture's width is as far as its range of colours."""
    smooth: int = 5
    """Side of the window whose majority says what is ground."""


def features(images_BHWC: Tensor) -> Tensor:
    """Colour and texture of each pixel, float32 ``[B, H, W, 5]``.

    Lightness and two opponent colours, smoothed a little, and the spread of the lightness in windows of 3 and 7 pixels.

    Args:
        images_BHWC: bytes.
    """
    x_BCHW = images_BHWC.movedim(-1, 1).float() / 255
    red, green, blue = x_BCHW.unbind(1)
    opponent_BCHW = torch.stack([(red + green + blue) / 3, (red - green) / 2, (red + green) / 4 - blue / 2], 1)
    light_B1HW = opponent_BCHW[:, :1]
    spreads = [(_mean(light_B1HW.square(), side) - _mean(light_B1HW, side).square()).clamp(min=0).sqrt()
               for side in (3, 7)]  # fmt: skip
    return torch.cat([_mean(opponent_BCHW, 3), *spreads], 1).movedim(1, -1)


def _mean(x_BCHW: Tensor, side: int) -> Tensor:
    padded = functional.pad(x_BCHW, [side // 2] * 4, mode="reflect")
    return functional.avg_pool2d(padded, side, stride=1)


def log_likelihood(ring_BNF: Tensor, all_BNF: Tensor, gaussians: int, rounds: int = 15) -> Tensor:
    """The log-density of points under a mixture of Gaussians that is fitted to others, ``[B, N]``.

    Args:
        ring_BNF: the points that it is fitted to.
        all_BNF: the points that are asked of.
        gaussians: M.
        rounds: of expectation and maximisation.
    """
    # It begins with slices of equal size along the direction of most spread.
    centred_BNF = ring_BNF - ring_BNF.mean(1, keepdim=True)
    axis_BF = torch.linalg.eigh(centred_BNF.mT @ centred_BNF).eigenvectors[:, :, -1]
    rank_BN = (centred_BNF @ axis_BF[:, :, None]).squeeze(-1).argsort(1).argsort(1)
    share_BNM = functional.one_hot(rank_BN * gaussians // ring_BNF.shape[1], gaussians).to(ring_BNF.dtype)
    floor_FF = 1e-4 * torch.eye(ring_BNF.shape[2], dtype=ring_BNF.dtype, device=ring_BNF.device)
    for _ in range(rounds):
        weight_BM = share_BNM.sum(1).clamp(min=1e-6)
        mean_BMF = share_BNM.mT @ ring_BNF / weight_BM[:, :, None]
        off_BMNF = ring_BNF[:, None] - mean_BMF[:, :, None]
        spread_BMFF = (off_BMNF * share_BNM.mT[..., None]).mT @ off_BMNF / weight_BM[:, :, None, None] + floor_FF
        prior_BM = (weight_BM / weight_BM.sum(1, keepdim=True)).log()
        share_BNM = _densities(ring_BNF, prior_BM, mean_BMF, spread_BMFF).softmax(2)
    return _densities(all_BNF, prior_BM, mean_BMF, spread_BMFF).logsumexp(2)


def _densities(x_BNF: Tensor, prior_BM: Tensor, mean_BMF: Tensor, spread_BMFF: Tensor) -> Tensor:
    root_BMFF = torch.linalg.cholesky(spread_BMFF)
    off_BMFN = (x_BNF[:, None] - mean_BMF[:, :, None]).mT
    distance_BMN = torch.linalg.solve_triangular(root_BMFF, off_BMFN, upper=False).square().sum(2)
    volume_BM = root_BMFF.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = x_BNF.shape[2] / 2 * math.log(2 * math.pi)
    return (prior_BM - volume_BM - constant)[:, None] - distance_BMN.mT / 2


def clusters(points_BNF: Tensor, kept_BN: Tensor, count: int, rounds: int = 15) -> Tensor:
    """Lloyd's K-means of some of the points of each image, int64 ``[B, N]``.

    The first centre is the mean of what is kept, each further one the point that is farthest from all before it.

    Args:
        points_BNF: all points; those that are not kept are given their nearest cluster too.
        kept_BN: which of them have a say.
        count: K.
        rounds: of assignment and means.
    """
    kept_BN1 = kept_BN[..., None].to(points_BNF.dtype)
    centres_BKF = (points_BNF * kept_BN1).sum(1, keepdim=True) / kept_BN1.sum(1, keepdim=True).clamp(min=1)
    for _ in range(count - 1):
        far_BN = torch.cdist(points_BNF, centres_BKF).amin(2).where(kept_BN, -1)
        chosen_B1F = points_BNF.gather(1, far_BN.argmax(1)[:, None, None].expand(-1, 1, points_BNF.shape[2]))
        centres_BKF = torch.cat([centres_BKF, chosen_B1F], 1)
    for _ in range(rounds):
        member_BNK = functional.one_hot(torch.cdist(points_BNF, centres_BKF).argmin(2), count) * kept_BN1
        size_BK1 = member_BNK.sum(1)[..., None]
        centres_BKF = torch.where(size_BK1 > 0, member_BNK.mT @ points_BNF / size_BK1.clamp(min=1), centres_BKF)
    return torch.cdist(points_BNF, centres_BKF).argmin(2)


def ring_segments(images_BHWC: Tensor, config: RingConfig | None = None) -> Tensor:
    """The segments of scenes, int64 ``[B, H, W]``: 0 the ground, from 1 the clusters of what is none.

    Args:
        images_BHWC: bytes.
        config: the settings.
    """
    config = config or RingConfig()
    height, width = images_BHWC.shape[1:3]
    found_BNF = features(images_BHWC).flatten(1, 2)
    edge_HW = torch.ones(height, width, dtype=torch.bool, device=images_BHWC.device)
    edge_HW[config.ring : -config.ring, config.ring : -config.ring] = False
    edge_N = edge_HW.flatten()
    likely_BN = log_likelihood(found_BNF[:, edge_N], found_BNF, config.gaussians)
    bound_B1 = likely_BN[:, edge_N].quantile(config.quantile, 1, keepdim=True)
    strange_BHW = (likely_BN < bound_B1).unflatten(1, (height, width))
    strange_BN = (_mean(strange_BHW[:, None].float(), config.smooth) > 0.5).flatten(1)
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, n, device=images_BHWC.device) for n in (height, width)),
                                   indexing="ij")  # fmt: skip
    place_BN2 = config.place * torch.stack([rows, columns], -1).flatten(0, 1).expand(len(images_BHWC), -1, -1)
    cluster_BN = clusters(torch.cat([found_BNF, place_BN2], 2), strange_BN, config.clusters)
    return torch.where(strange_BN, cluster_BN + 1, 0).unflatten(1, (height, width))
