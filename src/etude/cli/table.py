"""Tables on standard output."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows with the keys of the first as columns; lines are as long as they need where no terminal reads."""
    if not rows:
        return
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=400)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
    # Square brackets would be read as markup.
    return str(value).replace("[", "\\[")
