r"""Six normalisations of feature maps as their papers have them, with one interface.

Each of them takes the mean $\mu$ and the variance $\sigma^2$ over some group of values, and scales and shifts each
channel:

$$y = \gamma_c \hat x + \beta_c, \qquad \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}$$

| norm | a mean is over | source |
|---|---|---|
| `BatchNorm` | N, H, W | Ioffe and Szegedy 2015, algorithm 1 |
| `InstanceNorm` | H, W | Ulyanov et al. 2016, equation 3 |
| `BatchInstanceNorm` | both: $\hat x = \rho_c \hat x_B + (1 - \rho_c) \hat x_I$ | Nam and Kim 2018, equation 3 |
| `LayerNorm` | C, H, W | Ba et al. 2016, equation 3 |
| `GroupNorm` | H, W and the channels of a group | Wu and He 2018, equation 7 |
| `NoNorm` | nothing | |

PyTorch differentiates these formulas. `etude.nn.fast_norms` has the same layers with a backward pass derived by hand,
and is what runs where a study does not ask for the plain form.

Shape suffixes: N images, C channels, H W pixels; a table is ``[N, C]`` or broadcasts to it.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Pool = Literal["batch", "instance", "layer", "group"]
"""The values that share a mean and a variance."""


def normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    *,
    pool: Pool,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise maps by the statistics of a pool, and scale and shift them: None is 1 and 0.

    Half precision is computed in single; the answer has the memory layout of the maps.

    Returns:
        The normalised maps, and the means and (biased) variances as tables, without gradient.
    """
    x = x_NCHW.to(accumulator(x_NCHW))
    z = x.unflatten(1, (groups, -1)) if pool == "group" else x
    dims = {"batch": (0, 2, 3), "instance": (2, 3), "layer": (1, 2, 3), "group": (2, 3, 4)}[pool]
    mean = z.mean(dims, keepdim=True)
    variance = (z - mean).square().mean(dims, keepdim=True)
    y = scale_and_shift(((z - mean) / (variance + eps).sqrt()).view_as(x), weight_C, bias_C)
    mean, variance = (s.expand(*s.shape[:2], z.shape[2], 1, 1).flatten(1, 2) if pool == "group" else s
                      for s in (mean, variance))  # fmt: skip
    return y.to(x_NCHW.dtype), mean.detach().flatten(1), variance.detach().flatten(1)


