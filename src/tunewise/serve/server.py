"""The server process: its socket, its signals and its shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tunewise.core.errors import SettingError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HEADER_SECONDS = 10.0  # that a client has to send a request's head
_CONNECTIONS = 2048  # open at a time, at most; more get status 503


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's connection, closed where a request's head does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the timer where a head is awaited, and stop it where a request is being answered."""
        if not self._awaits_head():
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_late)

    def _awaits_head(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _close_if_late(self) -> None:
        self._timer = None
        if self._awaits_head() and not self.transport.is_closing():
            self.transport.close()

    def close_unless_received(self) -> None:
        """Close the connection of a request whose body has not arrived; it could keep a drained server waiting."""
        if not self._awaits_head() and self.cycle.more_body:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def loopback(host: str) -> bool:
    """Tell whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """Open a socket that listens at an address; port 0 takes a free one.

    Raises:
        SettingError: the address is not this machine's, or is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        ) from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that it serves only now that it also hears the signals."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down on SIGTERM and SIGINT without raising them again, so that a drained server exits with 0."""
        handled = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has arrived whole, and close what is half-open."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Protocol):
                connection.close_unless_received()
        await super().shutdown(sockets)


def run(app: ASGIApp, listener: socket.socket, drain: int, ready: Callable[[], None]) -> None:
    """Serve until a signal comes; requests that were accepted are then answered, for at most `drain` seconds.

    `ready` is called when requests are answered and a signal ends the server in order.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain,
        limit_concurrency=_CONNECTIONS,
    )
    _Server(config, ready).run(sockets=[listener])
