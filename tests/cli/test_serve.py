"""Serving, chat and files of prompts on the command line: refusals, resumption, signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest

PROMPTS = [{"text": f"day {i} of the cat"} for i in range(12)]


@pytest.fixture
def prompts(lines, tmp_path):
    return lines(tmp_path / "prompts.jsonl", PROMPTS)


@pytest.fixture
def started(fitted):
    """A function that starts the command line in a process of its own, whose stderr is read."""
    running = []

    def start(*words):
        command = [sys.executable, "-m", "tunewise.cli", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        running.append(process)
        return process

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def address(process):
    """Where a server says that it serves."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"at (http://\S+)/v1", line):
            return match[1]
    raise AssertionError("".join(lines))


def answers(path):
    """The file's rows, in the order of their prompts: which is finished first is chance."""
    return sorted((json.loads(line) for line in path.read_text("utf-8").splitlines()), key=lambda row: row["index"])


def test_a_torn_file_goes_on(run, fitted, prompts, tmp_path):
    words = ["generate", fitted, "--data", prompts, "--max-new-tokens", 6, "--batch-size", 3, "--out"]
    result = run(*words, tmp_path / "whole.jsonl", "--json").json()
    assert result["answers"] == result["new"] == len(PROMPTS)
    whole = answers(tmp_path / "whole.jsonl")
    assert [row["prompt"] for row in whole] == [row["text"] for row in PROMPTS]
    torn = tmp_path / "torn.jsonl"
    for complete in (0, 1, 5, 11):
        lines = (tmp_path / "whole.jsonl").read_text("utf-8").splitlines(keepends=True)
        torn.write_text("".join(lines[:complete]) + lines[complete][:20], "utf-8")
        assert run(*words, torn, "--json").json()["new"] == len(PROMPTS) - complete
        assert answers(torn) == whole
    assert "0 of them new" in run(*words, torn).out


def test_what_is_no_answer_file_is_left_alone(refused, fitted, prompts, lines, tmp_path):
    words = ["generate", fitted, "--data", prompts, "--max-new-tokens", 2, "--out"]
    row = {"index": 0, "model": fitted.name, "prompt": PROMPTS[0]["text"], "answer": "x", "finish_reason": "stop"}
    texts = {
        "notes": "what I must not forget\nand this\n",
        "one line": "what I must not forget\n",
        "torn in the middle": json.dumps(row) + '\n{"index": 1\n' + json.dumps(row | {"index": 2}) + "\n",
        "another adaptation": json.dumps(row | {"model": "other"}) + "\n",
        "other prompts": json.dumps(row | {"prompt": "another"}) + "\n",
        "twice": (json.dumps(row) + "\n") * 2,
        "no such prompt": json.dumps(row | {"index": 99}) + "\n",
    }
    for text in texts.values():
        out = tmp_path / "out.jsonl"
        out.write_text(text, "utf-8")
        assert "choose another --out" in refused(*words, out)
        assert out.read_text("utf-8") == text


@pytest.mark.slow
def test_a_killed_run_goes_on(run, started, fitted, prompts, tmp_path):
    words = ["generate", fitted, "--data", prompts, "--max-new-tokens", 40, "--batch-size", 1, "--out"]
    run(*words, tmp_path / "whole.jsonl")
    out = tmp_path / "killed.jsonl"
    process = started(*words, out)
    while not out.exists() or out.read_text("utf-8").count("\n") < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    answered = out.read_text("utf-8").count("\n")
    remaining = run(*words, out, "--json").json()["new"]
    assert remaining == len(PROMPTS) - answered
    assert answers(out) == answers(tmp_path / "whole.jsonl")


def test_serve_refuses_in_one_line(refused, fitted, monkeypatch):
    monkeypatch.delenv("TUNEWISE_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "give a token" in refused("serve", fitted, "--host", host)
    assert "the token is empty" in refused("serve", fitted, "--token", " ")
    assert "must be tunewise or vllm" in refused("serve", fitted, "--engine", "sglang")
    assert "there is no such folder" in refused("serve", "/no/such")
    assert "two adaptations" in refused("serve", fitted, fitted)
    assert "cannot listen" in refused("serve", fitted, "--host", "192.0.2.1", "--token", "secret", "--dry-run")


def test_serve_says_what_it_would(run, fitted):
    result = run("serve", f"mine={fitted}", "--port", 0, "--dry-run")
    assert result.code == 0 and result.out == "would serve tiny, mine\n"


def test_vllm_gets_the_right_flags(run, refused, fitted, model, labels, tmp_path, monkeypatch):
    result = run("serve", f"mine={fitted}", "--engine", "vllm", "--token", "secret", "--dry-run")
    words = result.out.split()
    assert words[:3] == ["vllm", "serve", str(model)] and "secret" not in result.out
    flags = dict(zip(words[3::2], words[4::2], strict=False))
    assert flags["--host"] == "127.0.0.1" and flags["--served-model-name"] == "tiny" and flags["--dtype"] == "float32"
    assert words[words.index("--max-lora-rank") + 1] == "8"  # the least that it takes for a rank of 2
    assert words[-1] == f"mine={fitted / 'adaptation'}"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "vllm is not installed" in refused("serve", fitted, "--engine", "vllm")
    run("fit", "bitfit", "--model", model, "--data", labels, "--max-steps", 2, "--out", tmp_path / "b")
    assert "LoRA alone" in refused("serve", tmp_path / "b", "--engine", "vllm", "--dry-run")


@pytest.mark.slow
def test_a_signal_ends_it_when_what_was_taken_is_answered(started, fitted):
    process = started("serve", f"mine={fitted}", "--port", 0)
    where = address(process)
    half_open = [socket.create_connection(("127.0.0.1", httpx.URL(where).port)) for _ in range(3)]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    half_open[1].sendall(head[:30])
    half_open[2].sendall(head + b"content-length: 500\r\n\r\n{")
    question = {"model": "mine", "messages": [{"role": "user", "content": "the cat"}], "stream": True}
    question |= {"max_tokens": 120, "temperature": 1.0, "seed": 1}
    pieces = []
    with httpx.stream("POST", f"{where}/v1/chat/completions", json=question, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if not pieces:
                process.send_signal(signal.SIGTERM)
            pieces += [line.removeprefix("data: ")] if line else []
    assert pieces[-1] == "[DONE]"
    assert json.loads(pieces[-2])["choices"][0]["finish_reason"] in ("stop", "length")
    assert process.wait(60) == 0, "it ends with half-open connections"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{where}/health", timeout=5)
    for connection in half_open:
        connection.close()


def test_chat_answers_one_question(run, refused, fitted):
    words = ["chat", f"mine={fitted}", "--max-new-tokens", 5]
    result = run(*words, "--prompt", "the cat", "--base", "--json").json()
    assert result["prompt"] == "the cat" and set(result["answers"]) == {"tiny", "mine"}
    assert "mine" in run(*words, "--prompt", "the cat").out
    assert "--prompt" in refused(*words, "--json")
    assert "top_p" in refused(*words, "--prompt", "x", "--top-p", 0)


@pytest.mark.slow
def test_chat_listens(started, fitted):
    process = started("chat", f"mine={fitted}", "--max-new-tokens", 5, "--system", "Be short.")
    out, err = process.communicate("the cat\n\n/reset\n/nothing\nthe cat\n/quit\nnever\n", timeout=100)
    assert process.returncode == 0, err
    assert out.count("mine") == 3 and 'no command "/nothing"' in out  # its name first, then over each answer
    first, second = re.split(r"mine\s*\n", out)[1:]
    assert [line.strip() for line in first.splitlines()[:3]] == [line.strip() for line in second.splitlines()[:3]]
