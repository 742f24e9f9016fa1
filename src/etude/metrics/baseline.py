"""A number of the best simple method, beside those of a study's networks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Baseline:
    """One number of a simple method; ``measure(say)`` of a study's ``baseline.py`` returns a list of them."""

    name: str
    """The method, in a few words."""
    metric: str
    split: str
    value: float
    protocol: str
    """The way that it was measured, and on what it was chosen where there was a choice."""
    unit: str = ""
    half_width: float | None = None
    """Half the 95 % interval of the measurement, in the unit of ``value``."""
    cells: tuple[str, ...] = ()
    """The cells that it stands beside; empty: all with its metric, split and variant."""
    variant: str = ""
    """The variant of the results that it stands beside."""
    experiment: str = ""
    """The only table that it belongs to; empty: all that have the cell."""
    better: Literal["higher", "lower"] = "higher"
    bound: bool = False
    """True for what nothing is expected to pass, such as the FID of real pictures, and no method."""
