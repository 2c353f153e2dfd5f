"""Starts processes as ranks, and reads what they wrote."""

import json
import os
import shutil
import socket
import subprocess

from filelock import FileLock


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


def made_once(tmp_path_factory, name, make):
    """Return a folder that `make` fills, once for all processes that the tests are dealt to."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    folder, whole = shared / name, shared / name / "whole"
    with FileLock(shared / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed in it
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def outcomes(path):
    return dict(map(json.loads, path.read_text("utf-8").splitlines()))


def run(*command, **settings):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment(), **settings
    )


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]
