"""The import of other programs' configuration files, as a user calls it."""

import json
from pathlib import Path

import pytest
import yaml

TRL = (
    "model_name_or_path: world\ndataset_name: world:records\nuse_peft: true\noutput_dir: {out}\nmax_steps: 3\nodd: 1\n"
)


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "trl.yaml"
    path.write_text(TRL.format(out=tmp_path / "out"))
    return path


def test_a_file_is_written_that_fit_runs(run, theirs, tmp_path, model, labels):
    ours = tmp_path / "ours.yaml"
    theirs.write_text(theirs.read_text().replace("world:records", str(labels)).replace("world", str(model)))
    result = run("import", theirs, "--out", ours)
    assert result.code == 0 and not result.err
    assert "for TRL: 5 taken" in result.out and "1 unknown" in result.out
    assert f"tunewise fit --config {ours}" in " ".join(result.out.split())
    record = run("fit", "--config", ours, "--json").json()
    saved = json.loads((Path(record["adaptation"]) / "adaptation.json").read_text())
    assert saved["settings"]["lora_dropout"] == 0.05, "TRL's default"


def test_what_is_shown_is_what_is_written(run, theirs, tmp_path):
    shown = run("import", theirs).out
    facts = run("import", theirs, "--out", tmp_path / "ours.yaml", "--json").json()
    text = (tmp_path / "ours.yaml").read_text("utf-8")
    assert shown.rstrip().endswith(text.rstrip())
    assert facts["configuration"] == yaml.safe_load(text)
    assert {line["key"]: line["fate"] for line in facts["lines"]}["odd"] == "unknown"
    assert [line["line"] for line in facts["lines"][:6]] == [1, 2, 3, 4, 5, 6]


def test_a_file_without_data_fails_and_says_what_to_give(run, theirs, tmp_path):
    theirs.write_text("model_name_or_path: world\nuse_peft: true\n")
    result = run("import", theirs, "--out", tmp_path / "ours.yaml", "--json")
    assert result.code == 1
    assert result.json()["missing"] == ["data"]
    assert result.err == f"failed: {theirs}: data could not be taken, and fit needs it; give fit --data\n"
    assert (tmp_path / "ours.yaml").is_file()


def test_no_other_file_is_written_over(run, refused, theirs, tmp_path):
    text = theirs.read_text()
    assert "import did not make it" in refused("import", theirs, "--out", theirs)
    assert theirs.read_text() == text
    assert "choose another --out" in refused("import", theirs, "--out", tmp_path)
    for _ in range(2):  # one that an import made may be made again
        assert run("import", theirs, "--out", tmp_path / "ours.yaml").code == 0


def test_wrong_requests(refused, theirs, tmp_path):
    assert "there is no such file" in refused("import", tmp_path / "absent.yaml")
    assert "there is no such file" in refused("import", tmp_path)
    assert "--from is unsloth but must be one of" in refused("import", theirs, "--from", "unsloth")
    assert "--for is advise but must be fit or compare" in refused("import", theirs, "--for", "advise")
    assert "devices is 0" in refused("import", theirs, "--devices", 0)
    theirs.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as YAML" in refused("import", theirs)


def test_nothing_in_a_file_acts_on_the_terminal(run, theirs):
    key = '"a\\e[2J\\nb"'
    theirs.write_text(theirs.read_text() + f'{key}: "\\e[31m\\n- {"x" * 500}"\n')
    out = run("import", theirs).out
    assert "\x1b" not in out and "x" * 100 not in out
    (line,) = [line for line in out.splitlines() if line.lstrip().startswith("7 ")]
    assert "unknown" in line
