"""The command line called as a user calls it, and small models and data to call it on."""

import json
import re
import sys
from dataclasses import dataclass

import pytest

from tunewise.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self):
        """The one document on stdout; anything beside it is an error."""
        return json.loads(self.out)


def without_progress(err):
    """What stands on stderr besides the progress of work that took long."""
    return "".join(line for line in err.splitlines(keepends=True) if not re.match(r"\[\d\d:\d\d:\d\d\] ", line))


@pytest.fixture
def run(capfd, monkeypatch):
    """Call the command line in this process, trials included; an exception that leaves it fails the test by itself."""

    def call(*words):
        words = [*words, "--in-process"] if words[:1] == ("compare",) and "--help" not in words else words
        monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
        monkeypatch.delenv("COLUMNS", raising=False)  # parallel test processes have it; a pipe has no width
        capfd.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        result = Result(code, out, without_progress(err))
        assert "Traceback" not in result.out + result.err
        return result

    return call


@pytest.fixture
def refused(run):
    """Call it with a wrong request: exit code 2, nothing on stdout, one line on stderr, which is returned."""

    def call(*words):
        result = run(*words)
        assert result.code == 2, result
        assert not result.out
        assert result.err.count("\n") == 1, result.err
        return result.err

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory, save_tiny):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def lines():
    """A function that writes rows as JSON Lines."""
    return write


@pytest.fixture(scope="session")
def labels(tmp_path_factory):
    """Sixty short sentences with two labels: six for the test, six for validation."""
    rows = [
        {"text": f"the {'cat' if i % 2 else 'dog'} ran to town by day {i}", "label": "old" if i % 2 else "small"}
        for i in range(60)
    ]
    return write(tmp_path_factory.mktemp("data") / "labels.jsonl", rows)


@pytest.fixture(scope="session")
def answers(tmp_path_factory):
    """300 prompts with answers: thirty for the test, enough for the order of a sum to matter."""
    words = ["cat", "dog", "bird", "tree", "mat"]
    rows = [{"prompt": f"day {i} of the {words[i % 5]}", "completion": words[i % 5]} for i in range(300)]
    return write(tmp_path_factory.mktemp("data") / "answers.jsonl", rows)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, model, labels):
    """An adaptation of a tiny model, fitted once on data that is still there."""
    from tunewise.adaptation.fit import fit
    from tunewise.data.task import Task
    from tunewise.engine.model import load_base
    from tunewise.fitting.settings import TrainSettings
    from tunewise.techniques.registry import make

    folder, task = tmp_path_factory.mktemp("fitted"), Task.read(labels)
    recipe = make("lora", {"lora": {"r": 2}})
    fit(load_base(model), task, recipe, folder, settings=TrainSettings(max_steps=3))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, model, labels):
    """A comparison of the three techniques and a composed one, run once: its folder and its words."""
    out = tmp_path_factory.mktemp("runs") / "first"
    words = ["compare", "--model", model, "--data", labels, "--out", out, "--budget-steps", 3, "--seeds", 2]
    words += ["--techniques", "base,lora,icl,icl+lora", "--set", "lora.r=2", "--set", "icl.k=1"]
    return out, [str(word) for word in words]


@pytest.fixture
def compared(run, finished):
    """The finished comparison's folder, words and result."""
    out, words = finished
    if not (out / "report.md").is_file():
        result = run(*words, "--json")
        assert result.code == 0, result.err
        assert result.json() == json.loads((out / "compare.json").read_text("utf-8"))
    return out, words, json.loads((out / "compare.json").read_text("utf-8"))
