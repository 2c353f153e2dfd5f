"""Serving: many adaptations over one base against a process for each and `transformers serve`; and clients that leave.

python benchmarks/serve.py                      throughput, p95 and memory, to results/serve.json
python benchmarks/serve.py --leave 10000        resident memory under random disconnects, to the same file
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

RESULT = Path(__file__).parent / "results" / "serve.json"
BIN = Path(sys.executable).parent
PROMPTS = [
    f"At the inn the {what} was {how}." for what in ("soup", "bed", "music", "bread") for how in ("cold", "kind")
]


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


class Server:
    """A server process, its address, and its resident memory."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log.open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"the server did not start: {log.read_text()[-500:]}")
            time.sleep(0.1)

    @property
    def memory(self) -> int:
        """Resident bytes of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        """End it in order, or else by force."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()


def ask(url: str, model: str, prompt: str, tokens: int, timeout: float = 600) -> tuple[str, float]:
    """The answer and the seconds that it took."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
    begun = time.perf_counter()
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=timeout)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"], time.perf_counter() - begun


def load(targets: list[tuple[str, str]], requests: int, clients: int, tokens: int) -> dict[str, float]:
    """Requests to (url, model) in turn, from so many clients at once."""
    calls = [(*targets[i % len(targets)], PROMPTS[i % len(PROMPTS)], tokens) for i in range(requests)]
    for target in targets:
        ask(*target, PROMPTS[0], 2)  # warm
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [seconds for _, seconds in pool.map(lambda call: ask(*call), calls)]
    whole = time.perf_counter() - begun
    p95 = statistics.quantiles(times, n=20)[-1]
    return {"requests_per_second": requests / whole, "p50_seconds": statistics.median(times), "p95_seconds": p95}


def throughput(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Figures of one server, of a server for each adaptation, and of transformers."""
    names = [f"a{index}" for index in range(arguments.adaptations)]
    for index, name in enumerate(names):
        words = ["fit", "lora", "--model", arguments.model, "--data", arguments.data, "--out", folder / name]
        words += ["--max-steps", "5", "--seed", index]
        subprocess.run([BIN / "tunewise", *map(str, words)], check=True, capture_output=True)
    rest = (arguments.requests, arguments.clients, arguments.tokens)
    figures: dict[str, object] = {}

    port = free_port()
    one = Server(
        [str(BIN / "tunewise"), "serve", *(str(folder / n) for n in names), "--port", str(port)],
        port,
        folder / "one.log",
    )
    try:
        figures["one server, all adaptations"] = {
            **load([(one.url, n) for n in names], *rest),
            "memory_bytes": one.memory,
        }
        figures["one server, one adaptation"] = {**load([(one.url, names[0])], *rest), "memory_bytes": one.memory}
    finally:
        one.close()

    many: list[Server] = []
    try:
        for name in names:
            port = free_port()
            many.append(
                Server(
                    [str(BIN / "tunewise"), "serve", str(folder / name), "--port", str(port)],
                    port,
                    folder / f"{name}.log",
                )
            )
        targets = [(server.url, name) for server, name in zip(many, names, strict=True)]
        figures["a server for each"] = {**load(targets, *rest), "memory_bytes": sum(server.memory for server in many)}
    finally:
        for server in many:
            server.close()

    port = free_port()
    merged = folder / "merged"
    try:
        from tunewise import load as load_adaptation

        adaptation = load_adaptation(folder / names[0] / "adaptation")
        adaptation.attachment.merge().save_pretrained(merged)
        tokenizer = adaptation.attachment.base.tokenizer
        # Their server takes chats alone, and those of a model with a chat template: this one says what is said.
        tokenizer.chat_template = tokenizer.chat_template or "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenizer.save_pretrained(merged)
        command = [str(BIN / "transformers"), "serve", str(merged), "--port", str(port)]
        theirs = Server(command, port, folder / "transformers.log")
        try:
            figures["transformers serve, one model"] = {
                **load([(theirs.url, str(merged))], *rest),
                "memory_bytes": theirs.memory,
            }
        finally:
            theirs.close()
    except Exception as error:  # it may not run here: the result says so instead of a figure
        figures["transformers serve, one model"] = {"not_measured": " ".join(str(error).split())[:400]}
    return figures


def leaving(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Requests of which a third is left at a random moment; every answer that comes must be the right one."""
    from tunewise.testing import tiny_base

    base = tiny_base("llama")
    base.model.save_pretrained(folder / "tiny")
    base.tokenizer.save_pretrained(folder / "tiny")
    rows = [{"prompt": f"day {i} of the cat", "completion": "cat"} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("lora", "bitfit"):
        words = ["fit", name, "--model", folder / "tiny", "--data", folder / "rows.jsonl", "--out", folder / name]
        subprocess.run([BIN / "tunewise", *map(str, words), "--max-steps", "3"], check=True, capture_output=True)
    port = free_port()
    command = [str(BIN / "tunewise"), "serve", str(folder / "lora"), str(folder / "bitfit"), "--port", str(port)]
    server = Server(command, port, folder / "leave.log")
    try:
        names = ("tiny", "lora", "bitfit")
        expected = {(name, prompt): ask(server.url, name, prompt, 16)[0] for name in names for prompt in PROMPTS}
        wrong, abandoned, lock, series = 0, 0, threading.Lock(), []

        def one(number: int) -> None:
            nonlocal wrong, abandoned
            draw = random.Random(number)
            name, prompt = draw.choice(names), draw.choice(PROMPTS)
            try:
                timeout = draw.uniform(0.001, 0.05) if draw.random() < 1 / 3 else 600
                text, _ = ask(server.url, name, prompt, 16, timeout)
            except httpx.TimeoutException:
                with lock:
                    abandoned += 1
                return
            with lock:
                wrong += text != expected[name, prompt]

        with ThreadPoolExecutor(arguments.clients) as pool:
            for start in range(0, arguments.leave, max(arguments.leave // 10, 1)):
                list(pool.map(one, range(start, min(start + max(arguments.leave // 10, 1), arguments.leave))))
                series.append(server.memory)
        counted = httpx.get(f"{server.url}/metrics").text
        gauges = [line for line in counted.splitlines() if line.startswith(("tunewise_running", "tunewise_waiting"))]
        warm = series[len(series) // 5 :]
        growth = max(warm) / warm[0] - 1
        return {
            "requests": arguments.leave,
            "left": abandoned,
            "wrong": wrong,
            "memory_bytes": series,
            "growth": growth,
            "after": gauges,
        }
    finally:
        server.close()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", default="world:reviews")
    parser.add_argument("--adaptations", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--leave", type=int, default=0, help="requests of the run with clients that leave")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = leaving if arguments.leave else throughput
        figures = kind(arguments, Path(folder))
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items() if key != "out"
    }
    results["leaving" if arguments.leave else "throughput"] = {
        "asked": settings,
        "cores": os.cpu_count(),
        "found": figures,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
