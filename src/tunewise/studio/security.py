"""Who may use the page: one browser that has opened the address with the token, from this machine.

The first visit brings the token in the address. It is exchanged for a cookie that scripts cannot read and that no page
of another site sends along; from then on the address has no token. Requests and web sockets that are addressed to
another host, come from another origin, or lack the cookie are refused before anything else looks at them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError

HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_TOKEN_BYTES = 4096  # of the file at most
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


def kept_token(path: Path) -> str:
    """Return the token of a workspace, which a restarted page keeps, so that open browsers go on; made if missing."""
    try:
        token = artifact_reader.read_plain_file(path, _TOKEN_BYTES).decode("ascii").strip()
        if len(token) >= 32:
            return token
    except (ArtifactError, UnicodeDecodeError):
        pass
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # only this user reads it
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


class Guard:
    """An ASGI layer that refuses requests and web sockets of anyone else, and forbids the page to load from elsewhere.

    Args:
        app: what it guards.
        token: what the first visit must bring.
        port: where it is served; cookies are shared by all ports of a host, so that the cookie is named after it.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token, self.cookie = app, token, f"tunewise_studio_{port}"
        self._session = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, exchange its token for the cookie, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        names = [name for name, _ in scope["headers"]]
        if names.count(b"host") > 1 or names.count(b"origin") > 1:
            await _refuse(scope, send, 400, "the request names several hosts or origins")
        elif (reason := _foreign(headers)) is not None:
            await _refuse(scope, send, 403, reason)
        elif self._has_cookie(headers):
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "http" and scope["method"] == "GET" and self._brings_token(scope["query_string"]):
            await self._exchange(scope, send)
        else:
            reason = "open the address with the token that tunewise studio printed; this browser has none"
            await _refuse(scope, send, 401, reason)

    def _has_cookie(self, headers: Mapping[bytes, bytes]) -> bool:
        # Other pages of this host may have set cookies of any form, over which a parser of cookies would stumble.
        parts = (part.partition("=") for part in headers.get(b"cookie", b"").decode("latin-1").split(";"))
        return any(name.strip() == self.cookie and _same(value.strip(), self._session) for name, _, value in parts)

    def _brings_token(self, query: bytes) -> bool:
        try:
            values = parse_qs(query.decode("latin-1"), max_num_fields=16).get("token", [""])
        except ValueError:  # more fields than any address of ours has
            return False
        return _same(values[-1], self.token)

    async def _exchange(self, scope: Scope, send: Send) -> None:
        """Set the cookie and lead to the address without the token."""
        cookie = f"{self.cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        path = "/" + quote(scope["path"].lstrip("/\\"), errors="replace")
        headers = [(b"location", path.encode()), (b"set-cookie", cookie.encode())]
        headers += [(b"cache-control", b"no-store"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": [*headers, *_HEADERS]})
        await send({"type": "http.response.body", "body": b""})


def _same(one: str, other: str) -> bool:
    """Compare two secrets, in a time that does not depend on how much of them is the same."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _foreign(headers: Mapping[bytes, bytes]) -> str | None:
    """Say why a request comes from elsewhere; None if it does not."""
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    if _name_of(host) not in HOSTS:
        return "the request is addressed to another host; use the address that tunewise studio printed"
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").strip().lower() not in (f"http://{host}", f"https://{host}"):
        return "a page of another site must not ask here"
    if headers.get(b"sec-fetch-site", b"none").strip().lower() in (b"cross-site", b"same-site"):
        return "a page of another site must not ask here"
    return None


def _name_of(host: str) -> str:
    """Return the name of `host:port`, without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds the headers that forbid the page to load from elsewhere."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4000 + status % 1000})
        return
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
