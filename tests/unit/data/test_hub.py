"""Models and data by their Hub id, from a folder laid out like the Hub's cache, without a network.

huggingface_hub reads its environment when it is imported, so all commands run in one other process.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"
SERVER = """
import contextlib, io, json, sys
from tunewise.cli import main

found = []
for words in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["tunewise", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def publish(home, kind, name, files):
    """Put files into the cache as the Hub's client does: blobs, links to them, and the branch's commit."""
    folder = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / SHA
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs" / "main").write_text(SHA)
    for path, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path).symlink_to(f"../../blobs/{blob.name}")


@pytest.fixture(scope="module")
def results(tmp_path_factory, save_tiny):
    """Every command of this file, run once: name to (exit code, stdout, stderr)."""
    work = tmp_path_factory.mktemp("hub")
    save_tiny(work / "plain")
    files = {path.name: path.read_bytes() for path in (work / "plain").iterdir()}
    publish(work / "home", "models", "someone/tiny-llama", files)
    weightless = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    publish(work / "home", "models", "someone/no-weights", weightless)
    rows = [
        {"text": f"the {'cat' if i % 2 else 'dog'} ran by day {i}", "label": "old" if i % 2 else "small"}
        for i in range(40)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows)
    publish(work / "home", "datasets", "someone/days", {"train.jsonl": data.encode()})
    (work / "days.jsonl").write_text(data, "utf-8")

    here = ["--data", str(work / "days.jsonl")]
    commands = {
        "fit": ["fit", "lora", "-m", "someone/tiny-llama", *here, "-o", "fitted", "--max-steps", "2", "--json"],
        "eval": ["eval", "fitted", *here, "--json"],
        "pinned": ["check", "-m", "someone/tiny-llama", "--revision", SHA, *here, "--json"],
        "no revision": ["check", "-m", "someone/tiny-llama", "--revision", "v2", *here],
        "check without weights": ["check", "-m", "someone/no-weights", *here, "--json"],
        "plan without weights": ["plan", "-m", "someone/no-weights", *here, "-t", "lora", "--json"],
        "fit without weights": ["fit", "lora", "-m", "someone/no-weights", *here, "-o", "out"],
        "no model": ["fit", "lora", "-m", "someone/else", *here, "-o", "out"],
        "data file": ["check", "-d", "hf://datasets/someone/days/train.jsonl", "--json"],
        "no data file": ["check", "-d", "hf://datasets/someone/days/test.jsonl"],
        "no data": ["check", "-d", "someone/nights"],
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True)) | {"work": work}


def test_model_by_its_id(results):
    code, out, err = results["fit"]
    assert code == 0, err
    assert json.loads(out)["technique"] == "lora"
    folder = results["work"] / "fitted" / "adaptation"
    base = json.loads((folder / "adaptation.json").read_text("utf-8"))["base"]
    assert (base["name"], base["revision"]) == ("someone/tiny-llama", SHA)
    portable = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (portable["base_model_name_or_path"], portable["revision"]) == ("someone/tiny-llama", SHA)


def test_adaptation_finds_its_model_again(results):
    code, out, err = results["eval"]
    assert code == 0, err
    assert json.loads(out)["metric"] == "accuracy"


def test_pinned_revision(results):
    code, out, err = results["pinned"]
    assert code == 0, err
    assert json.loads(out)["model"] == "someone/tiny-llama"


def test_data_file_of_a_hub_set(results):
    code, out, err = results["data file"]
    assert code == 0, err
    report = json.loads(out)
    assert (report["format"], sum(report["counts"].values())) == ("classification", 40)


@pytest.mark.parametrize("name", ["no model", "no revision", "no data file", "no data"])
def test_what_is_not_there(results, name):
    code, out, err = results[name]
    assert code == 2
    assert not out
    assert err.startswith("wrong request: ") and err.count("\n") == 1, err
    assert {"no model": "someone/else", "no revision": "someone/tiny-llama"}.get(name, "someone/") in err


def test_check_and_plan_need_no_weights(results):
    for command in ("check without weights", "plan without weights"):
        code, out, err = results[command]
        assert code == 0, (command, out, err)
    assert results["fit without weights"][0] == 2, "the model must have no weights, for this to show anything"
