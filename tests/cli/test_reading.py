"""The options that say how data is read, on the command line and in a YAML file."""

import json


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_kind(run, tmp_path):
    data = written(tmp_path / "data.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(20)])
    for kind in ("classification", "generation", "text"):
        facts = run("check", "--data", data, "--kind", kind, "--json").json()
        assert facts["kind"] == kind
    assert "is not a kind of task" in run("check", "--data", data, "--kind", "regression").err


def test_bad_rows(run, refused, tmp_path):
    rows = [{"prompt": f"p {i}", "completion": f"c {i}" if i % 9 else ""} for i in range(28)]
    data = written(tmp_path / "data.jsonl", rows)
    message = refused("check", "--data", data)
    assert "4 of 28 rows are bad" in message and "--skip-bad-rows" in message
    facts = run("check", "--data", data, "--skip-bad-rows", "--json").json()
    assert sum(facts["counts"].values()) == 24
    assert any(note.startswith("4 bad rows were left out") for note in facts["notes"])


def test_columns_of_a_prompt_in_a_file_of_settings(run, tmp_path):
    rows = [{"title": f"t {i}", "body": f"b {i}", "stars": i % 2} for i in range(20)]
    data = written(tmp_path / "data.jsonl", rows)
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {data}\nkind: classification\ncolumns:\n  text: title+body\n  label: stars\n")
    facts = run("check", "--config", config, "--json").json()
    assert (facts["kind"], list(facts["labels"])) == ("classification", ["0", "1"])
    template = "{title}\\n{body}\\nStars:"
    columns = ["--columns", "label=stars", "--template", template]
    facts = run("check", "--data", data, *columns, "--json").json()
    assert facts["prompt_characters"] == {"shortest": len("t 0\nb 0\nStars:"), "longest": len("t 10\nb 10\nStars:")}
    assert "one of the columns" in run("check", "--data", data, "--template", "{titel}").err.replace(
        "or the", "one of the"
    )
