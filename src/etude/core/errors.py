"""The faults that a user can mend, and the stop that a user asked for."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class UserError(ValueError):
    """A fault in the user's input or surroundings.

    The message is one line that names the fault and the fix. The command line prints it and exits with status 2.
    """


def extra(name: str) -> str:
    """The fix where a package of an extra is missing, for a checkout and for an installed etude alike."""
    return f"`uv sync --extra {name}` in a checkout, else pip install 'etude[{name}]'"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'laptop'? (known: a, b)``, for the end of an error line."""
    known = sorted(known)
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{matches[0]}'?" if matches else ""
    return f"{hint} (known: {', '.join(known)})" if known else hint


def refuse_newer(origin: object, number: int, known: int) -> None:
    """`UserError` where what ``origin`` names has a format of a larger number than the ``known`` one."""
    if number > known:
        newer = f"a newer etude (format {number}, this one reads {known})"
        raise UserError(f"{origin} was written by {newer}: upgrade etude")


@dataclass(frozen=True)
class Refused:
    """An input of a prediction that cannot be answered where others are."""

    input: str
    error: str


def harmless(text: str) -> str:
    """A text without the signs that would move a terminal's cursor: a name or word of a stranger's may hold some."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def one_line(text: object) -> str:
    """A text on one line, see `harmless`."""
    return harmless(" ".join(str(text).split()))


class Interrupted(Exception):  # noqa: N818 - it is no fault
    """The run was asked to stop, and has saved a checkpoint."""
