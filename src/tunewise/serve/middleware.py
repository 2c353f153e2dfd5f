"""The layer before the routes: it checks the token and the size of a request, and counts what was answered."""

from __future__ import annotations

import hmac
import json
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewise.serve import openai_schema
from tunewise.serve.metrics import Metrics

_OPEN = {"/health"}  # paths that need no token


class TooLargeError(Exception):
    """A request's body is larger than is allowed."""


class Guard:
    """An ASGI layer that refuses requests without the token or above the limit.

    It buffers no body and wraps no response stream, so the routes still notice a client that disconnects.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, limit: int, metrics: Metrics) -> None:
        self.app, self.token, self.limit, self.metrics = app, token, limit, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on, and count it with its status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._refuse_or_pass_on(scope, receive, send_noting_status)
        finally:
            self.metrics.request(scope["path"], status, time.perf_counter() - start)

    async def _refuse_or_pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if scope["path"] not in _OPEN and not self._authorised(headers.get(b"authorization", b"")):
            await refuse(
                send, 401, "the token is missing or wrong; send it as: Authorization: Bearer TOKEN", "invalid_api_key"
            )
            return
        if not self._fits(headers.get(b"content-length", b"0")):
            await refuse(send, 413, self._too_large, "request_too_large")
            return
        body_bytes = 0

        async def receive_up_to_limit() -> Message:
            nonlocal body_bytes
            message = await receive()
            body_bytes += len(message.get("body", b""))
            if body_bytes > self.limit:
                raise TooLargeError
            return message

        try:
            await self.app(scope, receive_up_to_limit, send)
        except TooLargeError:
            await refuse(send, 413, self._too_large, "request_too_large")

    def _authorised(self, authorization: bytes) -> bool:
        """Compare the header with the token, in a time that does not depend on how much of it is right."""
        return self.token is None or hmac.compare_digest(authorization, b"Bearer " + self.token.encode())

    def _fits(self, content_length: bytes) -> bool:
        # At most 19 digits: int() is slow on very long ones, or raises.
        return content_length.isdigit() and len(content_length) < 20 and int(content_length) <= self.limit

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.limit} bytes"


async def refuse(send: Send, status: int, message: str, code: str) -> None:
    """Answer with an error in OpenAI's form."""
    body = json.dumps(openai_schema.error(message, "invalid_request_error", code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
