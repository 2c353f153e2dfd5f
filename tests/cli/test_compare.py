"""A comparison: what it prints where, its exit codes, and what it leaves on disk."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from tunewise.cli import main

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


def trials(out):
    """When each trial was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "trials").glob("*/trial.json")}


def test_compare_json_keeps_its_schema(compared):
    _, _, result = compared
    assert result["schema"] == 1
    assert {"name", "architecture", "parameters", "fingerprint"} <= set(result["model"])
    assert {"name", "kind", "metric", "train", "validation", "test"} <= set(result["task"])
    assert (result["task"]["train"], result["task"]["validation"], result["task"]["test"]) == (42, 6, 12)
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
        assert set(row["forgetting"]) >= {"nll_rise", "nll_rise_low", "nll_rise_high", "kl", "kl_task"}
        assert row["rank"][0] <= row["rank"][1] <= len(result["rows"])
        assert set(row["cost"]) >= COST_KEYS
    base = result["rows"][0]
    assert not any(base["forgetting"].values())
    assert set(result["verdict"]) >= {"best", "ties", "recommended", "reasons", "summary", "needed_examples"}
    assert [set(answer["rows"]) for answer in result["answers"]] == [names_of(result)] * 10
    names = {row["technique"] for row in result["rows"]}
    assert {result["verdict"]["best"], result["verdict"]["recommended"], *result["verdict"]["ties"]} <= names


def test_labels_and_the_majority_are_recorded_and_eval_gives_them_again(run, compared, labels):
    out, _, result = compared
    majority = result["majority"]
    assert majority["label"] in result["task"]["labels"] and 0 < majority["share"] <= 1
    assert majority["low"] <= majority["mean"] <= majority["high"]
    for row in result["rows"]:
        assert len(row["confusions"]) == len(row["seeds"]) and "lengths" not in row
        total = sum(number for counts in row["confusions"][0]["counts"].values() for number in counts.values())
        assert total == result["task"]["test"]
    row = next(row for row in result["rows"] if row["technique"] == "base")
    scored = run("eval", out / row["adaptation"], "--data", labels, "--json").json()
    assert scored["confusion"] == row["confusions"][0]["counts"]
    assert {one["label"] for one in scored["classes"]} <= set(result["task"]["labels"])
    assert "precision" in run("eval", out / row["adaptation"], "--data", labels).out
    exported = {row["technique"]: row.get("export_format") for row in result["rows"]}
    assert exported == {"base": "merged", "lora": "merged", "icl": None, "icl+lora": None}


def test_the_next_steps_work_as_they_are_printed(run, compared, tmp_path):
    from tunewise.results.report.next_steps import next_steps
    from tunewise.results.schema import Comparison

    out, _, result = compared
    more = {"chat": ["--prompt", "the cat", "--max-new-tokens", 2], "serve": ["--dry-run", "--port", 0]}
    more |= {"export": ["--out", tmp_path / "export"], "push": ["--card-only"]}
    for name, commands in (("base", "chat serve"), ("icl", "chat serve push"), ("lora", "chat serve export push")):
        verdict = {**result["verdict"], "recommended": name}
        steps = next_steps(Comparison.from_json({**result, "verdict": verdict}), out)
        assert [step.command.split()[1] for step in steps] == commands.split()
        for step in steps:
            words = shlex.split(step.command)[1:]
            done = run(*words, *more[words[0]])
            assert done.code == 0, (step.command, done.err)


def names_of(result):
    return {row["technique"] for row in result["rows"]}


def alone(row):
    """A row without what is known of it only among others."""
    score = {name: value for name, value in row["score"].items() if name not in ("low", "high")}
    return {**row, "score": score, "rank": None, "p_value": None}


def test_compare_and_report_show_the_same(run, compared):
    out, words, result = compared
    again = run(*words)
    assert again.code == 0
    report = run("report", out)
    assert report.code == 0
    assert report.out.strip() in again.out
    assert all(row["technique"] in report.out for row in result["rows"])
    assert f"Recommended: {result['verdict']['recommended']}." in report.out
    assert run("report", out, "--json").json()["rows"] == result["rows"]
    assert "icl+lora" in (out / "report.md").read_text("utf-8")


def test_a_second_run_runs_nothing_again(run, compared):
    out, words, result = compared
    before = trials(out)
    assert len(before) == 7
    again = run(*words, "--json").json()
    assert trials(out) == before
    assert again["rows"] == result["rows"] and again["verdict"] == result["verdict"]

    extended = run(*words, "--techniques", "base,lora,icl,icl+lora,bitfit", "--json").json()
    after = trials(out)
    assert {name.partition("-")[0] for name in after.keys() - before.keys()} == {"bitfit"}
    assert {name: after[name] for name in before} == before
    assert list(map(alone, extended["rows"][:4])) == list(map(alone, result["rows"]))


def test_eval_gives_the_row_to_the_last_digit(run, compared, labels):
    out, _, result = compared
    for row in result["rows"]:
        folder = out / row["adaptation"]
        seed = json.loads((folder.parent / "trial.json").read_text("utf-8"))["seed"]
        scored = run("eval", folder, "--data", labels, "--json").json()
        assert scored["mean"] == row["score"]["per_seed"][row["seeds"].index(seed)], row["technique"]


