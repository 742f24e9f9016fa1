"""The mean of a network's weights over its training."""

import torch
from torch import nn


@torch.no_grad()
def average_(mean: nn.Module, now: nn.Module, memory: float, step: int) -> None:
    r"""Move the mean on by a step: $\bar w \leftarrow m \bar w + (1 - m) w$; buffers are copied.

    The memory m is shorter early on, $(1 + s) / (10 + s)$ at step s from 0, or the first weights would count for
    thousands of steps.
    """
    memory = min(memory, (1 + step) / (10 + step))
    pairs = zip(mean.parameters(), now.parameters(), strict=True)
    means, current = map(list, zip(*pairs, strict=True))
    torch._foreach_lerp_(means, current, 1 - memory)  # pyright: ignore[reportPrivateImportUsage]
    for kept, buffer in zip(mean.buffers(), now.buffers(), strict=True):
        kept.copy_(buffer)
