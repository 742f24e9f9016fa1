r"""The six normalisations with backward passes derived by hand: the same values as `etude.nn.norms`, in less time.

Every group is a union of whole maps, so all that goes over the pixels are sums over a map and one scale and shift of
it; the rest of the algebra, forward and backward, is on small tables ``[N, C]``. Nothing here can be differentiated
twice: the plain forms can.

Shape suffixes: N images, C channels, H W pixels; a table is ``[N, C]`` or broadcasts to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.nn import norms
from etude.nn.norms import Pool, accumulator, maps, pool_count
from etude.nn.plugin import resolve
from etude.nn.user_part import beside, tried_module

Form = Literal["fast", "plain"]


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
    """Sum as a matrix product, because the compiler would repeat a sum that it can look into for every pixel.

    In double precision, which neither autocast nor a lower precision of matrix products touches.
    """
    group_C = torch.arange(table_NC.shape[1], device=table_NC.device) // size
    same_CC = (group_C[:, None] == group_C).double()
    return (table_NC.double() @ same_CC).to(table_NC.dtype)


def normalize(
    x_NCHW: Tensor,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    *,
    pool: Pool,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the place of `etude.nn.norms.normalize`, with a backward pass derived by hand."""
    return _Normalize.apply(x_NCHW, weight_C, bias_C, pool, groups, eps)  # pyright: ignore[reportReturnType]


class _Normalize(torch.autograd.Function):
    r"""The gradient with $g = \gamma \dot y$ is $\dot x = r (g - \overline{g} - \hat x \, \overline{g \hat x})$.

    The bars are means over the group, $r = (\sigma^2 + \epsilon)^{-1/2}$; so $\dot x$ is a scale of $\dot y$, a scale
    of $x - \mu$ and a shift, each a table.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, pool: Pool, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x_NCHW.to(accumulator(x_NCHW))
        count = pool_count(x.shape, pool, groups)
        mean = pool_sum(x.sum((2, 3)), pool, groups) / count
        centred = x - maps(mean)
        if pool == "layer" and _in_rows(centred):
            rows = centred.permute(0, 2, 3, 1).flatten(1)
            variance = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square() / count
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
        dx = _affine(dy, scale, shift).addcmul_(centred, maps(by_centred))
        d_weight = None if weight_C is None else (product_NC * rate).sum(0)
        return dx.to(ctx.dtype), d_weight, sum_NC.sum(0) if ctx.biased else None, None, None, None


# Which of several ways to the same value PyTorch's kernels are quickest at depends on the layout. The compiler fuses
# the plainest one, and gives its result the layout of the first factor.


def _in_rows(x_NCHW: Tensor) -> bool:
    """True where each image is one row in memory, channels last."""
    return not torch.compiler.is_compiling() and x_NCHW.is_contiguous(memory_format=torch.channels_last)


def _squares(x_NCHW: Tensor) -> Tensor:
    """The sum of the squares of each map, ``[N, C]``."""
    if x_NCHW.is_contiguous() and not torch.compiler.is_compiling():
        return torch.linalg.vector_norm(x_NCHW, dim=(2, 3)).square()
    return x_NCHW.square().sum((2, 3))


def _affine(x_NCHW: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` with tables."""
    if shift is None:
        return x_NCHW * maps(scale)
    if torch.compiler.is_compiling():
        return x_NCHW * maps(scale) + maps(shift)
    if x_NCHW.is_contiguous():
        return (x_NCHW * maps(scale)).add_(maps(shift))
    return torch.addcmul(maps(shift), x_NCHW, maps(scale))


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
    """Take the place of `etude.nn.norms.batch_instance_normalize`, with a backward pass derived by hand."""
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
        x = x_NCHW.to(accumulator(x_NCHW))
        pixels = x.shape[2] * x.shape[3]
        mean_NC = x.sum((2, 3)) / pixels
        centred = x - maps(mean_NC)
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
        dx = _affine(dy, scale_NC, shift_NC).addcmul_(centred, maps(by_centred_NC))
        d_gate = (batch_NC - instance_NC).sum(0)
        d_weight = None
        if weight_C is not None:
            d_gate = d_gate * weight_C
            d_weight = (gate_C * batch_NC + (1 - gate_C) * instance_NC).sum(0)
        d_bias = sum_NC.sum(0) if ctx.biased else None
        return dx.to(ctx.dtype), d_weight, d_bias, d_gate, None, None, None


