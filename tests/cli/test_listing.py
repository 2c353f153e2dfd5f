"""What the command line tells without a model: help, techniques, data."""

import pytest

from tunewise.techniques.registry import all_techniques


def test_no_words_show_the_commands(run):
    result = run()
    for command in ("techniques", "check", "fit", "compare", "eval", "report", "demo"):
        assert command in result.out + result.err


@pytest.mark.parametrize("words", [["bogus"], ["fit", "lora"], ["fit", "lora", "--bogus", "1"], ["report"]])
def test_wrong_words_exit_2(run, words):
    result = run(*words)
    assert result.code == 2
    assert not result.out


def test_techniques_tree(run):
    result = run("techniques")
    assert result.code == 0
    assert all(name in result.out for name in all_techniques())
    assert not result.err


def test_techniques_one(run):
    result = run("techniques", "lora")
    assert result.code == 0
    assert all(part in result.out for part in ("Hu et al. 2021", "lora_alpha", "target_modules", "1 to 4096"))


def test_techniques_json(run):
    all_facts = run("techniques", "--json").json()
    assert [item["technique"] for item in all_facts] == list(all_techniques())
    one = run("techniques", "lora", "--json").json()
    assert one == next(item for item in all_facts if item["technique"] == "lora")
    rank = {"name": "r", "default": 16, "help": one["settings"][0]["help"], "low": 1, "high": 4096, "search": [4, 64]}
    assert one["settings"][0] == rank


def test_techniques_unknown(refused):
    assert 'there is no technique "lorra"; did you mean "lora"?' in refused("techniques", "lorra")
    assert "did you mean" in refused("techniques", "lorra", "--json")


@pytest.mark.parametrize("words", [["icl+lora"], ["icl+lora", "--json"]])
def test_techniques_composed(run, words):
    result = run("techniques", *words)
    assert result.code in (0, 2)
    assert "lora" in result.out + result.err


def test_check_without_a_model(run, labels):
    result = run("check", "--data", labels)
    assert result.code == 0
    assert "classification" in result.out and "42 train, 6 validation, 12 test" in result.out
    facts = run("check", "--data", labels, "--json").json()
    assert facts["counts"] == {"train": 42, "validation": 6, "test": 12}
    assert set(facts["labels"]) == {"old", "small"}
    assert "model" not in facts


def test_check_with_a_model(run, labels, model):
    facts = run("check", "--data", labels, "--model", model, "--json").json()
    assert facts["window"] == 256
    assert facts["exceeding"]["train"] == 0
    assert sum(item["examples"] for item in facts["histogram"]) == 42
    assert facts["first_example"]["answer"].strip() in ("old", "small")
    result = run("check", "--data", labels, "--model", model, "--max-length", 16)
    assert result.code == 0
    assert "42 training examples exceed the window" in result.out
    assert "⟨" in result.out


def test_check_reads_no_weights(run, labels, save_tiny, tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    assert run("check", "--data", labels, "--model", tmp_path / "model").code == 0
    assert run("fit", "lora", "--data", labels, "--model", tmp_path / "model", "--out", tmp_path / "out").code == 2


def test_check_says_what_the_list_of_labels_costs(run, labels, save_tiny, tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    check = ["check", "--data", labels, "--model", tmp_path / "model"]
    facts = run(*check, "--json").json()["label_list"]
    with_list, without = (run(*check, "--label-list", choice, "--json").json() for choice in ("yes", "no"))
    assert facts["labels"] == 2 and facts["choice"] == "auto"
    assert facts["tokens"] == round(with_list["tokens"]["mean"] - without["tokens"]["mean"])
    assert "Answer with one of: old, small." in with_list["first_example"]["prompt"]
    assert "Answer with one of" not in without["first_example"]["prompt"]
    text = " ".join(run(*check).out.split())
    assert f"The list of 2 labels takes {facts['tokens']} of" in text and "--label-list no leaves it out" in text
    assert "label_list" in run(*check, "--label-list", "maybe").err.replace("--label-list", "label_list")


def test_check_counts_leaks_and_duplicates(run, lines, tmp_path):
    row = {"text": "the same \x1b[31mred\x1b[0m words", "label": "a"}
    others = [{"text": f"other {i}", "label": "b"} for i in range(3)]
    lines(tmp_path / "train.jsonl", [row, row, *others])
    lines(tmp_path / "test.jsonl", [row, others[0]])
    lines(tmp_path / "validation.jsonl", [{"text": "new", "label": "a"}])
    facts = run("check", "--data", tmp_path, "--json").json()
    assert (facts["duplicates"], facts["leaks"]["count"]) == (1, 2)
    result = run("check", "--data", tmp_path)
    assert "the same" in result.out
    assert "\x1b" not in result.out, "a user's text must not act on the terminal"
