"""A user's own part, tried out before it is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.errors import UserError


def tried(what: str, given: str, call: Callable[[], Any], wanted: Any = object) -> Any:
    """What a user's part answers.

    Args:
        what: the part's kind and name, for the error, such as ``"encoder mine.py:Net"``.
        given: what it is called with, in words or shapes.
        call: makes and calls it.
        wanted: a tensor's shape as a list, in which a name stands for any number; a type; or a tuple of such.

    Raises:
        UserError: it fails, or its answer is another; both are described.
    """
    try:
        answer = call()
    # A user's code may fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the {what} failed on {given}: {type(error).__name__}: {reason}") from error
    met = _form(answer)
    if not _fits(met, wanted):
        raise UserError(f"the {what} must map {given} to {_said(wanted)}, not {_said(met)}")
    return answer


def tried_module(
    what: str, make: Any, inputs: Sequence[Any], wanted: Any = object, given: str = ""
) -> tuple[nn.Module, Any]:
    """Make a network and see what it answers in evaluation mode, so that running statistics stay as they are.

    Args:
        what: see `tried`.
        make: makes it, if it is what it should be.
        inputs: that it is called with.
        wanted: see `tried`.
        given: the inputs in words; the shapes of tensors where it is empty.

    Returns:
        the network, in training mode, and its answer.
    """
    made: list[nn.Module] = []

    def call() -> Any:
        part = make()
        if not isinstance(part, nn.Module):
            raise TypeError(f"{type(part).__name__} is no torch.nn.Module, whose weights would be trained")
        made.append(part.eval())
        with torch.no_grad():
            return part(*inputs)

    answer = tried(what, given or ", ".join(str(list(x.shape)) for x in inputs), call, wanted)
    made[0].train()
    return made[0], answer


def _form(answer: Any) -> Any:
    """An answer as ``wanted`` of `tried` writes it."""
    if isinstance(answer, tuple):
        return tuple(map(_form, answer))
    return list(answer.shape) if isinstance(answer, Tensor) else type(answer)


def _fits(met: Any, wanted: Any) -> bool:
    if wanted is object:
        return True
    if not isinstance(met, type(wanted)):
        return False
    if isinstance(wanted, type):
        return issubclass(met, wanted)
    if len(met) != len(wanted):
        return False
    if isinstance(wanted, tuple):
        return all(map(_fits, met, wanted))
    return all(isinstance(n, str) or n == size for size, n in zip(met, wanted, strict=True))


def _said(form: Any) -> str:
    if isinstance(form, tuple):
        return f"({', '.join(map(_said, form))})"
    return f"[{', '.join(map(str, form))}]" if isinstance(form, list) else form.__name__
