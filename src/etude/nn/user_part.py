"""A user's own part, tried out before it is trained."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.errors import UserError


def tried(what: str, given: str, call: Callable[[], Any], wanted: Any = object) -> Any:
    """The answer of a user's part.

    Args:
        what: the part's kind and name, for the error, such as ``"encoder mine.py:Net"``.
        given: the inputs in words or shapes.
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
        raise UserError(f"the {what} must map {given} to {_in_words(wanted)}, not {_in_words(met)}")
    return answer


def tried_module(
    what: str, make: Any, inputs: Sequence[Any], wanted: Any = object, given: str = ""
) -> tuple[nn.Module, Any]:
    """Make a network and see what it answers in evaluation mode, so that running statistics stay as they are.

    The inputs are shown as their shapes where ``given`` has no words for them; for the rest see `tried`.

    Returns:
        the network, in training mode, and its answer.
    """

    def call() -> tuple[nn.Module, Any]:
        part = make()
        if not isinstance(part, nn.Module):
            raise TypeError(f"{type(part).__name__} is no torch.nn.Module, whose weights would be trained")
        with torch.no_grad():
            return part, part.eval()(*inputs)

    given = given or ", ".join(str(list(x.shape)) for x in inputs)
    part, answer = tried(what, given, call)
    tried(what, given, lambda: answer, wanted)
    return part.train(), answer


def beside(what: str, own: Callable[[], Tensor], builtin: Mapping[str, Callable[[], Tensor]]) -> str:
    """One line on what a user's part computes: the built-in part that is nearest on the same numbers, and how far.

    Args:
        what: the part's kind and name, such as ``"norm mine.py:RMS"``.
        own: computes its answer.
        builtin: computes those of the built-in parts, by name; one of another shape, or that fails, is left out.
    """
    answer, apart = own().detach(), dict[str, float]()
    if not answer.isfinite().all():
        return f"{what}: its answer to random numbers is not finite"
    for name, compute in builtin.items():
        with contextlib.suppress(RuntimeError, ValueError):
            other = compute().detach()
            if other.shape == answer.shape:
                apart[name] = float((answer - other).abs().max() / other.abs().max().clamp(min=1e-12))
    if not apart:
        return f"{what}: no built-in one answers with the same shape"
    name = min(apart, key=lambda key: apart[key])
    if apart[name] < 1e-4:
        return f"{what}: equal to the built-in {name} on random numbers"
    return f"{what}: nearest the built-in {name}, and up to {apart[name]:.2g} of its largest value away"


def _form(answer: Any) -> Any:
    """An answer as ``wanted`` of `tried` writes it."""
    if isinstance(answer, tuple):
        return tuple(map(_form, answer))
    return list(answer.shape) if isinstance(answer, Tensor) else type(answer)


def _fits(met: Any, wanted: Any) -> bool:
    if isinstance(wanted, type):
        return wanted is object or (isinstance(met, type) and issubclass(met, wanted))
    if type(met) is not type(wanted) or len(met) != len(wanted):
        return False
    if isinstance(wanted, tuple):
        return all(map(_fits, met, wanted))
    return all(isinstance(n, str) or n == size for size, n in zip(met, wanted, strict=True))


def _in_words(form: Any) -> str:
    if isinstance(form, tuple):
        return f"({', '.join(map(_in_words, form))})"
    return f"[{', '.join(map(str, form))}]" if isinstance(form, list) else form.__name__
