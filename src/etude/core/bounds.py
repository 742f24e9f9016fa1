"""Bounds of settings, which stand beside their types: ``lr: Positive = 0.1``."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_type_hints


def require(holds: bool, name: str, wanted: str, value: object) -> None:
    """Refuse a setting: a `ValueError` that names it, what it must be and what it is, unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {wanted}, not {value}")


@dataclass(frozen=True)
class Bound:
    """The bound of a setting, beside its type in `Annotated`; `StudyConfig` refuses what is outside."""

    wanted: str
    holds: Callable[[Any], bool]


def at_least(least: int, why: str = "") -> Bound:
    """The bound of a number; what ``why`` says follows it in the error."""
    return Bound(f"at least {least}{why}", lambda value: value >= least)


_NOT_NEGATIVE = Bound("0 or more", lambda value: value >= 0)
_POSITIVE = Bound("above 0", lambda value: value > 0)
_FRACTION = Bound("0 or more and below 1", lambda value: 0 <= value < 1)
Count = Annotated[int, at_least(1)]
Whole = Annotated[int, _NOT_NEGATIVE]
Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Fraction = Annotated[float, _FRACTION]


def check_bounds(config: Any, prefix: str = "") -> None:
    """Refuse a value beyond the `Bound` that stands beside its type, in a configuration or its parts."""
    for name, hint in get_type_hints(cast(Any, type(config)), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{prefix}{name}.")
        for bound in getattr(hint, "__metadata__", ()):
            if isinstance(bound, Bound):
                require(bound.holds(value), prefix + name, bound.wanted, value)
        require(_finite(getattr(config, name)), prefix + name, "a finite number", getattr(config, name))


def _finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_finite, cast("tuple[Any, ...]", value)))
    return not isinstance(value, float) or math.isfinite(value)
