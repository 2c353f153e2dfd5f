"""The entry point of the command line. Nothing heavy is imported before the arguments are parsed.

Results go to stdout, logs and progress to stderr. The exit code is 0 for success, 1 for a run that failed, 2 for a
wrong request, 130 after Ctrl-C and 143 after SIGTERM; then one line on stderr says how to go on.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from tunewise.cli.commands import (
    advising,
    browsing,
    comparing,
    documents,
    harness,
    importing,
    inspection,
    planning,
    scoring,
    serving,
    shipping,
    training,
)
from tunewise.cli.console import echo, how_to_continue
from tunewise.cli.devices import LOST, is_launched
from tunewise.cli.signs_of_life import signs_of_life
from tunewise.core.errors import RequestError, SettingError, TunewiseError, out_of_space
from tunewise.core.extras import require
from tunewise.core.logs import configure_logging
from tunewise.core.text import one_line
from tunewise.core.version import __version__

app = typer.Typer(
    help="Every way to fine-tune a language model behind one interface, measured on your own task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": lambda word: word.replace("_", "-"),  # --output_dir is --output-dir
    },
)


def _show_version(asked: bool) -> None:
    if asked:
        echo(f"tunewise {__version__}")
        raise typer.Exit


@app.callback()
def _tunewise(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("techniques")(inspection.techniques)
app.command("check")(inspection.check)
app.command("import")(importing.import_configuration)
app.command("plan")(planning.plan)
app.command("advise")(advising.advise)
app.add_typer(advising.atlas, name="atlas")
app.command("fit")(training.fit)
app.command("train", help="The same as fit, by the name that other programs give it.")(training.fit)
app.command("compare")(comparing.compare)
app.command("eval")(scoring.evaluate)
app.command("lm-eval")(harness.lm_eval)
app.command("interpolate")(scoring.interpolate)
app.command("export")(shipping.export)
app.command("push")(shipping.push)
app.command("serve")(serving.serve)
app.command("chat")(serving.chat)
app.command("generate")(serving.generate)
app.command("index")(documents.index)
app.command("search")(documents.search)
app.command("report")(comparing.report)
app.command("demo")(comparing.demo)
app.command("studio")(browsing.studio)


@app.command("mcp")
def mcp() -> None:
    """Serve tunewise's commands as tools of the Model Context Protocol, on stdin and stdout."""
    require("an MCP server", "mcp")
    from tunewise.cli.mcp_server import server

    server(app).run("stdio")


_SHARED_OUT = ("fit", "train")  # the commands that several processes run together


def _require_one_process() -> None:
    """Refuse a command that each of several processes would do the whole of, where a launcher has started them."""
    from tunewise.cli.devices import is_rank

    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if is_rank() and command and command not in _SHARED_OUT:
        raise SettingError(
            f"{command} runs in one process, but {os.environ['WORLD_SIZE']} were started; start it without torchrun "
            "(compare takes several devices by --workers)"
        )


def main() -> None:
    """Run the command line; a `TunewiseError` becomes one line on stderr, and so does a signal that ends it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads cost tenfold on a busy machine
    configure_logging()
    signals = _Signals()
    try:
        with signals:
            _require_one_process()
            with signs_of_life():
                app()
    except BaseException as error:
        # Whatever an interruption turned into on its way: libraries replace errors that are raised in their imports.
        if signals.received is None and isinstance(error, SystemExit) and error.code == 128 + signal.SIGINT:
            signals.received = signal.SIGINT  # typer's code for Ctrl-C
        if signals.received is not None:
            _say_how_to_go_on(signals.received)
            sys.exit(128 + signals.received)
        if not isinstance(error, TunewiseError) and out_of_space(error):
            error = TunewiseError(f"{one_line(error)}; free some space, and run it again")
        if not isinstance(error, TunewiseError):
            raise
        if error.exit_code == LOST and is_launched():
            sys.exit(LOST)
        kind = "wrong request" if isinstance(error, RequestError) else "failed"
        echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)


class _Signals:
    """Lets Ctrl-C and SIGTERM unwind what runs inside it, and remembers the first; the second ends the process."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> None:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt


def _say_how_to_go_on(received: int) -> None:
    what = "interrupted" if received == signal.SIGINT else f"stopped by {signal.Signals(received).name}"
    echo(f"{what}; to continue: {how_to_continue()}", err=True)


if __name__ == "__main__":
    main()
