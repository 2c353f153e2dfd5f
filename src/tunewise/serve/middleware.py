"""What stands before the routes: the token, the size of a request, and what is counted."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tunewise.serve import openai_schema
from tunewise.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = {"/health"}


class TooLargeError(Exception):
    """A request's body is larger than is allowed."""


class Guard:
    """An ASGI layer; it keeps no body and wraps no stream, so a client that leaves is noticed behind it."""

    def __init__(self, app: Application, *, token: str | None, limit: int, metrics: Metrics) -> None:
        self.app, self.token, self.limit, self.metrics = app, token, limit, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._checked(scope, receive, sent)
        finally:
            self.metrics.request(scope["path"], status, time.perf_counter() - begun)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["path"] not in _OPEN and not self._allowed(headers.get(b"authorization", b"")):
            await refuse(
                send, 401, "the token is missing or wrong; send it as: Authorization: Bearer TOKEN", "invalid_api_key"
            )
            return
        if not self._fits(headers.get(b"content-length", b"0")):
            await refuse(send, 413, self._too_large, "request_too_large")
            return
        read = 0

        async def received() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise TooLargeError
            return message

        try:
            await self.app(scope, received, send)
        except TooLargeError:
            await refuse(send, 413, self._too_large, "request_too_large")

    def _allowed(self, given: bytes) -> bool:
        """Whether the right token came, found in a time that does not depend on how much of it is right."""
        return self.token is None or hmac.compare_digest(given, b"Bearer " + self.token.encode())

    def _fits(self, length: bytes) -> bool:
        return length.isdigit() and len(length) < 20 and int(length) <= self.limit

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.limit} bytes"


async def refuse(send: Send, status: int, message: str, code: str) -> None:
    """Answer with an error as OpenAI words it."""
    body = json.dumps(openai_schema.error(message, "invalid_request_error", code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
