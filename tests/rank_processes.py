"""Starts processes as ranks, and reads what they wrote."""

import json
import os
import socket
import subprocess


def environment(rank=0, size=1, port=0):
    """Return the variables that torchrun would set."""
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in named.items()}}


def without_ranks():
    """Return the variables of a process of which a launcher makes ranks."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def outcomes(path):
    return dict(map(json.loads, path.read_text("utf-8").splitlines()))


def run(*command, **settings):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment(), **settings
    )


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]
