"""Work that goes on for long holds no more memory and no more files in the end than in the beginning."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest

import figures
from tunewise.adaptation.fit import fit
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial import Trial, run
from tunewise.engine.model import load_base
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

pytestmark = [pytest.mark.slow, pytest.mark.figure("R16"), pytest.mark.timeout(figures.of(600, 14_400))]

TRIALS, REQUESTS = figures.of(35, 500), figures.of(250, 10_000)
WARM = 20  # trials, after which nothing is loaded or cached for the first time
SLACK = 32 << 20  # bytes of memory that the allocator may keep or give back between two looks


def test_trials_leave_no_memory_and_no_files_behind(tmp_path, cases):
    base, task, process = tiny_base(), tiny_task(), psutil.Process()
    context = ComparisonContext(
        base, task, validation=4, test=4, retention=Retention.measure(base, ["the cat sat on a mat"]), attempt_id="now"
    )
    recipe, settings = make("lora", {"lora": {"r": 2}}).resolved(base), TrainSettings(max_steps=1)
    for seed in range(TRIALS):
        if seed == WARM:
            files, memory = process.num_fds(), process.memory_info().rss
        record = run(Trial(recipe, seed, settings), context, tmp_path, finish=True)
        assert record.status == "ok", record.reason
        cases.passed()
    assert process.num_fds() == files
    grown = process.memory_info().rss - memory
    assert grown < SLACK, f"{grown} bytes more after {TRIALS - WARM} trials"
    cases.note = f"{grown / (TRIALS - WARM) / 1024:.1f} KiB of memory and 0 files a trial"


@pytest.fixture
def server(tmp_path, save_tiny):
    """A process that serves an adaptation of a tiny model, and its port."""
    model = save_tiny(tmp_path / "model")
    fit(load_base(model), tiny_task(), make("lora"), tmp_path / "fitted", settings=TrainSettings(max_steps=1))
    words = ["serve", f"mine={tmp_path / 'fitted'}", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewise.cli", *words], stderr=subprocess.PIPE, text=True, env=environment
    )
    port = next(int(match[1]) for line in process.stderr if (match := re.search(r"at http://\S+:(\d+)/v1", line)))
    yield psutil.Process(process.pid), port
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "stopped; to serve again: tunewise serve" in process.stderr.read()


def body(number):
    question = {"model": ("mine", "model")[number % 2], "messages": [{"role": "user", "content": f"day {number}"}]}
    return {**question, "max_tokens": 1 + number % 3, "stream": number % 3 == 0}


def asked(port, number):
    """One request of several kinds: whole or streamed, to the end or dropped, right or wrong."""
    if number % 50 == 7:  # a client that goes away in the middle of its request
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n{")
        return True
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        request = {"model": "none"} if number % 50 == 9 else body(number)
        connection.request("POST", "/v1/chat/completions", json.dumps(request), {"content-type": "application/json"})
        response = connection.getresponse()
        if number % 50 == 11:
            return response.status == 200  # and the rest is never read
        response.read()
        return response.status == (200 if "messages" in request else 422) or (
            "messages" not in request and 400 <= response.status < 500
        )
    finally:
        connection.close()


def test_requests_leave_no_memory_and_no_files_behind(server, cases):
    process, port = server
    warm = min(200, REQUESTS // 2)
    for number in range(REQUESTS):
        if number == warm:
            memory = process.memory_info().rss
        assert asked(port, number), number
        cases.passed()
    for _ in range(100):  # connections that were just closed are forgotten by the server a moment later
        if not [each for each in process.net_connections() if each.status != psutil.CONN_LISTEN]:
            break
        asked(port, 0)
    grown = process.memory_info().rss - memory
    assert grown < SLACK, f"{grown} bytes more after {REQUESTS - warm} requests"
    open_connections = [each for each in process.net_connections() if each.status != psutil.CONN_LISTEN]
    assert len(open_connections) <= 1, open_connections
    cases.note = f"{grown / (REQUESTS - warm) / 1024:.2f} KiB of memory a request"
