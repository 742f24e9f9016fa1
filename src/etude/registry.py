"""The names of the studies, and how to load one. Adding a study adds one name here."""

import importlib

from etude.core.errors import UserError, nearest
from etude.core.study import Study

NAMES = ("resnet", "text2math", "slots", "slotdiffusion", "dcgan", "protonet", "pix2pix", "darts")


def load(name: str) -> Study:
    """A study by name; `UserError` for a name there is none of."""
    if name not in NAMES:
        raise UserError(f"no study '{name}'{nearest(name, NAMES)}")
    return importlib.import_module(f"etude.studies.{name}.study").STUDY
