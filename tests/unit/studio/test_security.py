"""Who may open the studio: requests as an ASGI server hands them over."""

import asyncio

import pytest

from tunewise.studio.security import Guard, kept_token

TOKEN = "t" * 43
HOST = (b"host", b"127.0.0.1:8050")


@pytest.fixture
def ask():
    """Ask the guarded page; returns status, headers and whether the page was reached."""
    reached = []

    async def page(scope, receive, send):
        reached.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def call(*headers, path="/", query=b"", kind="http", method="GET"):
        reached.clear()
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": kind, "method": method, "path": path, "query_string": query, "headers": list(headers)}
        asyncio.run(Guard(page, TOKEN, 8050)(scope, None, send))
        return sent[0].get("status", sent[0]["type"]), dict(sent[0].get("headers", [])), bool(reached)

    return call


@pytest.fixture
def cookie(ask):
    status, headers, reached = ask(HOST, query=b"token=" + TOKEN.encode())
    assert (status, headers[b"location"], reached) == (303, b"/", False)
    words = headers[b"set-cookie"].decode()
    assert "HttpOnly" in words and "SameSite=Strict" in words and TOKEN not in words
    return b"cookie", words.partition(";")[0].encode()


def test_the_cookie_opens_the_page_with_a_policy(ask, cookie):
    status, headers, reached = ask(HOST, cookie)
    assert (status, reached) == (200, True)
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert headers[b"referrer-policy"] == b"no-referrer"


@pytest.mark.parametrize("query", [b"", b"token=", b"token=wrong", b"token=" + TOKEN[:-1].encode(), b"token=%ff"])
def test_without_the_token_nobody_comes_in(ask, query):
    assert ask(HOST, query=query)[::2] == (401, False)
    assert ask(HOST, (b"cookie", b"tunewise_studio_8050=" + TOKEN.encode()), query=query)[::2] == (401, False)


def test_the_token_is_taken_from_a_visit_alone(ask):
    assert ask(HOST, query=b"token=" + TOKEN.encode(), method="POST")[::2] == (401, False)
    assert ask(HOST, query=b"token=" + TOKEN.encode(), kind="websocket")[::2] == ("websocket.close", False)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"evil.example")],
        [(b"host", b"evil.example:8050")],
        [(b"host", b"127.0.0.1.evil.example:8050")],
        [],
        [HOST, (b"origin", b"http://evil.example")],
        [HOST, (b"origin", b"http://127.0.0.1:9999")],
        [HOST, (b"origin", b"null")],
        [HOST, (b"sec-fetch-site", b"cross-site")],
        [HOST, (b"sec-fetch-site", b"same-site")],
    ],
)
def test_other_hosts_and_pages_of_other_sites_are_refused(ask, cookie, headers, kind):
    status, _, reached = ask(*headers, cookie, kind=kind)
    assert (status, reached) == (403 if kind == "http" else "websocket.close", False)


def test_the_own_page_may_open_a_web_socket(ask, cookie):
    assert ask(HOST, cookie, (b"origin", b"http://127.0.0.1:8050"), kind="websocket")[2]


def test_a_redirect_stays_on_this_machine(ask):
    headers = ask(HOST, path="//evil.example/x", query=b"token=" + TOKEN.encode())[1]
    assert headers[b"location"] == b"/evil.example/x"


def test_the_token_is_kept_and_private(tmp_path):
    path = tmp_path / "own" / "token"
    token = kept_token(path)
    assert len(token) >= 32 and kept_token(path) == token
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("short")
    assert kept_token(path) not in ("short", token)


@pytest.mark.parametrize("other", [b'prefs={"theme":"dark","n":[1]}', b"a[b]=1", b"Secure", b"x=caf\xe9", b"=", b";;"])
def test_cookies_of_other_pages_of_this_host_shut_nobody_out(ask, cookie, other):
    name, value = cookie
    for cookies in (other + b"; " + value, value + b"; " + other):
        assert ask(HOST, (name, cookies))[::2] == (200, True)


def test_more_fields_than_an_address_has_bring_no_token(ask):
    assert ask(HOST, query=b"&".join(b"a%d=1" % number for number in range(40)))[::2] == (401, False)


@pytest.mark.parametrize("path", ["/\\evil.example", "//evil.example", "/\r\nX-A: b", "/\0", "/\udcff"])
def test_a_visit_leads_to_a_place_here(ask, path):
    status, headers, _ = ask(HOST, query=b"token=" + TOKEN.encode(), path=path)
    place = headers[b"location"]
    assert status == 303 and place[:1] == b"/" and place[1:2] not in (b"/", b"\\")
    assert not {b"\r", b"\n", b"\0"} & {place[at : at + 1] for at in range(len(place))}


@pytest.mark.parametrize(
    "headers", [[HOST, (b"host", b"evil.example")], [HOST, (b"origin", b"null"), (b"origin", b"http://127.0.0.1:8050")]]
)
def test_two_hosts_or_origins_are_one_too_many(ask, cookie, headers):
    assert ask(*headers, cookie)[::2] == (400, False)


@pytest.mark.parametrize(
    "header",
    [(b"origin", b"evil://127.0.0.1:8050"), (b"sec-fetch-site", b"Cross-Site"), (b"origin", b"127.0.0.1:8050")],
)
def test_forms_of_foreign_origins_are_refused(ask, cookie, header):
    assert ask(HOST, header, cookie)[::2] == (403, False)
