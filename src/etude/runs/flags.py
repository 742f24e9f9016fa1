"""Flags from dataclasses, by tyro, with every fault said in one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from etude.core.errors import UserError, nearest

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], *, prog: str, default: T | None = None, description: str = "") -> T:
    """Read the words after a verb into a dataclass, whose field docstrings are the help for ``prog``.

    What is not given comes from ``default``, or is ``kind``'s own default.

    Raises:
        UserError: an unknown flag, a wrong value or a missing one, in one line with the nearest right one.
        SystemExit: after printing the help.
    """
    filled: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                kind, args=list(args), prog=prog, description=description, return_unknown_args=True, **filled
            )
    except SystemExit as stop:
        if not stop.code:
            print(printed.getvalue(), end="")
            raise
        raise UserError(f"{_one_line(printed.getvalue())}; `{prog} --help` lists the flags") from stop
    if unknown:
        word = unknown[0]
        if word.startswith("-"):
            flag = word.split("=")[0]
            near = nearest(flag, set(_flags(kind, "--"))).split(" (known")[0]
            raise UserError(f"no flag {flag}{near}; `{prog} --help` lists the flags")
        raise UserError(f"'{word}' is one word too many; `{prog} --help` lists the flags")
    return value


def take(args: list[str], flag: str, default: str) -> str:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of the words, wherever it stands."""
    for number, word in enumerate(args):
        if word == flag:
            if number + 1 == len(args) or args[number + 1].startswith("--"):
                raise UserError(f"{flag} needs a value")
            value = args[number + 1]
            del args[number : number + 2]
            return value
        if word.startswith(f"{flag}="):
            del args[number]
            return word.split("=", 1)[1]
    return default


def switch(args: list[str], flag: str) -> bool:
    """Take ``flag`` out of the words. Returns whether it stood there."""
    there = flag in args
    args[:] = [word for word in args if word != flag]
    return there


def _flags(kind: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        yield name
        if dataclasses.is_dataclass(field.type):
            yield from _flags(field.type, f"{name}.")


def _one_line(printed: str) -> str:
    """The message in what tyro prints: below a title, between two rules, in a box or without one."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    lines = [line.strip("│ ") for line in plain.splitlines()]
    rules = [number for number, line in enumerate(lines) if line and (line[0] == "╭" or set(line) <= set("-─╰╯"))]
    first = rules[0] + 1 if rules else 0
    last = rules[1] if len(rules) > 1 else len(lines)
    return " ".join(line for line in lines[first:last] if line).rstrip(".") or "the command line could not be read"
