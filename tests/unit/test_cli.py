"""The command line as a user meets it: what it prints where, its exit codes, and what it leaves on disk."""

import json
import os
import pickle  # noqa: TID251 (to make what must never be opened)
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tunewise import cli
from tunewise.technique import all_techniques
from tunewise.testing import tiny_base

ROW_KEYS = {"technique", "status", "reason", "learning_rate", "settings"}
DONE_KEYS = {"score", "nll", "forgetting", "cost", "adaptation"}
COST_KEYS = {
    "train_seconds",
    "peak_memory_bytes",
    "optimised_parameters",
    "stored_parameters",
    "artifact_bytes",
    "seconds_per_example",
    "prompt_tokens",
}


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self):
        """The one document on stdout; anything beside it is an error."""
        return json.loads(self.out)


@pytest.fixture
def run(capfd, monkeypatch):
    """Call the command line in this process; an exception that leaves it fails the test by itself."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        found = Result(code, *capfd.readouterr())
        assert "Traceback" not in found.out + found.err
        return found

    return call


@pytest.fixture
def refused(run):
    """Call it with a wrong request: exit code 2, nothing on stdout, one line on stderr, which is returned."""

    def call(*words):
        found = run(*words)
        assert found.code == 2, found
        assert not found.out
        assert found.err.count("\n") == 1, found.err
        return found.err

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def labels(tmp_path_factory):
    """Sixty short sentences with two labels: six for the test, six for validation."""
    rows = [
        {"text": f"the {'cat' if i % 2 else 'dog'} ran to town by day {i}", "label": "old" if i % 2 else "small"}
        for i in range(60)
    ]
    return lines(tmp_path_factory.mktemp("data") / "labels.jsonl", rows)


@pytest.fixture(scope="session")
def answers(tmp_path_factory):
    """300 prompts with answers: thirty for the test, enough for the order of a sum to matter."""
    words = ["cat", "dog", "bird", "tree", "mat"]
    rows = [{"prompt": f"day {i} of the {words[i % 5]}", "completion": words[i % 5]} for i in range(300)]
    return lines(tmp_path_factory.mktemp("data") / "answers.jsonl", rows)


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
        found = run(*words, "--json")
        assert found.code == 0, found.err
        assert found.json() == json.loads((out / "compare.json").read_text("utf-8"))
    return out, words, json.loads((out / "compare.json").read_text("utf-8"))


def trials(out):
    """When each trial was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "trials").glob("*/trial.json")}


# What there is.


