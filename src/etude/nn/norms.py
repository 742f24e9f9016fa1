r"""Six normalisations of feature maps, from scratch, with one interface and a factory.

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

Every group is a union of whole maps, so all that goes over the pixels are sums over a map and one scale and shift of
it; the rest of the algebra, forward and backward, is on small tables ``[N, C]``. `plain_normalize` is the same as the
formula reads; it is slower, and can be differentiated twice.

Shape suffixes: N images, C channels, H W pixels; a table is ``[N, C]`` or broadcasts to it.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from etude.core.plugin import resolve
from etude.nn.user_part import tried_module

Pool = Literal["batch", "instance", "layer", "group"]


def pool_sum(table_NC: Tensor, pool: Pool, groups: int) -> Tensor:
    """The sum of a table over each group of maps, as a table: ``[1, C]``, ``[N, 1]`` or ``[N, C]``."""
    if pool == "batch":
        return table_NC.sum(0, keepdim=True)
    if pool == "layer":
        return table_NC.sum(1, keepdim=True)
    if pool == "group":
        num_images, channels = table_NC.shape
        if torch.compiler.is_compiling() and table_NC.device.type == "cpu":
            return _pool_groups_compiled(table_NC, channels // groups)
        sum_NG1 = table_NC.view(num_images, groups, channels // groups).sum(2, keepdim=True)
        return sum_NG1.expand(-1, -1, channels // groups).reshape(num_images, channels)
    return table_NC


def _pool_groups_compiled(table_NC: Tensor, size: int) -> Tensor:
    """As a matrix product, because the compiler would repeat a sum that it can look into for every pixel.

    In double precision, which neither autocast nor a lower precision of matrix products touches.
    """
    group_C = torch.arange(table_NC.shape[1], device=table_NC.device) // size
    same_CC = (group_C[:, None] == group_C).double()
    return (table_NC.double() @ same_CC).to(table_NC.dtype)


def pool_count(shape: torch.Size, pool: Pool, groups: int) -> Any:
    """How many values share a mean: an int, or its symbol while a graph is exported."""
    # Any, for PyTorch's types say of a tensor divided by such a symbol that it is a symbol.
    num_images, channels, height, width = shape
    maps = {"batch": num_images, "instance": 1, "layer": channels, "group": channels // max(groups, 1)}
    return maps[pool] * height * width


def plain_normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    *,
    pool: Pool,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The readable reference of `normalize`: the formula, differentiated by PyTorch."""
    x = x_NCHW.to(_accumulator(x_NCHW))
    z = x.unflatten(1, (groups, -1)) if pool == "group" else x
    dims = {"batch": (0, 2, 3), "instance": (2, 3), "layer": (1, 2, 3), "group": (2, 3, 4)}[pool]
    mean = z.mean(dims, keepdim=True)
    variance = (z - mean).square().mean(dims, keepdim=True)
    y = ((z - mean) / (variance + eps).sqrt()).view_as(x)
    if weight_C is not None:
        y = y * _maps(weight_C)
    if bias_C is not None:
        y = y + _maps(bias_C)
    mean, variance = (s.expand(*s.shape[:2], z.shape[2], 1, 1).flatten(1, 2) if pool == "group" else s
                      for s in (mean, variance))  # fmt: skip
    return y.to(x_NCHW.dtype), mean.detach().flatten(1), variance.detach().flatten(1)


def normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    *,
    pool: Pool,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise maps by the statistics of a pool, with a backward pass derived by hand.

    Half precision is computed in single. Cannot be differentiated twice: `plain_normalize` can.

    Args:
        x_NCHW: ``[N, C, H, W]`` in any memory layout; the answer has the same one.
        weight_C: scale of each channel, or None for 1.
        bias_C: shift of each channel, or None for 0.
        pool: which values share a mean and a variance.
        groups: of channels, for the pool ``group``.
        eps: added to the variance.

    Returns:
        The normalised maps, and the means and (biased) variances as tables, without gradient.
    """
    return _Normalize.apply(x_NCHW, weight_C, bias_C, pool, groups, eps)  # pyright: ignore[reportReturnType]


class _Normalize(torch.autograd.Function):
    r"""With $g = \gamma \dot y$, the gradient is $\dot x = r (g - \overline{g} - \hat x \, \overline{g \hat x})$.

    The bars are means over the group, $r = (\sigma^2 + \epsilon)^{-1/2}$; so $\dot x$ is a scale of $\dot y$, a scale
    of $x - \mu$ and a shift, each a table.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, pool: Pool, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x_NCHW.to(_accumulator(x_NCHW))
        count = pool_count(x.shape, pool, groups)
        mean = pool_sum(x.sum((2, 3)), pool, groups) / count
        centred = x - _maps(mean)
        if pool == "layer" and _in_rows(centred):
            variance = _squares_in_rows(centred) / count
        else:
            variance = pool_sum(_squares(centred), pool, groups) / count
        rate = (variance + eps).rsqrt()
        scale = rate if weight_C is None else rate * weight_C
        y = _affine(centred, scale, bias_C)
        ctx.save_for_backward(centred, rate, scale, weight_C)
        ctx.pool, ctx.groups, ctx.count, ctx.dtype, ctx.biased = pool, groups, count, x_NCHW.dtype, bias_C is not None
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x_NCHW.dtype), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_NCHW: Tensor, *_: Any) -> tuple[Any, ...]:
        centred, rate, scale, weight_C = ctx.saved_tensors
        dy = dy_NCHW.to(centred.dtype)
        sum_NC, product_NC = dy.sum((2, 3)), (dy * centred).sum((2, 3))
        share = 1 / -ctx.count if weight_C is None else weight_C / -ctx.count
        shift = pool_sum(sum_NC * share, ctx.pool, ctx.groups) * rate
        by_centred = pool_sum(product_NC * share, ctx.pool, ctx.groups) * rate.pow(3)
        dx = _affine(dy, scale, shift).addcmul_(centred, _maps(by_centred))
        d_weight = None if weight_C is None else (product_NC * rate).sum(0)
        return dx.to(ctx.dtype), d_weight, sum_NC.sum(0) if ctx.biased else None, None, None, None


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _maps(table: Tensor) -> Tensor:
    """A table as a factor of feature maps."""
    return table.view(*table.shape, 1, 1)


# Which of several ways to the same value PyTorch's kernels are quickest at depends on the layout. The compiler fuses
# the plainest one, and gives its result the layout of the first factor.


def _in_rows(x_NCHW: Tensor) -> bool:
    """Whether each image is one row in memory, channels last."""
    return not torch.compiler.is_compiling() and x_NCHW.is_contiguous(memory_format=torch.channels_last)


def _squares_in_rows(x_NCHW: Tensor) -> Tensor:
    """The sum of the squares of each image, ``[N, 1]``."""
    return torch.linalg.vector_norm(x_NCHW.permute(0, 2, 3, 1).flatten(1), dim=1, keepdim=True).square()


def _squares(x_NCHW: Tensor) -> Tensor:
    """The sum of the squares of each map, ``[N, C]``."""
    if x_NCHW.is_contiguous() and not torch.compiler.is_compiling():
        return torch.linalg.vector_norm(x_NCHW, dim=(2, 3)).square()
    return x_NCHW.square().sum((2, 3))


