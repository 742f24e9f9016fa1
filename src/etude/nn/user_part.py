"""A user's own part, tried out before it is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.errors import UserError


def tried(
    what: str, make: Callable[[], nn.Module], shape: Sequence[int], wanted: Sequence[int | str]
) -> tuple[nn.Module, tuple[int, ...]]:
    """Make a part and see what it makes of zeros, in evaluation mode.

    Args:
        what: the part's kind and name, for the error, such as ``"encoder mine.py:Net"``.
        make: makes it.
        shape: of the zeros.
        wanted: of the answer; a name stands for any number.

    Returns:
        the part, in training mode, and its answer's shape.

    Raises:
        UserError: it fails, or its answer has another shape; both shapes are named.
    """
    try:
        part = make()
        with torch.no_grad():
            answer: Any = part.eval()(torch.zeros(*shape))
        part.train()
    # A user's code may fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the {what} failed on {list(shape)}: {type(error).__name__}: {reason}") from error
    fits = isinstance(answer, Tensor) and len(answer.shape) == len(wanted)
    if not fits or any(isinstance(n, int) and n != met for n, met in zip(wanted, answer.shape, strict=True)):
        met = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"the {what} must map {list(shape)} to [{', '.join(map(str, wanted))}], not {met}")
    return part, tuple(answer.shape)