@pytest.mark.slow
def test_other_retention_text_is_another_measurement(run, model, labels, tmp_path):
    words = ["compare", "-t", "base,lora", "--model", model, "--data", labels, "--out", tmp_path / "out"]
    words += ["--budget-steps", 2, "--json"]
    sampled = run(*words).json()
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and the dog ran to town\n" * 20, "utf-8")
    from_file = run(*words, "--retention", text).json()
    assert from_file["retention"]["source"] == "given text"
    assert not any(from_file["rows"][0]["forgetting"].values())
    assert from_file["rows"][1]["forgetting"] != sampled["rows"][1]["forgetting"]


def test_the_recommended_row_alone_stands_out(compared):
    """Its name may begin another row's name."""
    from tunewise.results.report.tables import table
    from tunewise.results.schema import Comparison

    verdict = {"best": "icl", "ties": [], "recommended": "icl", "reasons": []}
    result = Comparison.from_json({**compared[2], "verdict": verdict})
    styles = {row.cells[0]: row.style for row in table(result).renderables[1].rows}
    assert {name for name, style in styles.items() if style == "bold green"} == {"icl"}


def test_the_price_of_an_answer_leaves_scoring_out(run, model, labels, tmp_path, monkeypatch):
    from tunewise.fitting import metrics

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
    completed = run("compare", "-t", "base,lora", *words, "--out", out, "--budget-steps", 2, "--json")
    assert completed.code == 0, completed.err
    result = completed.json()
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
    completed = run("compare", "-t", "base,bitfit,lora", "--out", tmp_path / "some", *words, "--json")
    assert completed.code == 0
    rows = {row["technique"]: row for row in completed.json()["rows"]}
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
            main.main()
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
        lines = (tmp_path / "err").read_text().splitlines()
        assert lines and all(
            re.match(r"\[00:0\d:\d\d\] |Estimate: |  base ", line) or "steps of" in line for line in lines
        )
    finally:
        if not ended:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)


def test_without_a_terminal_progress_is_plain_lines(model, labels, tmp_path):
    """As in CI, in a notebook or under nohup; even where colours are forced."""
    words = ["compare", "--model", str(model), "--data", str(labels), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tunewise.cli", *words, "-t", "base,bitfit", "--budget-steps", "2"],
        capture_output=True,
        env={**os.environ, "FORCE_COLOR": "1", "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [row["technique"] for row in json.loads(done.stdout)["rows"]] == ["base", "bitfit"]
    lines = done.stderr.decode().removesuffix("\n").split("\n")
    estimate = [line for line in lines if re.match("Estimate: about .* for 2 rows|  (base|bitfit) ", line)]
    assert len(estimate) == 3
    lines = [line for line in lines if line not in estimate]
    assert all(line.isprintable() and re.match(r"\[\d\d:\d\d:\d\d\] ", line) for line in lines), lines
    text = "\n".join(re.sub(r"^\[.{8}\] ", "", line) for line in lines)
    for place, name in enumerate(("base", "bitfit"), 1):
        assert f"row {place} of 2, {name}: begins" in text
        assert re.search(rf"row {place} of 2, {name}: accuracy \d\.\d+ \[.*\] in ", text)


def test_report_of_nothing(refused, tmp_path):
    assert "compare.json" in refused("report", tmp_path / "none")
    (tmp_path / "compare.json").write_text("{}")
    assert "compare.json" in refused("report", tmp_path)
    (tmp_path / "compare.json").write_text("{,")
    assert "compare.json" in refused("report", tmp_path)


@pytest.mark.slow
def test_a_probe_is_scored_after_each_row_and_shown(run, model, labels, tmp_path):
    words = ("compare", "--model", model, "--data", labels, "--out", tmp_path, "--budget-steps", 3)
    result = run(*words, "--techniques", "base,icl,full", "--probe", labels, "--json").json()
    assert result["retention"]["probe"] == "labels"
    rows = {row["technique"]: row for row in result["rows"]}
    assert rows["base"]["forgetting"]["probe"] == rows["base"]["score"]["mean"]
    assert rows["icl"]["forgetting"]["probe"] == rows["base"]["forgetting"]["probe"]  # asked without examples
    assert "kept" in run("report", tmp_path).out
    assert "kept" not in run(*words, "--techniques", "base").out
    assert len(trials(tmp_path)) == 4  # with and without a probe are two measurements of the base


def test_sources_are_for_those_who_learn_from_them(run, refused, model, labels, tmp_path):
    words = ("compare", "--model", model, "--data", labels, "--out", tmp_path, "--budget-steps", 2)
    result = run(*words, "--techniques", "mpt", "--sources", labels, "--set", "mpt.source_steps=2", "--json").json()
    assert result["rows"][0]["status"] == "ok", result["rows"]
    assert result["rows"][0]["settings"]["sources"] == [str(labels)]
    assert "none of these" in refused(*words, "--techniques", "base", "--sources", labels)
    missing = run(*words, "--techniques", "base,mpt", "--json").json()
    assert "--sources" in {row["technique"]: row for row in missing["rows"]}["mpt"]["reason"]