def batch_instance_normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    gate_C: Tensor,
    running_mean_C: Tensor | None = None,
    running_var_C: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the normalisations of the batch, by a gate's share, and of each instance (Nam and Kim 2018, equation 3).

    The batch's mean and variance are the running ones where given; no gradient passes through them.

    Returns:
        The normalised maps, and the mean and (biased) variance of the batch that were used, ``[C]`` each.
    """
    assert (running_mean_C is None) == (running_var_C is None), "a running mean goes with a running variance"
    x = x_NCHW.to(accumulator(x_NCHW))
    by_instance, _, _ = normalize(x, None, None, pool="instance", eps=eps)
    if running_mean_C is None or running_var_C is None:
        by_batch, mean_1C, variance_1C = normalize(x, None, None, pool="batch", eps=eps)
        mean_C, variance_C = mean_1C[0], variance_1C[0]
    else:
        mean_C, variance_C = running_mean_C, running_var_C
        by_batch = (x - maps(mean_C)) / maps((variance_C + eps).sqrt())
    y = scale_and_shift(maps(gate_C) * by_batch + maps(1 - gate_C) * by_instance, weight_C, bias_C)
    return y.to(x_NCHW.dtype), mean_C, variance_C


def normalize_by(
    x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, mean_C: Tensor, variance_C: Tensor, *, eps: float
) -> Tensor:
    """Normalise maps by given statistics of each channel, as batch normalisation does in evaluation."""
    x = x_NCHW.to(accumulator(x_NCHW))
    return scale_and_shift((x - maps(mean_C)) / maps((variance_C + eps).sqrt()), weight_C, bias_C).to(x_NCHW.dtype)


def scale_and_shift(x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None) -> Tensor:
    r"""$\gamma_c \hat x + \beta_c$; None is 1 or 0."""
    y_NCHW = x_NCHW if weight_C is None else x_NCHW * maps(weight_C)
    return y_NCHW if bias_C is None else y_NCHW + maps(bias_C)


def accumulator(x: Tensor) -> torch.dtype:
    """The type that statistics are computed in: single precision at least."""
    return torch.promote_types(x.dtype, torch.float32)


def maps(table: Tensor) -> Tensor:
    """A table as a factor of feature maps."""
    return table.view(*table.shape, 1, 1)


def pool_count(shape: torch.Size, pool: Pool, groups: int) -> Any:
    """The number of values that share a mean: an int, or its symbol while a graph is exported."""
    # Any, for PyTorch's types say of a tensor divided by such a symbol that it is a symbol.
    num_images, channels, height, width = shape
    maps = {"batch": num_images, "instance": 1, "layer": channels, "group": channels // max(groups, 1)}
    return maps[pool] * height * width


class Norm(nn.Module):
    """A normalisation of feature maps, the base of the six; ``affine``: with a learned scale and shift a channel.

    ``forward`` maps ``[N, C, H, W]`` to the same shape, layout and type, and raises `ValueError` for another number of
    channels or dimensions, and where a variance would be of one value.
    """

    pool: ClassVar[Pool | None] = None
    # The formulas; `etude.nn.fast_norms` puts others in their place.
    normalize = staticmethod(normalize)
    normalize_by = staticmethod(normalize_by)
    batch_instance_normalize = staticmethod(batch_instance_normalize)

    def __init__(self, num_channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"a norm of {num_channels} channels: give 1 or more")
        self.num_channels, self.eps = num_channels, eps
        self.groups = 1
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps:g}, affine={self.weight is not None}"

    def check(self, x_NCHW: Tensor) -> None:
        """Refuse what the norm cannot be computed of."""
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__} of {self.num_channels} channels wants [N, {self.num_channels}, H, W], "
                f"not {list(x_NCHW.shape)}"
            )
        if not x_NCHW.is_floating_point():
            raise ValueError(f"{type(self).__name__} wants floating-point values, not {x_NCHW.dtype}: convert them")

    def check_count(self, x_NCHW: Tensor, pool: Pool) -> None:
        """Refuse variances of fewer than two values; an empty batch has none, unless they are the batch's."""
        count = pool_count(x_NCHW.shape, pool, self.groups)
        if count < 2 and (pool == "batch" or count == 0 or x_NCHW.shape[0] > 0):
            raise ValueError(
                f"{type(self).__name__} of {list(x_NCHW.shape)} would take a variance of {count} value(s): "
                "give more images or larger maps, or use another norm"
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        assert self.pool is not None, "a norm without a pool has its own forward"
        self.check(x_NCHW)
        self.check_count(x_NCHW, self.pool)
        return self.normalize(x_NCHW, self.weight, self.bias, pool=self.pool, groups=self.groups, eps=self.eps)[0]


class InstanceNorm(Norm):
    """Normalises over the pixels of each map, in training and evaluation alike (Ulyanov et al. 2016)."""

    pool = "instance"


class LayerNorm(Norm):
    """Normalises over all values of an image (Ba et al. 2016); scale and shift are a channel's, as in Wu and He 2018.

    PyTorch's `nn.LayerNorm([C, H, W])` has a scale and shift for every value, and so a fixed size of maps.
    """

    pool = "layer"


class GroupNorm(Norm):
    """Normalises over the pixels and channels of each group (Wu and He 2018).

    A number of groups that does not divide the channels, or would leave one channel a group (which is instance
    normalisation), gives way to the next smaller one that does neither, with a warning.
    """

    pool = "group"

    def __init__(self, num_channels: int, num_groups: int = 8, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_channels, eps=eps, affine=affine)
        self.groups = choose_groups(num_channels, num_groups)
        if self.groups != num_groups:
            warnings.warn(
                f"GroupNorm of {num_channels} channels takes {self.groups} group(s) in place of {num_groups}",
                UserWarning,
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def choose_groups(num_channels: int, wished: int) -> int:
    """The largest number of groups up to ``wished`` that divides the channels and leaves two or more in each."""
    if wished < 1:
        raise ValueError(f"{wished} groups: give 1 or more")
    most = max(1, min(wished, num_channels // 2))
    return next(groups for groups in range(most, 0, -1) if num_channels % groups == 0)


class _RunningNorm(Norm):
    """A norm whose statistics over the batch are tracked for evaluation."""

    def __init__(
        self, num_channels: int, *, momentum: float | None = 0.1, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(num_channels, eps=eps, affine=affine)
        self.momentum = momentum
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        # The name and count that PyTorch's layer has, so that state dicts are exchanged.
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def extra_repr(self) -> str:
        momentum = "None" if self.momentum is None else f"{self.momentum:g}"
        return f"{super().extra_repr()}, momentum={momentum}"

    @torch.no_grad()
    def track(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Move the running statistics towards a batch's; the variance as the unbiased one of ``count`` values."""
        self.num_batches_tracked.add_(1)
        # None: the mean of all batches so far.
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean), share)
        self.running_var.lerp_((variance_C * (count / (count - 1))).to(self.running_var), share)


class BatchNorm(_RunningNorm):
    """Normalises over the batch in training, by running statistics in evaluation (Ioffe and Szegedy 2015).

    Source: algorithm 1 in training, algorithm 2 in evaluation; ``momentum`` is the share of the newest batch,
    None the same share for every batch so far.
    """

    pool = "batch"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        given = (x_NCHW, self.weight, self.bias)
        if not self.training:
            return self.normalize_by(*given, self.running_mean, self.running_var, eps=self.eps)
        self.check_count(x_NCHW, "batch")
        y_NCHW, mean_1C, variance_1C = self.normalize(*given, pool="batch", eps=self.eps)
        self.track(mean_1C[0], variance_1C[0], pool_count(x_NCHW.shape, "batch", 1))
        return y_NCHW


class BatchInstanceNorm(_RunningNorm):
    r"""Mixes batch and instance normalisation by a gate $\rho_c$ in [0, 1] (Nam and Kim 2018, section 3).

    Starts as batch normalisation, all gates at 1. Call `clamp_gate` after each optimiser step; the authors give gates
    ten times the learning rate, and no weight decay.
    """

    def __init__(
        self, num_channels: int, *, momentum: float | None = 0.1, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(num_channels, momentum=momentum, eps=eps, affine=affine)
        self.gate = nn.Parameter(torch.ones(num_channels))

    @torch.no_grad()
    def clamp_gate(self) -> None:
        """Keep every gate within 0 and 1."""
        self.gate.clamp_(0, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        self.check_count(x_NCHW, "instance")
        given = (x_NCHW, self.weight, self.bias, self.gate)
        if not self.training:
            return self.batch_instance_normalize(*given, self.running_mean, self.running_var, eps=self.eps)[0]
        self.check_count(x_NCHW, "batch")
        y_NCHW, mean_C, variance_C = self.batch_instance_normalize(*given, eps=self.eps)
        self.track(mean_C, variance_C, pool_count(x_NCHW.shape, "batch", 1))
        return y_NCHW


class NoNorm(Norm):
    """Leaves the maps as they are, where a network has no normalisation."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        return x_NCHW


NORMS: Mapping[str, Callable[..., nn.Module]] = {
    "bn-torch": nn.BatchNorm2d,
    "bn": BatchNorm,
    "in": InstanceNorm,
    "bin": BatchInstanceNorm,
    "ln": LayerNorm,
    "gn": GroupNorm,
    "none": NoNorm,
}
"""The layers by the names that configurations use; ``bn-torch`` is PyTorch's own batch norm, to check ours against."""
