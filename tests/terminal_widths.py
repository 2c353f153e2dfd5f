"""The widths of terminals that tables are tested at, and what is printed there."""

import io

from rich.console import Console

WIDTHS = (60, 80, 100, 120, 200)


def printed(view, width):
    console = Console(width=width, file=io.StringIO(), legacy_windows=False)
    console.print(view)
    return console.file.getvalue()
