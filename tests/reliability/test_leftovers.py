"""What killed runs left is removed by the next run in the folder; what is not ours stays, whatever its name."""

import shutil
import subprocess
import sys

import pytest

from tunewise.adaptation.fit import fit
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError, SettingError
from tunewise.export.export import export
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining
from tunewise.retrieval.index import Index
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, tiny_base, tiny_task

TOKEN = "0123456789abcdef"
NOT_OURS = (
    "notes.txt",
    "checkpoint-notes/a.txt",
    "checkpoint-8/thesis.txt",
    ".mine.tmp",
    f".notes.{TOKEN}.tmp",
    f".adaptation.{TOKEN}.tmp2",
    f"adaptation.{TOKEN}.tmp",
    ".adaptation.xyz.tmp",
    f".checkpoint-x.{TOKEN}.tmp",
    "preparing/thesis.txt",
    "preparing/task/notes.md",
    "old/.adaptation.old/a.txt",
)


def plant(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")


def kept(folder, names):
    return all((folder / name).read_text() == f"mine: {name}" for name in names)


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def checkpoint(folder, step):
    artifact_writer.commit(folder / f"checkpoint-{step}", texts={"trainer_state.json": "{}"})


def fitted(folder, resume=False):
    return fit(tiny_base(), tiny_task(), make("bitfit"), folder, settings=TrainSettings(max_steps=2), resume=resume)


def visible(folder):
    """Every name below a folder, except those of what was planted."""
    planted = {part for name in NOT_OURS for part in (name, *(str(p) for p in (folder / name).parents))}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if name not in planted and str(folder / name) not in planted}


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
def test_of_a_fit(tmp_path, resume):
    fitted(tmp_path)
    whole = visible(tmp_path)
    for step in (1, 2):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path / "preparing" / "task", 3)
    (tmp_path / "preparing" / "task" / "metrics.jsonl").write_text("{}\n")
    shutil.copytree(tmp_path / "adaptation", tmp_path / ".adaptation.old")
    plant(tmp_path, [f".{name}.{TOKEN}.tmp" for name in ("checkpoint-4", "adaptation", "metrics.jsonl", "budget.json")])
    (tmp_path / ".lock-holder").write_text(str(dead_pid()))
    plant(tmp_path, NOT_OURS)
    with pytest.raises(SettingError, match="finished adaptation"):
        fitted(tmp_path, resume)
    assert kept(tmp_path, NOT_OURS)
    assert visible(tmp_path) == whole


def test_a_fit_whose_adaptation_is_damaged_keeps_its_checkpoints(tmp_path):
    fitted(tmp_path)
    checkpoint(tmp_path, 1)
    (tmp_path / "adaptation" / "weights.safetensors").unlink()
    with pytest.raises(SettingError, match="finished adaptation"):
        fitted(tmp_path)
    assert (tmp_path / "checkpoint-1").is_dir()


def compared(out):
    recipes, budget = [make("base"), make("bitfit")], Budget(steps=8, search=2, test_examples=4)
    return compare(tiny_base(), tiny_task(), recipes, out, budget=budget, retention=["the cat sat on a mat"])


def test_of_a_comparison(tmp_path):
    compared(tmp_path)
    whole = visible(tmp_path)
    trials = sorted((tmp_path / "trials").iterdir())
    for trial in trials:
        checkpoint(trial, 3)
        names = ("checkpoint-4", "trial.json", "stage.json", "memory.json", "metrics.jsonl", "adaptation")
        plant(trial, [f".{name}.{TOKEN}.tmp" for name in names])
    [measured] = (tmp_path / "measured").iterdir()
    plant(tmp_path, [f"measured/.{measured.name}.{TOKEN}.tmp/base.json"])
    plant(tmp_path, [f".{name}.{TOKEN}.tmp" for name in ("compare.json", "report.md", "report.html", "text.json")])
    (tmp_path / ".lock-holder").write_text(str(dead_pid()))
    checkpoint(tmp_path / "preparing" / "0123" / "task", 3)
    plant(tmp_path, NOT_OURS)
    plant(trials[0], NOT_OURS)
    compared(tmp_path)
    assert kept(tmp_path, NOT_OURS) and kept(trials[0], NOT_OURS)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    planted = {
        str(path)
        for name in NOT_OURS
        for root in (tmp_path, trials[0])
        for path in (root / name, *(root / name).parents)
    }
    assert {name for name in names if str(tmp_path / name) not in planted} == {
        name for name in whole if str(tmp_path / name) not in planted
    }


def test_of_a_training_on_other_data(tmp_path):
    base = tiny_base()
    attachment = attach(make("bitfit"), base)
    rows = encoder_for(attachment, tiny_task()).encode(tiny_task().train)
    plant(tmp_path, ["one/thesis.txt"])
    for resume in (True, False):
        training = SourceTraining(TrainSettings(save_steps=1), tmp_path, resume=resume)
        training.run("one", attachment, rows, steps=2, rows=2, seed=0)
        assert kept(tmp_path, ["one/thesis.txt"])


@pytest.fixture
def adaptation(tmp_path):
    fitted(tmp_path / "fit")
    return tmp_path / "fit" / "adaptation"


def exported(adaptation, out):
    return export(adaptation, "merged", out, base=tiny_base(), task=tiny_task(), parity_prompts=2)


def test_of_an_export(adaptation, tmp_path):
    plant(tmp_path, [".out.tmp/.lock", ".out.tmp/.lock-holder", ".out.tmp/content/model.safetensors", *NOT_OURS])
    exported(adaptation, tmp_path / "out")
    assert not (tmp_path / ".out.tmp").exists() and kept(tmp_path, NOT_OURS)
    assert (tmp_path / "out" / "parity.json").is_file()


def test_an_export_takes_no_folder_that_is_not_its_own(adaptation, tmp_path):
    plant(tmp_path, [".out.tmp/content/thesis.txt"])
    with pytest.raises(RequestError, match="is in the way"):
        exported(adaptation, tmp_path / "out")
    assert kept(tmp_path, [".out.tmp/content/thesis.txt"]) and not (tmp_path / "out").exists()


def test_an_export_that_is_refused_leaves_nothing(adaptation, tmp_path):
    with pytest.raises(RequestError):
        export(adaptation, "peft", tmp_path / "a" / "b" / "out", base=tiny_base("gpt2"))
    assert {path.name for path in tmp_path.iterdir()} == {"fit"}


def test_an_index_takes_no_folder_that_is_not_its_own(tmp_path):
    plant(tmp_path, ["points/thesis.txt"])
    with pytest.raises(RequestError, match="is not empty"):
        Index.create(tmp_path, "drawn", "drawn", 8)
    assert kept(tmp_path, ["points/thesis.txt"])
    shutil.rmtree(tmp_path / "points")
    Index.create(tmp_path, "drawn", "drawn", 8).close()
    (tmp_path / "index.json").unlink()
    (tmp_path / ".creating").touch()  # a creation that was killed before it had written its facts
    Index.create(tmp_path, "drawn", "drawn", 8).close()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "index.json", "points"}
