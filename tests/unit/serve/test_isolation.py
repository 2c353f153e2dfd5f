"""One request can never fail another, and a server refuses what it ought to, with the right status."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from tunewise.data.examples import Message
from tunewise.engine.decoding import Cohort, DecodingRow, Sampling
from tunewise.serve import middleware, server
from tunewise.serve.adaptation_pool import AdaptationPool
from tunewise.serve.app import application
from tunewise.serve.loading import unadapted
from tunewise.serve.prompts import Question
from tunewise.serve.scheduler import Ended, Engine, Failed, Job, Piece
from tunewise.testing import tiny_base

pytestmark = pytest.mark.figure("S10")

TALK = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4}


def engine_of(**options) -> Engine:
    pool = AdaptationPool(tiny_base("llama"))
    pool.add("tiny", unadapted)
    return Engine(pool, **options)


def answers(samplings, texts=None) -> list[object]:
    """Ask all at once; return for each the error, or the text."""
    engine, events = engine_of(), [[] for _ in samplings]
    texts = texts or ["the cat sat"] * len(samplings)
    engine.start()
    engine.submit(
        [
            Job("tiny", Question((Message("user", text),)), sampling, listen.append, 6)
            for text, sampling, listen in zip(texts, samplings, events, strict=True)
        ]
    )
    engine.stop(60)
    for each in events:
        assert isinstance(each[-1], Ended | Failed)
    return [
        each[-1].error if isinstance(each[-1], Failed) else "".join(e.text for e in each if isinstance(e, Piece))
        for each in events
    ]


ODD = [
    {"temperature": 1e-320},
    {"temperature": 5e-324, "top_p": 5e-324},
    {"temperature": 1.0, "top_p": 1e-320},
    {"temperature": 1e-38},
    {"temperature": 1e-6, "top_p": 1e-45},
    {"temperature": 2.0, "top_p": 1.0, "seed": -(2**63)},
    {"temperature": 2.0, "seed": 2**63 - 1, "logprobs": 20},
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_are_answered_and_cost_no_neighbour(odd):
    greedy = Sampling()
    (alone,) = answers([greedy])
    said = answers([greedy, greedy, Sampling(**odd), greedy, greedy])
    assert not any(isinstance(text, Exception) for text in said)
    assert [said[i] for i in (0, 1, 3, 4)] == [alone] * 4
    if odd["temperature"] < 1e-5 or odd.get("top_p", 1) < 1e-30:
        assert said[2] == alone, "the likeliest"


def test_a_row_that_cannot_be_drawn_fails_alone(monkeypatch):
    drawn = DecodingRow.draw

    def fail(self, logits, likeliest):
        if self.sampling.seed == 7:
            raise RuntimeError("probability tensor contains inf")
        return drawn(self, logits, likeliest)

    monkeypatch.setattr(DecodingRow, "draw", fail)
    said = answers([Sampling(), Sampling(seed=7), Sampling()])
    assert isinstance(said[1], RuntimeError) and said[0] == said[2] and isinstance(said[0], str)


@pytest.mark.parametrize("step", [0, 2])
def test_a_row_that_breaks_a_pass_fails_alone(monkeypatch, step):
    """A pass fails whenever the odd row is in it, at its first token or later; the others are read again."""
    (alone,) = answers([Sampling()])
    forward = Cohort._forward

    def fail(self, ids, positions):
        if any(row.sampling.seed == 7 and len(row.drawn) >= step for row in self.rows):
            raise ValueError("a hook failed")
        return forward(self, ids, positions)

    monkeypatch.setattr(Cohort, "_forward", fail)
    said = answers([Sampling(), Sampling(seed=7), Sampling()])
    assert isinstance(said[1], ValueError) and [said[0], said[2]] == [alone, alone]


def ask(app, content, headers=()) -> httpx.Response:
    """Post a chat request to an app, without a network."""

    async def post():
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            return await client.post(
                "http://localhost:8000/v1/chat/completions",
                content=content,
                headers={"content-type": "application/json", **dict(headers)},
            )

    return asyncio.run(post())


HOSTS = {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.nip.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_host_and_origin_are_checked(headers, status):
    app = application(engine_of(), hosts=HOSTS)
    assert ask(app, json.dumps(TALK), headers).status_code == status


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (json.dumps(TALK | {"messages": [{"role": "user", "content": "\ud800"}]}), 400, "surrogate"),
        (json.dumps(TALK | {"stop": "\udc00"}), 400, "surrogate"),
        (json.dumps(TALK | {"n": 9}), 400, "at most 8 can wait"),
        (json.dumps(TALK | {"temperature": float("nan")}), 400, ""),
        (json.dumps(TALK | {"max_tokens": 10**30}), 400, ""),
        (json.dumps(TALK | {"seed": 10**400}), 400, ""),
        ("[" * 100_000, 400, ""),
        ("\ud83d".encode("utf-8", "surrogatepass"), 400, ""),
    ],
)
def test_what_can_never_be_answered_is_a_clients_error(body, status, word):
    response = ask(application(engine_of(queue=8)), body)
    assert response.status_code == status and word in response.json()["error"]["message"]


def test_a_body_in_chunks_over_the_limit_is_too_large():
    async def chunks():
        for _ in range(8):
            yield b'{"model": "' + b"x" * 1000

    response = ask(application(engine_of(), limit=4000), chunks())
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"


@contextmanager
def running(monkeypatch, **options):
    """Run the server as `serve` does, with short times; yield its port."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.6)
    listener = socket.create_server(("127.0.0.1", 0))
    app = application(engine_of(), hosts=HOSTS)
    config = uvicorn.Config(app, http=server._Protocol, log_level="warning", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    running.should_exit = True
    thread.join(15)
    assert not thread.is_alive(), "it ends with half-open connections"


def closed(connection: socket.socket, seconds: float) -> bytes:
    """Return what comes until the server closes a connection."""
    connection.settimeout(seconds)
    received = b""
    while chunk := connection.recv(4096):
        received += chunk
    return received


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_half_sent_requests_are_closed(monkeypatch):
    with running(monkeypatch) as port:
        silent, half, after_one = (socket.create_connection(("127.0.0.1", port)) for _ in range(3))
        half.sendall(HEAD[:20])
        after_one.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + HEAD[:20])
        assert closed(silent, 5) == b"" and closed(half, 5) == b""
        assert closed(after_one, 10).startswith(b"HTTP/1.1 200")
        slow = socket.create_connection(("127.0.0.1", port))
        slow.sendall(HEAD + b"content-length: 500\r\n\r\n{")
        assert closed(slow, 5).startswith(b"HTTP/1.1 408")
        body = json.dumps(TALK).encode()
        good = socket.create_connection(("127.0.0.1", port))
        good.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert closed(good, 20).startswith(b"HTTP/1.1 200")
        left_open = socket.create_connection(("127.0.0.1", port))
        left_open.sendall(HEAD + b"content-length: 500\r\n\r\n{")
    left_open.close()