def normalize_by(
    x_NCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, mean_C: Tensor, variance_C: Tensor, *, eps: float
) -> Tensor:
    """Take the place of `etude.nn.norms.normalize_by`, as one scale and shift of each map."""
    rate_C = (variance_C + eps).rsqrt()
    scale_C = rate_C if weight_C is None else rate_C * weight_C
    shift_C = -mean_C * scale_C
    if bias_C is not None:
        shift_C = shift_C + bias_C
    return _affine(x_NCHW.to(accumulator(x_NCHW)), scale_C, shift_C).to(x_NCHW.dtype)


class _Fast(norms.Norm):
    normalize = staticmethod(normalize)
    normalize_by = staticmethod(normalize_by)
    batch_instance_normalize = staticmethod(batch_instance_normalize)


class BatchNorm(_Fast, norms.BatchNorm):
    """The fast form of `etude.nn.norms.BatchNorm`."""


class InstanceNorm(_Fast, norms.InstanceNorm):
    """The fast form of `etude.nn.norms.InstanceNorm`."""


class BatchInstanceNorm(_Fast, norms.BatchInstanceNorm):
    """The fast form of `etude.nn.norms.BatchInstanceNorm`; the batch's statistics are derived from the instances'."""


class LayerNorm(_Fast, norms.LayerNorm):
    """The fast form of `etude.nn.norms.LayerNorm`."""


class GroupNorm(_Fast, norms.GroupNorm):
    """The fast form of `etude.nn.norms.GroupNorm`."""


NORMS: Mapping[str, Callable[..., nn.Module]] = {
    **norms.NORMS, "bn": BatchNorm, "in": InstanceNorm, "bin": BatchInstanceNorm, "ln": LayerNorm, "gn": GroupNorm,
}  # fmt: skip
"""The layers by the names of `etude.nn.norms.NORMS`."""


def make_norm(name: str, num_channels: int, form: Form = "fast", **options: Any) -> nn.Module:
    """Make a norm by its name in `NORMS`, or a user's own as ``path/to/file.py:Name``, tried out at once.

    Both forms of ours compute the same values. ``options`` are the norm's own, such as ``num_groups``.

    Raises:
        UserError: there is no such norm, or the user's own fails or answers with another shape.
    """
    kind = resolve(name, NORMS if form == "fast" else norms.NORMS, "norm")
    if name in NORMS:
        return kind(num_channels, **options)
    zeros = torch.zeros(2, num_channels, 4, 4)
    return tried_module(f"norm {name}", lambda: kind(num_channels, **options), [zeros], [*zeros.shape])[0]


def norm_beside(name: str, num_channels: int = 16) -> str:
    """What a user's own norm computes beside the built-in ones, see `etude.nn.user_part.beside`: in training, on a
    batch of random maps whose channels and pictures differ in mean and deviation."""
    draw, each = torch.Generator().manual_seed(0), (6, num_channels, 1, 1)
    spread, middle = 1 + 2 * torch.rand(each, generator=draw), torch.randn(each, generator=draw)
    of_channel = 3 * torch.randn(1, num_channels, 1, 1, generator=draw)
    x_NCHW = spread * torch.randn(6, num_channels, 5, 5, generator=draw) + middle + of_channel

    def answer(kind: str) -> Tensor:
        return make_norm(kind, num_channels).train()(x_NCHW)

    return beside(f"norm {name}", lambda: answer(name), {kind: lambda kind=kind: answer(kind) for kind in NORMS})
