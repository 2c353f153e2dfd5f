"""The server of the page: its address, who may open it, and how it begins and ends."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tunewise.core.errors import SettingError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tunewise.studio.workspace import Workspace

HOST = "127.0.0.1"


def serve(root: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page of a folder of comparisons until a signal comes.

    Args:
        root: the folder, which is made if it is missing.
        port: where to listen on this machine; 0 takes a free one.
        say: is told the address, and what goes on in the end.
    """
    from tunewise.studio.security import Guard, kept_token
    from tunewise.studio.workspace import Workspace

    workspace = Workspace(root)
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(workspace.own / "browser"))
    token = kept_token(workspace.own / "token")
    listener = listening(port)
    port = listener.getsockname()[1]
    app = Guard(application(workspace), token, port)
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ws_max_size=1 << 20,
    )
    server = uvicorn.Server(config)
    threading.Thread(target=_prepare, args=(workspace,), daemon=True).start()
    say(f"The studio is at http://{HOST}:{port}/?token={token}")
    with _ended_in_order():
        server.run(sockets=[listener])
    workspace.jobs.end(lambda job: job.record.kind in ("chat", "serve"))
    for job in workspace.jobs.all():
        if job.is_running and job.record.kind not in ("chat", "serve"):
            say(f"still running as process {job.record.pid}: {job.record.kind} {job.record.target or ''}".rstrip())


def _prepare(workspace: Workspace) -> None:
    """Do before it is asked for what a first click would wait for: read the comparisons, import what draws charts."""
    from plotly import graph_objects

    workspace.runs.all()
    graph_objects.Figure([{"type": "scatter"}, {"type": "bar"}], {"template": "none"}).to_json()
    gc.collect()
    gc.freeze()  # collections leave out what the libraries hold, which takes a third of a second


def application(workspace: Workspace) -> ASGIApp:
    """Build the page over a workspace; the guard is not among it."""
    from fastapi import FastAPI
    from nicegui import ui

    from tunewise.studio.frame import frame

    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        made,
        root=lambda: frame(workspace.opened()),
        title="tunewise studio",
        dark=None,
        language="en-US",
        tailwind=False,
        reconnect_timeout=30,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    return made


def listening(port: int) -> socket.socket:
    """Open a socket that listens on this machine only; port 0 takes a free one.

    Raises:
        SettingError: the port is in use.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"cannot listen on {HOST} port {port} ({reason}); choose another --port") from error


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Ignore the signal that uvicorn raises again once it has ended in order."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ignore(number: int, frame: FrameType | None) -> None:
        """Go on to the end of the command."""

    for number in kept:
        signal.signal(number, ignore)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
