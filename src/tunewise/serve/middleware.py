"""The layer before the routes: it checks host, token and size of a request, and counts what was answered."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewise.serve import openai_schema
from tunewise.serve.metrics import Metrics

_OPEN = {"/health"}  # paths that need no token
BODY_SECONDS = 30.0  # that a client has to send a request's body


class RefusedBodyError(Exception):
    """A request's body is larger than is allowed, or did not arrive in time."""


class Guard:
    """An ASGI layer that refuses requests without the token, above the limit, or addressed to another host.

    It buffers no body and wraps no response stream, so the routes still notice a client that disconnects.

    Args:
        app: what it guards.
        token: what clients must send; None: nothing.
        limit: bytes of a body at most.
        metrics: counts requests.
        hosts: names that a request may be addressed to, and pages of which a browser may send it; None: any. A page
            of another site could otherwise ask through the user's browser, by a name that leads to this machine.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        limit: int,
        metrics: Metrics,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app, self.token, self.limit, self.metrics, self.hosts = app, token, limit, metrics, hosts

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
        refusal = self._refusal(scope["path"], headers)
        if refusal is None:
            refusal = await self._passed_on(scope, receive, send)
        if refusal is not None:
            await refuse(send, *refusal)

    def _refusal(self, path: str, headers: Mapping[bytes, bytes]) -> tuple[int, str, str] | None:
        """Return status, message and code of what forbids a request before its body is read, or None."""
        if self.hosts is not None and _host_of(headers.get(b"host", b"")) not in self.hosts:
            return 403, "the request is addressed to another host; use the address that the server printed", "host"
        origin = headers.get(b"origin")
        if self.hosts is not None and origin is not None and _host_of(origin.partition(b"://")[2]) not in self.hosts:
            return 403, "a page of another site must not ask here", "origin"
        if path not in _OPEN and not self._authorised(headers.get(b"authorization", b"")):
            message = "the token is missing or wrong; send it as: Authorization: Bearer TOKEN"
            return 401, message, "invalid_api_key"
        if not self._fits(headers.get(b"content-length", b"0")):
            return self._too_large
        return None

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str, str] | None:
        """Let the routes answer, with a body that is limited in size and time; return why it was refused, or None."""
        refusal: tuple[int, str, str] | None = None
        body_bytes, is_complete, has_begun = 0, False, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def receive_up_to_limit() -> Message:
            nonlocal body_bytes, is_complete, refusal
            if is_complete:  # what follows is the news that the client went away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = 408, f"the request's body did not arrive within {BODY_SECONDS:g} seconds", "timeout"
                raise RefusedBodyError from None
            body_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if body_bytes > self.limit:
                refusal = self._too_large
                raise RefusedBodyError
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_begun
            if refusal is None or has_begun:
                has_begun = True
                await send(message)

        with suppress(RefusedBodyError):
            await self.app(scope, receive_up_to_limit, send_unless_refused)
        return None if has_begun else refusal

    def _authorised(self, authorization: bytes) -> bool:
        """Compare the header with the token, in a time that does not depend on how much of it is right."""
        return self.token is None or hmac.compare_digest(authorization, b"Bearer " + self.token.encode())

    def _fits(self, content_length: bytes) -> bool:
        # At most 19 digits: int() is slow on very long ones, or raises.
        return content_length.isdigit() and len(content_length) < 20 and int(content_length) <= self.limit

    @property
    def _too_large(self) -> tuple[int, str, str]:
        return 413, f"the request is larger than {self.limit} bytes", "request_too_large"


def _host_of(address: bytes) -> str:
    """Return the host of `host:port`, in lower case, without the brackets of IPv6."""
    text = address.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


async def refuse(send: Send, status: int, message: str, code: str) -> None:
    """Answer with an error in OpenAI's form."""
    body = json.dumps(openai_schema.error(message, "invalid_request_error", code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
