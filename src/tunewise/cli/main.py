"""The entry point of the command line. Nothing heavy is imported before the arguments are parsed.

Results go to stdout, logs and progress to stderr. The exit code is 0 for success, 1 for a run that failed, and 2 for a
wrong request.
"""

from __future__ import annotations

import os
import shlex
import sys

import typer

from tunewise.cli.commands import advising, comparing, documents, inspection, planning, serving, shipping, training
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.core.logs import configure_logging

app = typer.Typer(
    help="Every way to fine-tune a language model behind one interface, measured on your own task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("techniques")(inspection.techniques)
app.command("check")(inspection.check)
app.command("plan")(planning.plan)
app.command("advise")(advising.advise)
app.add_typer(advising.atlas, name="atlas")
app.command("fit")(training.fit)
app.command("compare")(comparing.compare)
app.command("eval")(training.evaluate)
app.command("interpolate")(training.interpolate)
app.command("export")(shipping.export)
app.command("push")(shipping.push)
app.command("serve")(serving.serve)
app.command("chat")(serving.chat)
app.command("generate")(serving.generate)
app.command("index")(documents.index)
app.command("search")(documents.search)
app.command("report")(comparing.report)
app.command("demo")(comparing.demo)


_INTERRUPTED = 130


def main() -> None:
    """Run the command line; a `TunewiseError` becomes one line on stderr."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads cost tenfold on a busy machine
    configure_logging()
    try:
        app()
    except TunewiseError as error:
        kind = "wrong request" if isinstance(error, RequestError) else "failed"
        typer.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code != _INTERRUPTED:  # typer turns Ctrl-C into this exit code, without a message
            raise
        resume = [] if "fit" not in sys.argv[1:2] or "--resume" in sys.argv else ["--resume"]
        typer.echo(f"interrupted; to continue: {shlex.join(['tunewise', *sys.argv[1:], *resume])}", err=True)
        raise


if __name__ == "__main__":
    main()
