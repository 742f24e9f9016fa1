"""The rows of a training set that a step takes."""

import torch
from torch import Tensor

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.runtime import Runtime


def refuse_larger_batch(size: int, count: int, what: str) -> None:
    """Raise `UserError` where a batch of ``size`` is more than the ``count`` training ``what``."""
    if size > count:
        raise UserError(f"a batch of {size} is larger than the {count} training {what}: give a smaller --batch.size")


class Epochs:
    """Every epoch in an order of its own; a rest that fills no batch is left.

    Args:
        runtime: whose seed draws the orders.
        device: that the rows are wanted on; None: the runtime's.
        stream: the name of the draws, for a second order beside the first.
    """

    def __init__(
        self, runtime: Runtime, device: torch.device | str | None = None, *, stream: str = "train/order"
    ) -> None:
        self._stream = stream
        self._runtime, self._device = runtime, runtime.device if device is None else device
        self._order: tuple[int, int, Tensor] | None = None

    def rows(self, step: int, count: int, size: int) -> Tensor:
        """The rows of a step, int64 ``[size]``.

        Args:
            step: from 0.
            count: the size of the training set, at least ``size``.
            size: the size of a batch.
        """
        epoch, place = divmod(step, count // size)
        if self._order is None or self._order[:2] != (epoch, count):
            order = torch.randperm(count, generator=self._runtime.generator(self._stream, epoch))
            self._order = (epoch, count, randomness.upload(order, self._device))
        return self._order[2][place * size : (place + 1) * size]
