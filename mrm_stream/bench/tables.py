"""Tables of a benchmark, for a terminal or as plain text."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table

_PLAIN_WIDTH = 110


def new_table(title: str, *, terminal: bool) -> Table:
    """Return an empty table with lines for a terminal, or in plain ASCII."""
    return Table(
        title=title,
        box=box.SIMPLE_HEAD if terminal else box.ASCII,
        title_justify="left",
        padding=(0, 0 if terminal else 1),
    )


def as_text(table: Table, *, terminal: bool) -> str:
    """Return the table as text: with colours and as wide as the terminal, or plain."""
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, no_color=not terminal, width=None if terminal else _PLAIN_WIDTH
    )
    console.print(table)
    return text.getvalue().rstrip("\n")
