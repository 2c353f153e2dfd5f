"""The command that opens the studio: a page in the browser, over the same commands and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.console import echo
from tunewise.core.extras import require

RUNS, PORT = Path("runs"), 8050


def studio(
    folder: Annotated[Path, typer.Argument(help="Folder of comparisons; it is made if it is missing.")] = RUNS,
    port: Annotated[
        int, typer.Option(help="Port to listen on, on this machine only; 0 takes a free one.", min=0, max=65535)
    ] = PORT,
    browser: Annotated[bool, typer.Option("--browser", help="Open the address in the browser.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and print where it would be.")] = False,
) -> None:
    """Open a page in the browser: look at data, take advice, compare, ask, and ship; it works without a network."""
    require("the studio", "nicegui", "httpx")
    require("the studio", "fastapi", "uvicorn", "prometheus_client")
    from tunewise.studio.app import HOST, listening, serve

    if dry_run:
        with listening(port) as listener:
            echo(f"would serve {folder} at http://{HOST}:{listener.getsockname()[1]}/")
        return

    def say(text: str) -> None:
        echo(text, err=True)
        if browser and "token=" in text:
            import webbrowser

            webbrowser.open(text.rpartition(" ")[2])

    serve(folder, port, say)