def test_help_needs_no_torch():
    code = (
        "import sys; from tunewise.cli import main; sys.argv = ['tunewise', {words}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {{'torch', 'transformers', 'datasets', 'numpy'}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for words in ("'--help'", "'compare', '--help'"):
        subprocess.run([sys.executable, "-c", code.format(words=words)], check=True, stdout=subprocess.DEVNULL)


def test_no_words_show_the_commands(run):
    found = run()
    for command in ("techniques", "check", "fit", "compare", "eval", "report", "demo"):
        assert command in found.out + found.err


@pytest.mark.parametrize("words", [["bogus"], ["fit", "lora"], ["fit", "lora", "--bogus", "1"], ["report"]])
def test_wrong_words_exit_2(run, words):
    found = run(*words)
    assert found.code == 2
    assert not found.out


def test_techniques_tree(run):
    found = run("techniques")
    assert found.code == 0
    assert all(name in found.out for name in all_techniques())
    assert not found.err


def test_techniques_one(run):
    found = run("techniques", "lora")
    assert found.code == 0
    assert all(part in found.out for part in ("Hu et al. 2021", "lora_alpha", "target_modules", "1 to 4096"))


def test_techniques_json(run):
    every = run("techniques", "--json").json()
    assert [each["technique"] for each in every] == list(all_techniques())
    one = run("techniques", "lora", "--json").json()
    assert one == next(each for each in every if each["technique"] == "lora")
    assert {"name": "r", "default": 16, "help": one["settings"][0]["help"], "low": 1, "high": 4096} == one["settings"][
        0
    ]


def test_techniques_unknown(refused):
    assert 'there is no technique "lorra"; did you mean "lora"?' in refused("techniques", "lorra")
    assert "did you mean" in refused("techniques", "lorra", "--json")


@pytest.mark.parametrize("words", [["icl+lora"], ["icl+lora", "--json"]])
def test_techniques_composed(run, words):
    found = run("techniques", *words)
    assert found.code in (0, 2)
    assert "lora" in found.out + found.err


# Check.


def test_check_without_a_model(run, labels):
    found = run("check", "--data", labels)
    assert found.code == 0
    assert "classification" in found.out and "48 train, 6 validation, 6 test" in found.out
    facts = run("check", "--data", labels, "--json").json()
    assert facts["counts"] == {"train": 48, "validation": 6, "test": 6}
    assert set(facts["labels"]) == {"old", "small"}
    assert "model" not in facts


def test_check_with_a_model(run, labels, model):
    facts = run("check", "--data", labels, "--model", model, "--json").json()
    assert facts["window"] == 256
    assert facts["exceeding"]["train"] == 0
    assert sum(each["examples"] for each in facts["histogram"]) == 48
    assert facts["first_example"]["answer"].strip() in ("old", "small")
    found = run("check", "--data", labels, "--model", model, "--max-length", 16)
    assert found.code == 0
    assert "48 training examples exceed the window" in found.out
    assert "⟨" in found.out


def test_check_counts_leaks_and_duplicates(run, tmp_path):
    row = {"text": "the same \x1b[31mred\x1b[0m words", "label": "a"}
    others = [{"text": f"other {i}", "label": "b"} for i in range(3)]
    lines(tmp_path / "train.jsonl", [row, row, *others])
    lines(tmp_path / "test.jsonl", [row, others[0]])
    lines(tmp_path / "validation.jsonl", [{"text": "new", "label": "a"}])
    facts = run("check", "--data", tmp_path, "--json").json()
    assert (facts["duplicates"], facts["leaks"]["count"]) == (1, 2)
    found = run("check", "--data", tmp_path)
    assert "the same" in found.out
    assert "\x1b" not in found.out, "a user's text must not act on the terminal"


# Fit and eval.


def test_fit_and_eval(run, refused, model, labels, tmp_path):
    out = tmp_path / "fitted"
    words = ["fit", "lora", "--model", model, "--data", labels, "--out", out, "--max-steps", 3, "--set", "lora.r=2"]
    record = run(*words, "--json").json()
    assert record["technique"] == "lora"
    assert record["settings"]["r"] == 2
    assert record["training"]["steps"] == 3
    assert Path(record["adaptation"]) == out / "adaptation"
    assert json.loads((out / "adaptation" / "adaptation.json").read_text("utf-8"))["base"]["name"] == str(model)
    assert not list(out.glob("checkpoint-*"))

    assert "finished adaptation" in refused(*words)

    scored = run("eval", out, "--data", labels, "--json").json()
    assert scored == run("eval", out / "adaptation", "--data", labels, "--json").json()
    assert scored["metric"] == "accuracy" and scored["examples"] == 6 and 0 <= scored["mean"] <= 1
    written = tmp_path / "answers.jsonl"
    found = run("eval", out, "--data", labels, "--split", "validation", "--predictions", written)
    assert found.code == 0
    assert "accuracy" in found.out and "6 validation examples" in found.out
    rows = [json.loads(line) for line in written.read_text("utf-8").splitlines()]
    assert len(rows) == 6 and set(rows[0]) == {"prompt", "prediction", "answer", "accuracy"}
    assert "train, validation or test" in refused("eval", out, "--data", labels, "--split", "tests")
    assert "nowhere" in refused("eval", tmp_path / "nowhere", "--data", labels)
    for count in (0, -2):
        assert str(count) in refused("eval", out, "--data", labels, "--test-examples", count)


def test_fit_says_what_it_did(run, model, labels, tmp_path):
    found = run(
        "fit",
        "bitfit",
        "-m",
        model,
        "-d",
        labels,
        "-o",
        tmp_path,
        "--num-train-epochs",
        0.1,
        "--lr-scheduler-type",
        "linear",
    )
    assert found.code == 0
    assert "validation loss" in found.out and "tunewise eval" in found.out
    assert not found.err


def test_fit_a_composition_with_a_learning_rate(run, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out", "--max-steps", 2]
    found = run("fit", "icl+lora", *words, "--learning-rate", 1e-3, "--json")
    assert found.code == 0, found.err
    assert found.json()["settings"]["lora"]["learning_rate"] == 1e-3


def test_fit_takes_one_technique(refused, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out", "--max-steps", 1]
    refused("fit", "lora,bitfit", *words)
    refused("fit", "", *words)
    assert not (tmp_path / "out").exists()


def test_eval_keeps_the_template_of_the_fit(run, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path, "--max-steps", 1]
    assert run("fit", "lora", *words, "--template", "Text: {prompt}\\nKind:").code == 0
    given = run("eval", tmp_path, "--data", labels, "--template", "Text: {prompt}\\nKind:", "--json").json()
    assert run("eval", tmp_path, "--data", labels, "--json").json() == given


@pytest.mark.parametrize(
    "words",
    [
        ["--max-steps", 0],
        ["--batch-size", 0],
        ["--lr-scheduler-type", "zigzag"],
        ["--device", "toaster"],
        ["--dtype", "float8"],
        ["--max-length", -1],
        ["--max-length", 2],
        ["--num-train-epochs", -1],
        ["--learning-rate", -1],
        ["--learning-rate", "nan"],
    ],
    ids=lambda words: "=".join(map(str, words)),
)
def test_fit_with_wrong_settings(run, model, labels, tmp_path, words):
    found = run("fit", "lora", "--model", model, "--data", labels, "--out", tmp_path, *words)
    assert found.code == 2, found
    assert not found.out


@pytest.mark.parametrize(
    "words",
    [
        ["--max-length", -1],
        ["--max-length", 1],
        ["--budget-steps", 0],
        ["--search", 6],
        ["--seeds", 0],
        ["--test-examples", 0],
        ["--lr-scheduler-type", "zigzag"],
    ],
    ids=lambda words: "=".join(map(str, words)),
)
def test_compare_with_wrong_settings(run, model, labels, tmp_path, words):
    found = run("compare", "-t", "base,lora", "--model", model, "--data", labels, "--out", tmp_path, *words)
    assert found.code == 2, found
    assert not found.out


def test_out_that_is_a_file(refused, model, labels, tmp_path):
    (tmp_path / "taken").write_text("mine")
    words = ["--model", model, "--data", labels, "--out", tmp_path / "taken"]
    assert "taken" in refused("fit", "lora", *words)
    assert "taken" in refused("compare", "-t", "base", *words)
    assert (tmp_path / "taken").read_text() == "mine"


# Compare.


def test_compare_json_keeps_its_schema(compared):
    _, _, result = compared
    assert result["schema"] == 1
    assert {"name", "architecture", "parameters", "fingerprint"} <= set(result["model"])
    assert {"name", "kind", "metric", "train", "validation", "test"} <= set(result["task"])
    assert (result["task"]["train"], result["task"]["validation"], result["task"]["test"]) == (48, 6, 6)
    assert {"steps", "search", "seeds"} <= set(result["budget"])
    assert result["machine"]
    assert [row["technique"] for row in result["rows"]] == ["base", "lora", "icl", "icl+lora"]
    for row in result["rows"]:
        assert set(row) >= ROW_KEYS | DONE_KEYS
        assert row["status"] == "ok" and row["reason"] is None
        score = row["score"]
        assert {"metric", "mean", "low", "high", "per_seed"} == set(score)
        assert score["low"] <= score["mean"] <= score["high"]
        assert len(score["per_seed"]) == len(row["seeds"]) == (1 if row["technique"] == "base" else 2)
        assert set(row["forgetting"]) == {"nll_rise", "kl"}
        assert set(row["cost"]) >= COST_KEYS
    base = result["rows"][0]
    assert base["forgetting"] == {"nll_rise": 0.0, "kl": 0.0}
    assert set(result["verdict"]) == {"best", "ties", "recommended", "reasons"}
    names = {row["technique"] for row in result["rows"]}
    assert {result["verdict"]["best"], result["verdict"]["recommended"], *result["verdict"]["ties"]} <= names


def test_compare_and_report_show_the_same(run, compared):
    out, words, result = compared
    again = run(*words)
    assert again.code == 0
    shown = run("report", out)
    assert shown.code == 0
    assert shown.out.strip() in again.out
    assert all(row["technique"] in shown.out for row in result["rows"])
    assert f"Recommended: {result['verdict']['recommended']}." in shown.out
    assert run("report", out, "--json").json()["rows"] == result["rows"]
    assert "icl+lora" in (out / "report.md").read_text("utf-8")


def test_a_second_run_runs_nothing_again(run, compared):
    out, words, result = compared
    before = trials(out)
    assert len(before) == 7
    again = run(*words, "--json").json()
    assert trials(out) == before
    assert again["rows"] == result["rows"] and again["verdict"] == result["verdict"]

    more = run(*words, "--techniques", "base,lora,icl,icl+lora,bitfit", "--json").json()
    after = trials(out)
    assert {name.partition("-")[0] for name in after.keys() - before.keys()} == {"bitfit"}
    assert {name: after[name] for name in before} == before
    assert more["rows"][:4] == result["rows"]


def test_eval_gives_the_row_to_the_last_digit(run, compared, labels):
    out, _, result = compared
    for row in result["rows"]:
        folder = out / row["adaptation"]
        seed = json.loads((folder.parent / "trial.json").read_text("utf-8"))["seed"]
        scored = run("eval", folder, "--data", labels, "--json").json()
        assert scored["mean"] == row["score"]["per_seed"][row["seeds"].index(seed)], row["technique"]


def test_other_retention_text_is_another_measurement(run, model, labels, tmp_path):
    words = ["compare", "-t", "base,lora", "--model", model, "--data", labels, "--out", tmp_path / "out"]
    words += ["--budget-steps", 2, "--json"]
    own = run(*words).json()
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and the dog ran to town\n" * 20, "utf-8")
    given = run(*words, "--retention", text).json()
    assert given["retention"]["source"] == "given text"
    assert given["rows"][0]["forgetting"] == {"nll_rise": 0.0, "kl": 0.0}
    assert given["rows"][1]["forgetting"] != own["rows"][1]["forgetting"]


def test_the_recommended_row_alone_stands_out(compared):
    """Its name may begin another row's name."""
    from tunewise.report import terminal

    result = {**compared[2], "verdict": {"recommended": "icl", "reasons": []}}
    table = terminal(result).renderables[0]
    shown = {str(cell): str(cell.style) for cell in table.columns[0].cells}
    assert {name for name, style in shown.items() if style} == {"icl"}


def test_the_price_of_an_answer_leaves_scoring_out(run, model, labels, tmp_path, monkeypatch):
    from tunewise import metrics

    monkeypatch.setattr(metrics, "macro_f1", lambda *given: time.sleep(1) or 0.5)
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out", "--json"]
    row = run("compare", "-t", "base", *words).json()["rows"][0]
    assert row["cost"]["seconds_per_example"] * 6 < 1


def test_generation_with_a_users_own_metric(run, model, answers, tmp_path):
    """Uneven values, so that any other order of summing would show in the last digit."""
    metric = tmp_path / "mine.py"
    metric.write_text(
        "def share(prediction, references):\n    return sum(map(ord, prediction + references[0])) % 97 / 97\n"
    )
    out, named = tmp_path / "out", f"{metric}:share"
    words = ["--model", model, "--data", answers, "--metric", named]
    found = run("compare", "-t", "base,lora", *words, "--out", out, "--budget-steps", 2, "--json")
    assert found.code == 0, found.err
    result = found.json()
    assert result["task"]["metric"] == named
    for row in result["rows"]:
        scored = run("eval", out / row["adaptation"], "--data", answers, "--metric", named, "--json").json()
        assert scored["metric"] == named
        assert scored["mean"] == row["score"]["per_seed"][0]
        assert {"exact_match", "f1", "rouge_l", "bleu"} == set(scored["others"])


def test_broken_metrics(run, refused, model, answers, tmp_path):
    metric = tmp_path / "broken.py"
    metric.write_text(
        "def raises(prediction, references):\n    raise KeyError('oh')\n\ndef text(p, r):\n    return 'good'\n"
    )
    words = ["--model", tmp_path / "no-model", "--data", answers, "--out", tmp_path / "out"]
    assert 'has no function "absent"' in refused("fit", "lora", *words, "--metric", f"{metric}:absent")
    assert "there is no such file" in refused("fit", "lora", *words, "--metric", f"{tmp_path}/none.py:f")
    assert 'there is no metric "rouge"' in refused("fit", "lora", *words, "--metric", "rouge")
    bad = tmp_path / "bad.py"
    bad.write_text("import nothing_of_this_name\n")
    assert "bad.py" in refused("compare", *words, "--metric", f"{bad}:f")
    assert "accuracy" in refused("compare", *words, "--metric", "accuracy")

    assert run("fit", "base", "-m", model, "-d", answers, "-o", tmp_path / "kept").code == 0
    assert "raises failed" in refused("eval", tmp_path / "kept", "-d", answers, "--metric", f"{metric}:raises")
    assert "text failed" in refused("eval", tmp_path / "kept", "-d", answers, "--metric", f"{metric}:text")


def test_what_cannot_work_is_a_row(run, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--set", "bitfit.source=existing", "--budget-steps", 2]
    found = run("compare", "-t", "base,bitfit,lora", "--out", tmp_path / "some", *words, "--json")
    assert found.code == 0
    rows = {row["technique"]: row for row in found.json()["rows"]}
    assert [row["status"] for row in rows.values()] == ["ok", "failed", "ok"]
    assert "has none" in rows["bitfit"]["reason"]
    assert "has none" in run("report", tmp_path / "some").out
    assert "has none" in (tmp_path / "some" / "report.md").read_text("utf-8")

    nothing = run("compare", "-t", "bitfit", "--out", tmp_path / "none", *words, "--json")
    assert nothing.code == 1
    assert "no technique finished" in nothing.err
    assert nothing.json()["rows"][0]["status"] == "failed"


def in_another_process(words, folder):
    """Call the command line in a fork of this process, which spares the imports; its output goes to files."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            sys.argv, sys.stdout, sys.stderr = ["tunewise", *words], out, err
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def test_two_comparisons_in_one_folder(refused, model, answers, tmp_path):
    """The first is held inside its own metric until the second was refused."""
    metric, started, go = tmp_path / "slow.py", tmp_path / "started", tmp_path / "go"
    metric.write_text(
        "import time\nfrom pathlib import Path\n\n\ndef slow(prediction, references):\n"
        f"    Path({str(started)!r}).touch()\n    for _ in range(600):\n"
        f"        if Path({str(go)!r}).exists():\n            return 1.0\n        time.sleep(0.1)\n"
    )
    words = ["compare", "-t", "base", "--model", model, "--data", answers, "--out", tmp_path / "runs"]
    words = [str(word) for word in [*words, "--metric", f"{metric}:slow", "--device", "cpu"]]
    first = in_another_process(words, tmp_path)
    ended = 0
    try:
        deadline = time.monotonic() + 60
        while not started.exists() and not ended and time.monotonic() < deadline:
            ended, _ = os.waitpid(first, os.WNOHANG)
            time.sleep(0.02)
        assert started.exists()
        assert f"in use by process {first}" in refused(*words)
        go.touch()
        ended, status = os.waitpid(first, 0)
        assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "err").read_text()
        assert "Recommended: base." in (tmp_path / "out").read_text()
        assert not (tmp_path / "err").read_text()
    finally:
        if not ended:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)


def test_report_of_nothing(refused, tmp_path):
    assert "compare.json" in refused("report", tmp_path / "none")
    (tmp_path / "compare.json").write_text("{}")
    assert "compare.json" in refused("report", tmp_path)
    (tmp_path / "compare.json").write_text("{,")
    assert "compare.json" in refused("report", tmp_path)


def test_demo_takes_known_techniques(refused, tmp_path):
    assert "did you mean" in refused("demo", "--out", tmp_path / "demo", "--techniques", "lorra")
    assert not (tmp_path / "demo").exists()


# Settings.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lora.r=0", "lora.r is 0 but must be between 1 and 4096"),
        ("lora.r=1.5", "must be a whole number"),
        ("lora.r=many", "must be a whole number"),
        ("lora.lora_dropout=2", "must be between 0 and 0.95"),
        ("lora.rank=8", 'lora has no setting "rank"'),
        ("lora.lora_alfa=8", 'did you mean "lora_alpha"?'),
        ("lora.target_modules=[1,2]", "must be a list of names"),
        ("lora.r", "must look like lora.r=8"),
        ("r=8", "must look like lora.r=8"),
        ("lora.=8", "must look like lora.r=8"),
        ("lora.r=[1", "cannot be read"),
        ("bitfit.source=add", '--set names "bitfit", which is not among lora'),
    ],
)
def test_wrong_technique_settings(refused, labels, tmp_path, given, said):
    words = ["--model", tmp_path / "no-model", "--data", labels, "--out", tmp_path / "out"]
    assert said in refused("fit", "lora", *words, "--set", given)
    assert not (tmp_path / "out").exists()


def test_wrong_technique_names(refused, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out"]
    assert 'did you mean "bitfit"?' in refused("compare", *words, "--techniques", "base,bitfitt")
    assert "cannot compose" in refused("compare", *words, "--techniques", "lora+full")
    assert "must be different" in refused("compare", *words, "--techniques", "lora,lora")
    assert "at least one" in refused("compare", *words, "--techniques", ",")


def test_config_file(run, model, labels, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model}\ndata: {labels}\nout: {tmp_path / 'out'}\ntechniques: [base, lora]\nbudget_steps: 5\n"
        "batch-size: 4\ntemplate: 'Text: {prompt} Kind:'\nset:\n  lora.r: 3\n  lora.learning_rate: 1e-3\n"
    )
    result = run("compare", "--config", config, "--budget-steps", 2, "--json").json()
    assert result["budget"]["steps"] == 2, "words win over the file"
    assert result["settings"]["per_device_train_batch_size"] == 4
    row = result["rows"][1]
    assert (row["settings"]["r"], row["learning_rate"]) == (3, 1e-3)


@pytest.mark.parametrize("command", ["check", "fit", "compare", "eval"])
def test_config_knows_every_option(refused, tmp_path, command):
    """Every long option is a name for the file; the error of an unknown one lists them."""
    import typer

    config = tmp_path / "run.yaml"
    config.write_text("bogus: 1\n")
    said = refused(command, "--config", config)
    assert 'there is no setting "bogus"' in said
    options = typer.main.get_command(cli.app).commands[command].params
    names = {name[2:] for option in options for name in option.opts if name.startswith("--")} - {"config", "help"}
    unknown = []
    for name in sorted(names):
        config.write_text(f"{name}: 1\nbogus: 1\n")
        if f'"{name}"' in refused(command, "--config", config):
            unknown.append(name)
    assert not unknown


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [\n", "just words"])
def test_config_that_is_none(refused, tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    assert "run.yaml" in refused("check", "--config", tmp_path / "run.yaml")
    assert "absent.yaml" in refused("check", "--config", tmp_path / "absent.yaml")


# Models and data that cannot be used.


def test_wrong_models(refused, labels, tmp_path):
    words = ["fit", "lora", "--data", labels, "--out", tmp_path / "out", "--model"]
    assert "there is no such folder" in refused(*words, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(*words, tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no such type"}')
    assert "cannot be loaded" in refused(*words, tmp_path / "broken")
    assert not (tmp_path / "out").exists()


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_pickled_weights_are_never_opened(refused, model, labels, tmp_path):
    folder, canary = tmp_path / "pickled", tmp_path / "executed"
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    said = refused("fit", "lora", "--model", folder, "--data", labels, "--out", tmp_path / "out")
    assert "safetensors" in said
    assert not canary.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists(), "the canary itself works"


def test_data_errors_come_before_the_model(refused, tmp_path):
    """The model does not exist, and nothing says so: no model was looked for."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label"\n')
    for command in (["fit", "lora"], ["compare"], ["check"]):
        rest = ["--model", tmp_path / "no-model", *(["--out", tmp_path / "out"] if command != ["check"] else [])]
        said = refused(*command, "--data", tmp_path / "none.jsonl", *rest)
        assert "none.jsonl" in said and "no-model" not in said
        said = refused(*command, "--data", broken, *rest)
        assert "broken.jsonl line 2" in said and "no-model" not in said
    assert not (tmp_path / "out").exists()


def test_columns(run, refused, tmp_path):
    data = tmp_path / "own.csv"
    data.write_text("ask,reply\n" + "".join(f"question {i},reply {i}\n" for i in range(20)))
    assert "ask" in refused("check", "--data", data)
    assert "must look like" in refused("check", "--data", data, "--columns", "prompt")
    facts = run("check", "--data", data, "--columns", "prompt=ask,completion=reply", "--json").json()
    assert facts["format"] == "prompt-completion"
    assert run("check", "--data", f"{data}#10", "--columns", "prompt=ask,completion=reply").code == 0
