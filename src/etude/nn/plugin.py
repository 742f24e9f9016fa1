"""Parts that a user swaps in: ``path/to/file.py:Name`` where a built-in name stands."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from etude.core.errors import UserError, nearest

T = TypeVar("T")


def resolve(spec: str, builtin: Mapping[str, T], what: str) -> T:
    """A built-in part by name, or a user's own as ``path/to/file.py:Name``; errors call it ``what``.

    Raises:
        UserError: no such name, file or attribute, or the file fails on import.
    """
    if spec in builtin:
        return builtin[spec]
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(f"no {what} '{spec}'{nearest(spec, builtin)}; your own is given as path/to/file.py:Name")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no file {path} for the {what} '{spec}'")
    module_spec = importlib.util.spec_from_file_location(f"etude_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickle look a module up by its name.
    sys.modules[module.__name__] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(f"{path} fails on import: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise UserError(f"{path} has no '{name}'{nearest(name, [n for n in vars(module) if not n.startswith('_')])}")
    return getattr(module, name)
