"""``etude new NAME``: lay out the files of a new study in a checkout.

They make a complete small study, softmax regression on made-up shapes, to be changed file by file; docs/new-study.md
walks through it. `uv run pytest tests/studies/test_contract.py -k NAME` then lists what the study still lacks.
"""

import keyword
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.runs.training import say

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional]
    """The study's name: lower-case letters and digits, the first a letter."""


def main(options: Options) -> None:
    say(f"{layout(options.name, _PACKAGE)}: `etude run {options.name} smoke`; docs/new-study.md goes on")


def layout(name: str, package: Path) -> Path:
    """Write the files of a study and its name in the registry.

    Args:
        name: of the study.
        package: the folder of etude's source, in a checkout.

    Returns:
        The study's folder.

    Raises:
        UserError: a name that cannot be a study's, one that is taken, or no checkout.
    """
    if not (name.isascii() and name.isalnum() and name.islower() and name[0].isalpha()) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot be a study's name: take lower-case letters and digits, such as softmax")
    folder, names = package / "studies" / name, package / "registry.py"
    if name in registry.NAMES or folder.exists():
        raise UserError(f"{folder} is there already: choose another name")
    if not (package.parents[1] / "pyproject.toml").is_file():
        raise UserError("etude is installed, not checked out: clone it, and call `uv run etude new` there")
    write_atomic(folder / "__init__.py", "")
    for path in sorted((package / "runs" / "template").glob("*.txt")):
        text = path.read_text(encoding="utf-8").replace("NAME", name).replace("Name", name.capitalize())
        write_atomic(folder / path.name.removesuffix(".txt"), text)
    before = names.read_text(encoding="utf-8")
    # The tuple of names is the only line that ends so.
    write_atomic(names, before.replace('")\n', f'", "{name}")\n', 1))
    return folder
