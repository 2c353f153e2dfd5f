"""Trials on a Ray cluster: the table of one worker, whatever becomes of actors. Skipped where Ray is not installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from comparison_result import differences, timeless
from processes import still_running
from rank_processes import free_port
from watched_trials import KILL, steps, write_metric

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """The variables of a process that joins a cluster of two nodes, each with room for an actor of one thread."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short name, as sockets lie in it
    (folder / "ray").mkdir()
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(folder),
        "RAY_raylet_start_wait_time_s": "240",
        "RAY_agent_register_timeout_ms": "240000",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "HOME": str(folder),
        "CLIENTS": str(free_port()),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    program = (
        "import os, sys\n"
        "from ray.cluster_utils import Cluster\n"
        "node = dict(num_cpus=1, num_gpus=0, object_store_memory=80_000_000, include_dashboard=False)\n"
        "head = dict(node, ray_client_server_port=int(os.environ['CLIENTS']))\n"
        "cluster = Cluster(initialize_head=True, head_node_args=head)\n"
        "cluster.add_node(**node)\n"
        "cluster.wait_for_nodes()\n"
        "print(cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    for _ in range(3):  # Ray gives its own agent 30 seconds to start, which a busy machine may not keep to
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        address = process.stdout.readline().strip()
        if address:
            break
        process.kill()
        process.wait()
    else:
        pytest.skip("Ray does not start on this machine")
    yield {**environment, "RAY_ADDRESS": address}
    servers = psutil.Process(process.pid).children(recursive=True)
    process.stdin.close()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
    for each in still_running(servers, within=10):
        each.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def words(tmp_path, save_tiny):
    model, data, metric = save_tiny(tmp_path / "tiny"), tmp_path / "answers.jsonl", write_metric(tmp_path)
    rows = ({"prompt": f"day {i} of the cat", "completion": ["cat", "dog", "bird"][i % 3]} for i in range(60))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ["compare", "--model", model, "--data", data, "--metric", f"{metric}:share", "--budget-steps", "8"]
    found += ["--save-steps", "1", "--validation-examples", "8", "--test-examples", "12", "-t", "base,lora,bitfit"]
    return [*map(str, found), "--yes", "--json"]


def started(words, cluster):
    command = [sys.executable, "-m", "tunewise.cli", *words]
    environment = {**cluster, "OMP_NUM_THREADS": "1"}
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard
    )


def ended(words, cluster):
    process = started(words, cluster)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_actors_give_what_one_worker_gives_and_a_killed_ones_trial_goes_on(words, cluster, tmp_path):
    code, out, err = ended([*words, "--out", str(tmp_path / "one")], cluster)
    assert code == 0, err
    one = timeless(json.loads(out))
    (tmp_path / "steps").unlink()
    (tmp_path / "lora").write_text(f"once {KILL}")
    code, out, err = ended([*words, "--out", str(tmp_path / "ray"), "--workers", "auto"], cluster)
    assert code == 0 and "Traceback" not in err, err
    assert not differences(timeless(json.loads(out)), one)
    taken = steps(tmp_path, "lora")
    first = [step for pid, step in taken if pid == taken[0][0]]
    second = [step for pid, step in taken if pid != taken[0][0]]
    assert first == [1, 2, 3, 4] and second[0] in (4, 5) and second[-1] == 8

    (tmp_path / "steps").unlink()
    (tmp_path / "bitfit").write_text(KILL)
    address = f"ray://127.0.0.1:{cluster['CLIENTS']}"
    for _ in range(3):  # Ray gives the server of a client 30 seconds to start, which a busy machine may not keep to
        code, out, err = ended([*words, "--out", str(tmp_path / "dead"), "--workers", address], cluster)
        if "no Ray cluster can be joined" not in err:
            break
    rows = {row["technique"]: row for row in json.loads(out)["rows"]}
    assert code == 0 and rows["bitfit"]["reason"] == "its process was killed from outside, 3 times", err
    assert rows["lora"]["status"] == "ok" and len({pid for pid, _ in steps(tmp_path, "bitfit")}) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_ends_the_actors(words, cluster, tmp_path):
    (tmp_path / "lora").write_text("time.sleep(600)")
    process = started([*words, "--out", str(tmp_path / "out"), "--workers", "auto"], cluster)
    while not (tmp_path / "steps").exists() or len(steps(tmp_path, "lora")) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    (actor,) = (psutil.Process(pid) for pid in {pid for pid, _ in steps(tmp_path, "lora")})
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "to continue: tunewise compare" in err, err
    assert not still_running([actor], within=10)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_where_no_cluster_answers_the_request_is_wrong(words, tmp_path, address):
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    code, out, err = ended([*words, "--out", str(tmp_path / "out"), "--workers", address], environment)
    assert code == 2 and not out, err
    assert f'--workers is "{address}", but nothing answers at 127.0.0.1:1' in err and "Traceback" not in err
