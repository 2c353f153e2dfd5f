"""One technique fitted, and scored again."""

import json
from pathlib import Path

import pytest

from tunewise.fitting import checkpoint


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
    assert scored["metric"] == "accuracy" and scored["examples"] == 12 and 0 <= scored["mean"] <= 1
    written = tmp_path / "answers.jsonl"
    result = run("eval", out, "--data", labels, "--split", "validation", "--predictions", written)
    assert result.code == 0
    assert "accuracy" in result.out and "6 validation examples" in result.out
    rows = [json.loads(line) for line in written.read_text("utf-8").splitlines()]
    assert len(rows) == 6 and set(rows[0]) == {"prompt", "prediction", "answer", "accuracy"}
    assert "train, validation or test" in refused("eval", out, "--data", labels, "--split", "tests")
    assert "nowhere" in refused("eval", tmp_path / "nowhere", "--data", labels)
    for count in (0, -2):
        assert str(count) in refused("eval", out, "--data", labels, "--test-examples", count)


def test_fit_says_what_it_did(run, model, labels, tmp_path):
    result = run(
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
    assert result.code == 0
    assert "validation loss" in result.out and "tunewise eval" in result.out
    assert not result.err


def test_fit_chooses_its_steps_and_says_why(run, model, labels, tmp_path):
    words = ["fit", "bitfit", "-m", model, "-d", labels, "-o", tmp_path]
    result = run(*words, "--json")
    assert result.code == 0, result.err
    training = result.json()["training"]
    assert training["steps"] >= 60 and training["best_step"] is None
    assert result.err.startswith(f"{training['steps']} steps of 8 examples: ")


def test_fit_stops_early(run, model, labels, tmp_path):
    """Which of these rates lets the validation loss rise soon depends on the last bits of this machine's arithmetic."""

    def trained(rate):
        words = ["-m", model, "-d", labels, "-o", tmp_path / str(rate), "--learning-rate", rate, "--max-steps", 40]
        return run("fit", "bitfit", *words, "--eval-steps", 2, "--patience-evals", 2, "--json").json()["training"]

    training = next(training for rate in (1, 0.5, 2, 0.7, 1.5) if (training := trained(rate))["stopped_early"])
    assert training["steps"] == training["best_step"] + 4 < 40


def test_fit_takes_one_length(run, model, labels, tmp_path):
    result = run("fit", "lora", "-m", model, "-d", labels, "-o", tmp_path, "--max-steps", 3, "--epochs", 1)
    assert result.code == 2 and "give one of them" in result.err


def test_fit_a_composition_with_a_learning_rate(run, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out", "--max-steps", 2]
    result = run("fit", "icl+lora", *words, "--learning-rate", 1e-3, "--json")
    assert result.code == 0, result.err
    assert result.json()["settings"]["lora"]["learning_rate"] == 1e-3


def test_fit_takes_one_technique(refused, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path / "out", "--max-steps", 1]
    refused("fit", "lora,bitfit", *words)
    refused("fit", "", *words)
    assert not (tmp_path / "out").exists()


def test_eval_keeps_the_template_of_the_fit(run, model, labels, tmp_path):
    words = ["--model", model, "--data", labels, "--out", tmp_path, "--max-steps", 1]
    assert run("fit", "lora", *words, "--template", "Text: {prompt}\\nKind:").code == 0
    scores = run("eval", tmp_path, "--data", labels, "--template", "Text: {prompt}\\nKind:", "--json").json()
    assert run("eval", tmp_path, "--data", labels, "--json").json() == scores


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
    result = run("fit", "lora", "--model", model, "--data", labels, "--out", tmp_path, *words)
    assert result.code == 2, result
    assert not result.out


@pytest.mark.parametrize(
    "words",
    [
        ["--max-length", -1],
        ["--max-length", 1],
        ["--budget-steps", 0],
        ["--budget-minutes", 0],
        ["--epochs", 0],
        ["--epochs", 1, "--budget-steps", 2],
        ["--patience-evals", -1],
        ["--need", "speed"],
        ["--report-to", "paper"],
        ["--seeds", 0],
        ["--test-examples", 0],
        ["--lr-scheduler-type", "zigzag"],
    ],
    ids=lambda words: "=".join(map(str, words)),
)
def test_compare_with_wrong_settings(run, model, labels, tmp_path, words):
    result = run("compare", "-t", "base,lora", "--model", model, "--data", labels, "--out", tmp_path, *words)
    assert result.code == 2, result
    assert not result.out


def test_out_that_is_a_file(refused, model, labels, tmp_path):
    (tmp_path / "taken").write_text("mine")
    words = ["--model", model, "--data", labels, "--out", tmp_path / "taken"]
    assert "taken" in refused("fit", "lora", *words)
    assert "taken" in refused("compare", "-t", "base", *words)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_refused_resume_leaves_the_run_as_it_was(run, refused, model, labels, lines, tmp_path, monkeypatch):
    """The steps that were chosen for it included, so that the same request still continues it."""
    out, rows = tmp_path / "out", [json.loads(line) for line in labels.read_text("utf-8").splitlines()]
    other = lines(tmp_path / "other.jsonl", rows[::-1])
    words, save = ["fit", "bitfit", "-m", model, "-o", out, "--save-steps", 10], checkpoint.save

    def saved_and_stopped(*given):
        save(*given)
        raise KeyboardInterrupt

    def files():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name[0] != "."}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", saved_and_stopped)
        assert run(*words, "-d", labels).code == 130
    before = files()
    assert "was begun with the train rows in another order" in refused(*words, "-d", other, "--resume")
    assert files() == before
    assert run(*words, "-d", labels, "--resume", "--json").json()["training"]["steps"] >= 60
