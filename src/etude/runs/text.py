"""Text of a run's files inside Markdown, which it can neither break nor reach out of."""

import re


def escaped(text: object) -> str:
    """Text of a run's files in one cell of a table, or in a line: no new column, no HTML, no link and no picture."""
    return re.sub(r"\||\[(?<=!\[)|\](?=\()", r"\\\g<0>", " ".join(str(text).split())).replace("<", "&lt;")


def code(text: object) -> str:
    """Text as a code span, which neither its backticks nor its bars end."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    return f"{ticks} {plain} {ticks}" if len(ticks) > 1 else f"`{plain}`"


def fence(text: object, language: str = "sh") -> str:
    """Text as a block of code, which no backticks in it end."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", str(text))), default=0))
    return f"{ticks}{language}\n{str(text).rstrip()}\n{ticks}"
