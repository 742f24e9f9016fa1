"""The data sets, one module each. Adding one adds its name here."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etude.core.errors import UserError, nearest

if TYPE_CHECKING:
    # What downloads is slow to import, and every study has a data set's configuration.
    from etude.data.fetch import Source

NAMES = ("omniglot", "cifar10", "mathqa", "mnist", "pairs", "clevrtex", "inception")
SAMPLES = Path(__file__).parent / "samples"
"""The samples that come with the package, a folder a data set."""


@dataclass(frozen=True)
class Dataset:
    """A data set as `etude data` sees it; every module named in `NAMES` has one as ``DATASET``."""

    name: str
    about: str
    licence: str
    home: str
    """Its own page."""
    sources: "tuple[Source, ...]"


def load(name: str) -> Dataset:
    """A data set by name; `UserError` for a name there is none of."""
    if name not in NAMES:
        raise UserError(f"no data set '{name}'{nearest(name, NAMES)}")
    return importlib.import_module(f"etude.data.{name}").DATASET
