"""Prints results on stdout, as tables for people or as JSON.

Whatever is printed goes through one filter: names, texts of data and answers of models cannot act on the terminal.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from tunewise.core.text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_SECRET, _SECRET_VARIABLE = "--token", "TUNEWISE_TOKEN"  # a secret must not reach a log


def console(*, stderr: bool = False) -> Console:
    """Open the console that results are printed on, or that of progress."""
    from tunewise.cli.safe_console import SafeConsole

    if stderr:
        return SafeConsole(stderr=True)
    # Piped output has no width of its own; a table must not be folded to 80 columns in a file.
    return SafeConsole(width=None if _has_width() else 200)


def shows_all(wide: bool) -> bool:
    """Return whether tables show all their columns: on demand, and where the output has no width."""
    return wide or not _has_width()


def _has_width() -> bool:
    """Return whether stdout is a terminal, or `COLUMNS` says how wide its lines may be."""
    return sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print plain text as it is, on stdout or stderr."""
    typer.echo(visible(text), err=err, nl=nl)


def command_again(*further: str) -> str:
    """Return this command line, to be run again in a shell; a token in it is left to the environment."""
    words, secret = list[str](), False
    for word in sys.argv[1:]:
        name, equals, _ = word.partition("=")
        if secret or (name == _SECRET and equals):
            words.append(f'"${_SECRET_VARIABLE}"' if secret else f'{_SECRET}="${_SECRET_VARIABLE}"')
        else:
            words.append(shlex.quote(word))
        secret = word == _SECRET
    return " ".join(["tunewise", *words, *further])


def how_to_continue() -> str:
    """Return the command line that continues this one, or say what of it to change where another program started it."""
    fits = sys.argv[1:2] in (["fit"], ["train"])
    resume = fits and "--resume" not in sys.argv
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "run it again under torchrun" + (" with --resume" if resume else "")
    return command_again(*(["--resume"] if resume else []))


def print_text(text: str) -> None:
    """Print plain text on stdout, folded at the terminal's width."""
    console().print(text, markup=False, highlight=False)


def print_json(value: object) -> None:
    """Print a result as JSON on stdout."""
    echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_result(value: object, as_json: bool, view: Callable[[], RenderableType]) -> None:
    """Print a result as JSON, or else as its view; a view that is a string is printed as it is."""
    if as_json:
        print_json(value)
        return
    rendered = view()
    if isinstance(rendered, str):
        print_text(rendered)
    else:
        console().print(rendered)
