"""A record that is damaged, truncated or forged costs its trial alone: it is run again, and a sentence says so."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from comparison_result import timeless
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.comparison.trial_records import read_record, read_stage
from tunewise.core import sealed_json
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

GOLDEN = Path(__file__).parents[1] / "golden"
BUDGET = Budget(steps=8, search=2, test_examples=4)


def compared(out):
    recipes = [make("base"), make("bitfit")]
    return compare(tiny_base(), tiny_task(), recipes, out, budget=BUDGET, retention=["the cat sat on a mat"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, compared(folder)


def edited(path, change):
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def forged(path):
    """Another score, or another loss, in a file that is otherwise as it was."""

    def change(value):
        if "score" in value:
            value["score"]["mean"] = 1.0
        else:
            value["validation_loss"] = 0.001

    edited(path, change)


def forged_without_checksum(path):
    forged(path)
    edited(path, lambda value: value.pop("sha256"))


def other_trials(path):
    """The record of another trial, with its checksum."""
    others = sorted(set(path.parent.parent.glob(f"*/{path.name}")) - {path})
    shutil.copy(others[0], path)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()
    (path / "note.txt").write_text("mine")


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no object": lambda path: path.write_text("[1]"),
    "another object": lambda path: path.write_text("{}"),
    "too deep": lambda path: path.write_text('{"a": ' * 40 + "1" + "}" * 40),
    "not a number": lambda path: path.write_text(path.read_text().replace("0.", "NaN", 1)),
    "forged": forged,
    "forged without its checksum": forged_without_checksum,
    "another trial's": other_trials,
    "a link": link,
    "a folder": folder_in_its_place,
}


def results(folder):
    """When each result was written."""
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for name in ("trial.json", "stage.json")
        for path in (folder / "trials").glob(f"*/{name}")
    }


@pytest.mark.parametrize("name", ["trial.json", "stage.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_costs_its_trial_alone(finished, tmp_path, caplog, name, damage):
    original, whole = finished
    folder = shutil.copytree(original, tmp_path / "run")
    path = sorted((folder / "trials").glob(f"bitfit-*/{name}"))[0]
    before = results(folder)
    DAMAGES[damage](path)
    again = compared(folder)
    assert timeless(again) == timeless(whole)
    after = results(folder)
    assert after.keys() == before.keys()
    assert {each for each in after if after[each] != before[each]} == {path.relative_to(folder)}
    [said] = [line for line in caplog.messages if str(path) in line]
    assert re.search(r"; it was moved to \.(trial|stage)\.json\.\w+\.damaged, and its trial is run again$", said)
    [aside] = path.parent.glob(f".{name}.*.damaged")
    assert damage != "a folder" or (aside / "note.txt").read_text() == "mine"
    caplog.clear()
    assert timeless(compared(folder)) == timeless(whole) and not caplog.messages  # once


def test_a_damaged_adaptation_of_a_fitted_trial_is_fitted_again(finished, tmp_path, caplog):
    """A comparison that was stopped between fitting a trial and scoring it."""
    original, whole = finished
    folder = shutil.copytree(original, tmp_path / "run")
    [trial] = [path.parent for path in (folder / "trials").glob("bitfit-*/adaptation")]
    record = sealed_json.read(trial / "trial.json", place=trial.name)
    scored = ("score", "nll", "per_example", "answers", "forgetting", "confusion", "lengths", "export_format")
    fitted = {name: value for name, value in record.items() if name not in scored}
    for name in ("scoring_peak_memory_bytes", "forgetting_peak_memory_bytes", "seconds_per_example", "prompt_tokens"):
        fitted["cost"].pop(name, None)
    for damage in (lambda: None, lambda: (trial / "adaptation" / "weights.safetensors").write_bytes(b"x")):
        sealed_json.write(trial / "trial.json", fitted, place=trial.name)
        damage()
        assert timeless(compared(folder)) == timeless(whole)
    [said] = [line for line in caplog.messages if "weights.safetensors" in line and "run again" in line]
    assert said.count(";") == 1


@pytest.mark.parametrize("name", ["text.json", "measured"])
def test_other_records_are_made_again(finished, tmp_path, caplog, name):
    original, whole = finished
    folder = shutil.copytree(original, tmp_path / "run")
    path = folder / name
    path = path if path.is_file() else next(path.rglob("base.json"))
    path.write_bytes(path.read_bytes()[:-9])
    before = results(folder)
    assert timeless(compared(folder)) == timeless(whole)
    assert results(folder) == before
    assert any(path.name in line for line in caplog.messages)


def test_every_changed_byte_of_a_record_is_noticed(finished, tmp_path, caplog):
    original, _ = finished
    for name, read in (("trial.json", read_record), ("stage.json", read_stage)):
        source = sorted((original / "trials").glob(f"bitfit-*/{name}"))[0]
        folder = tmp_path / source.parent.name
        folder.mkdir(exist_ok=True)
        raw, chance = source.read_bytes(), random.Random(0)
        places = range(len(raw)) if len(raw) < 500 else sorted(chance.sample(range(len(raw)), 500))
        for place in places:
            changed = bytearray(raw)
            changed[place] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(changed)
            assert read(folder) is None, f"{name} byte {place}: {raw[place : place + 1]!r}"
        (folder / name).write_bytes(raw)
        assert read(folder) is not None


def test_records_of_an_earlier_version_are_taken_as_they_are(finished, tmp_path, caplog):
    """Where the comparison was begun by one; they have no checksum."""
    original, whole = finished
    folder = shutil.copytree(original, tmp_path / "run")
    (folder / "text.json").unlink()
    for path in [*(folder / "trials").glob("*/trial.json"), *(folder / "trials").glob("*/stage.json")]:
        edited(path, lambda value: value.pop("sha256"))
    before = results(folder)
    for _ in range(2):
        assert timeless(compared(folder)) == timeless(whole)
        assert results(folder) == before and not caplog.messages


def test_the_record_of_an_earlier_version_is_read(tmp_path):
    shutil.copy(GOLDEN / "trial.json", tmp_path / "trial.json")
    assert read_record(tmp_path).technique == "icl+bitfit"