def _affine(x_NCHW: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` with tables."""
    if shift is None:
        return x_NCHW * _maps(scale)
    if torch.compiler.is_compiling():
        return x_NCHW * _maps(scale) + _maps(shift)
    if x_NCHW.is_contiguous():
        return (x_NCHW * _maps(scale)).add_(_maps(shift))
    return torch.addcmul(_maps(shift), x_NCHW, _maps(scale))


class Norm(nn.Module):
    """What the six have in common.

    Args:
        num_channels: C.
        eps: added to variances.
        affine: whether each channel has a learned scale (from 1) and shift (from 0).

    ``forward`` maps ``[N, C, H, W]`` to the same shape, layout and type, and raises `ValueError` for another number of
    channels or dimensions, and where a variance would be of one value.
    """

    pool: ClassVar[Pool | None] = None

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
        y_NCHW, _, _ = normalize(x_NCHW, self.weight, self.bias, pool=self.pool, groups=self.groups, eps=self.eps)
        return y_NCHW


class InstanceNorm(Norm):
    """Over the pixels of each map, in training and evaluation alike (Ulyanov et al. 2016)."""

    pool = "instance"


class LayerNorm(Norm):
    """Over all values of an image (Ba et al. 2016), with a scale and shift a channel as Wu and He 2018 have it.

    PyTorch's `nn.LayerNorm([C, H, W])` has a scale and shift for every value, and so a fixed size of maps.
    """

    pool = "layer"


class GroupNorm(Norm):
    """Over the pixels and channels of each group (Wu and He 2018).

    Args:
        num_groups: how many are wished for. Where it does not divide the channels, or would leave one channel a group
            (which is instance normalisation), the next smaller number that does neither is taken, with a warning.
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

    def __init__(self, num_channels: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
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
        return f"{super().extra_repr()}, momentum={self.momentum:g}"

    @torch.no_grad()
    def track(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Move the running statistics towards a batch's; the variance as the unbiased one of ``count`` values."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance_C * (count / (count - 1))).to(self.running_var), self.momentum)


class BatchNorm(_RunningNorm):
    """Over the batch in training, by running statistics in evaluation (Ioffe and Szegedy 2015, algorithms 1 and 2).

    Args:
        momentum: the share of the newest batch in the running statistics.
    """

    pool = "batch"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        if not self.training:
            rate_C = (self.running_var + self.eps).rsqrt()
            scale_C = rate_C if self.weight is None else rate_C * self.weight
            shift_C = -self.running_mean * scale_C
            if self.bias is not None:
                shift_C = shift_C + self.bias
            return _affine(x_NCHW.to(_accumulator(x_NCHW)), scale_C, shift_C).to(x_NCHW.dtype)
        self.check_count(x_NCHW, "batch")
        y_NCHW, mean_1C, variance_1C = normalize(x_NCHW, self.weight, self.bias, pool="batch", eps=self.eps)
        self.track(mean_1C[0], variance_1C[0], pool_count(x_NCHW.shape, "batch", 1))
        return y_NCHW


class NoNorm(Norm):
    """The maps as they are; what stands where a network has no normalisation."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        return x_NCHW


class BatchInstanceNorm(_RunningNorm):
    r"""Batch and instance normalisation, mixed by a gate $\rho_c$ in [0, 1] (Nam and Kim 2018, section 3).

    Starts as batch normalisation, all gates at 1. Call `clamp_gate` after each optimiser step; the authors give gates
    ten times the learning rate, and no weight decay. The statistics of instances are computed once, and those of the
    batch derived from them.
    """

    def __init__(self, num_channels: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_channels, momentum=momentum, eps=eps, affine=affine)
        self.gate = nn.Parameter(torch.ones(num_channels))

    @torch.no_grad()
    def clamp_gate(self) -> None:
        self.gate.clamp_(0, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.check(x_NCHW)
        self.check_count(x_NCHW, "instance")
        if not self.training:
            y_NCHW, _, _ = batch_instance_normalize(
                x_NCHW, self.weight, self.bias, self.gate, self.running_mean, self.running_var, eps=self.eps
            )
            return y_NCHW
        self.check_count(x_NCHW, "batch")
        y_NCHW, mean_C, variance_C = batch_instance_normalize(x_NCHW, self.weight, self.bias, self.gate, eps=self.eps)
        self.track(mean_C, variance_C, pool_count(x_NCHW.shape, "batch", 1))
        return y_NCHW


def plain_batch_instance_normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    gate_C: Tensor,
    running_mean_C: Tensor | None = None,
    running_var_C: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The readable reference of `batch_instance_normalize`."""
    x = x_NCHW.to(_accumulator(x_NCHW))
    by_instance, _, _ = plain_normalize(x, None, None, pool="instance", eps=eps)
    if running_mean_C is None or running_var_C is None:
        by_batch, mean_1C, variance_1C = plain_normalize(x, None, None, pool="batch", eps=eps)
        mean_C, variance_C = mean_1C[0], variance_1C[0]
    else:
        mean_C, variance_C = running_mean_C, running_var_C
        by_batch = (x - _maps(mean_C)) / _maps((variance_C + eps).sqrt())
    y = _maps(gate_C) * by_batch + _maps(1 - gate_C) * by_instance
    if weight_C is not None:
        y = y * _maps(weight_C)
    if bias_C is not None:
        y = y + _maps(bias_C)
    return y.to(x_NCHW.dtype), mean_C, variance_C


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
    """Nam and Kim 2018, equation 3, with a backward pass derived by hand.

    Args:
        x_NCHW: ``[N, C, H, W]`` in any memory layout.
        weight_C: scale of each channel, or None for 1.
        bias_C: shift of each channel, or None for 0.
        gate_C: the share of the batch's normalisation.
        running_mean_C: the batch's mean is this, where given; no gradient passes through it.
        running_var_C: the batch's variance, likewise.
        eps: added to variances.

    Returns:
        The normalised maps, and the mean and (biased) variance of the batch that were used, ``[C]`` each.
    """
    assert (running_mean_C is None) == (running_var_C is None), "a running mean goes with a running variance"
    return _BatchInstance.apply(x_NCHW, weight_C, bias_C, gate_C, running_mean_C, running_var_C, eps)  # pyright: ignore[reportReturnType]


class _BatchInstance(torch.autograd.Function):
    r"""With the mean $\mu$ and variance $v$ of each map, the batch has $\mu_B = \overline{\mu}$ and
    $\sigma_B^2 = \overline{v + \delta^2}$, where $\delta = \mu - \mu_B$ and the bar is over the images.

    $\hat x_I = r_I (x - \mu)$ and $\hat x_B = r_B (x - \mu + \delta)$, so the mixture is one scale of $x - \mu$ and one
    shift; its gradient is the sum of two like that of `_Normalize`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        gate_C: Tensor,
        running_mean_C: Tensor | None,
        running_var_C: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x_NCHW.to(_accumulator(x_NCHW))
        pixels = x.shape[2] * x.shape[3]
        mean_NC = x.sum((2, 3)) / pixels
        centred = x - _maps(mean_NC)
        variance_NC = _squares(centred) / pixels
        mean_C = mean_NC.mean(0) if running_mean_C is None else running_mean_C
        delta_NC = mean_NC - mean_C
        variance_C = (variance_NC + delta_NC.square()).mean(0) if running_var_C is None else running_var_C
        rate_NC, rate_C = (variance_NC + eps).rsqrt(), (variance_C + eps).rsqrt()
        scale_NC = gate_C * rate_C + (1 - gate_C) * rate_NC
        shift_NC = gate_C * rate_C * delta_NC
        if weight_C is not None:
            scale_NC, shift_NC = scale_NC * weight_C, shift_NC * weight_C
        if bias_C is not None:
            shift_NC = shift_NC + bias_C
        y = _affine(centred, scale_NC, shift_NC)
        ctx.save_for_backward(centred, delta_NC, rate_NC, rate_C, scale_NC, weight_C, gate_C)
        ctx.pixels, ctx.dtype, ctx.biased = pixels, x_NCHW.dtype, bias_C is not None
        ctx.tracked = running_mean_C is not None
        # An input that is returned as it is would become an output with a history.
        mean_C, variance_C = mean_C.clone(), variance_C.clone()
        ctx.mark_non_differentiable(mean_C, variance_C)
        return y.to(x_NCHW.dtype), mean_C, variance_C

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_NCHW: Tensor, *_: Any) -> tuple[Any, ...]:
        centred, delta_NC, rate_NC, rate_C, scale_NC, weight_C, gate_C = ctx.saved_tensors
        dy = dy_NCHW.to(centred.dtype)
        sum_NC, product_NC = dy.sum((2, 3)), (dy * centred).sum((2, 3))
        # Sums of the gradient with the two normalised maps.
        instance_NC = product_NC * rate_NC
        batch_NC = (product_NC + delta_NC * sum_NC) * rate_C
        by_batch_C, by_instance_C = gate_C, 1 - gate_C
        if weight_C is not None:
            by_batch_C, by_instance_C = by_batch_C * weight_C, by_instance_C * weight_C
        by_centred_NC = -by_instance_C * rate_NC.square() * instance_NC / ctx.pixels
        shift_NC = -by_instance_C * rate_NC * sum_NC / ctx.pixels
        if not ctx.tracked:
            count = ctx.pixels * len(sum_NC)
            pull_C = by_batch_C * rate_C.square() * batch_NC.sum(0) / count
            by_centred_NC = by_centred_NC - pull_C
            shift_NC = shift_NC - by_batch_C * rate_C * sum_NC.sum(0) / count - pull_C * delta_NC
        dx = _affine(dy, scale_NC, shift_NC).addcmul_(centred, _maps(by_centred_NC))
        d_gate = (batch_NC - instance_NC).sum(0)
        d_weight = None
        if weight_C is not None:
            d_gate = d_gate * weight_C
            d_weight = (gate_C * batch_NC + (1 - gate_C) * instance_NC).sum(0)
        d_bias = sum_NC.sum(0) if ctx.biased else None
        return dx.to(ctx.dtype), d_weight, d_bias, d_gate, None, None, None


NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "bn-torch": nn.BatchNorm2d,
    "bn": BatchNorm,
    "in": InstanceNorm,
    "bin": BatchInstanceNorm,
    "ln": LayerNorm,
    "gn": GroupNorm,
    "none": NoNorm,
}
"""By the names that configurations use; ``bn-torch`` is PyTorch's own batch normalisation, to check ours against."""


def make_norm(name: str, num_channels: int, **options: Any) -> nn.Module:
    """A norm by its name in `NORMS`, or a user's own as ``path/to/file.py:Name``, tried out at once.

    Args:
        name: which.
        num_channels: C.
        options: what the norm takes beside, such as ``num_groups``.
    """
    kind = resolve(name, NORMS, "norm")
    if name in NORMS:
        return kind(num_channels, **options)
    zeros = torch.zeros(2, num_channels, 4, 4)
    return tried_module(f"norm {name}", lambda: kind(num_channels, **options), [zeros], [*zeros.shape])[0]
