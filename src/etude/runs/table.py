"""Tables on standard output, for eyes or as JSON."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from etude.core.errors import Refused, harmless, one_line
from etude.core.files import as_json as json_text


def show(rows: Sequence[Mapping[str, Any]], title: str | None = None, *, as_json: bool = False) -> None:
    """Print rows with the keys of the first as columns; lines are as long as they need where no terminal reads.

    As JSON: a list of objects, whole. As a table: values that are mappings are left out.
    """
    if as_json:
        print(json_text(list(rows)), end="")
        return
    if not rows:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=400)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    names = [name for name, value in rows[0].items() if not isinstance(value, Mapping)]
    for name in names:
        number = isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in names))
    console.print(table)


def show_answers(predict: Any, answers: Sequence[Any], *, as_json: bool = False) -> int:
    """Print what a study's predict.py has answered: as its own ``tell`` writes it for people, else as a table.

    Inputs that were refused are named on standard error, and in JSON stand among the answers. Returns the exit status.
    """
    answered = [row for row in answers if not isinstance(row, Refused)]
    if as_json:
        show([dataclasses.asdict(row) for row in answers], as_json=True)
    elif hasattr(predict, "tell"):
        print(harmless(predict.tell(answered)))
    else:
        show([dataclasses.asdict(row) for row in answered])
    for row in answers:
        if isinstance(row, Refused):
            print(f"etude: {one_line(row.error)}", file=sys.stderr)
    return int(len(answered) < len(answers))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    # Square brackets would be read as markup.
    return (str(value) if str(value).isprintable() else one_line(value)).replace("[", "\\[")
