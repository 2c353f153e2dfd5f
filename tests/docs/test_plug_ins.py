"""The plug-ins of docs/plugins.md, installed as a package is: found by their entry points, and used as commands do."""

import configparser
import gc
import importlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tunewise.adaptation.artifact import save
from tunewise.core import plug_ins
from tunewise.core.errors import DataError, SettingError
from tunewise.data.readers import is_data_file
from tunewise.data.task import Task
from tunewise.engine.model import load_base
from tunewise.export.export import export
from tunewise.export.format import formats
from tunewise.fitting import metrics
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import CHECKS, attach, fit, tiny_base, tiny_task

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def forget():
    """What was found before is looked for again."""
    for found in (plug_ins._loaded, formats, all_techniques, metrics._guarded):
        found.cache_clear()


def install(folder, project, modules):
    """Lay a package into a folder on the path, as pip does."""
    information = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = configparser.ConfigParser(delimiters=("=",))
    points.read_dict(project["entry-points"])
    with (information / "entry_points.txt").open("w") as file:
        points.write(file)
    for name, text in modules.items():
        (folder / name).write_text(text, "utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages that is gone afterwards, with all that was imported from it."""
    folder, before = tmp_path / "site", {*sys.modules}
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    # A library keeps the frames in which it was first imported; they must not be those that hold the example's classes.
    fit(attach(make("bitfit"), tiny_base("llama")), steps=1)
    forget()
    yield folder
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    gc.collect()
    forget()
    importlib.invalidate_caches()


@pytest.fixture
def installed(site):
    (project,) = [tomllib.loads(text)["project"] for kind, text in BLOCKS if kind == "toml"]
    python = [text for kind, text in BLOCKS if kind == "python"]
    install(site, project, {text.partition("\n")[0].removeprefix("# "): text for text in python})
    importlib.invalidate_caches()
    return site


def test_every_example_of_the_page_is_installed(installed):
    assert {path.name for path in installed.glob("*.py")} == {
        *("my_technique.py", "my_metrics.py", "my_files.py", "my_exports.py")
    }


def test_the_technique_keeps_the_contract(installed):
    recipe = make("final_norm")
    for check in CHECKS:
        check(recipe, tiny_base("llama"))


def test_the_metric_scores_and_its_faults_are_sentences(installed):
    metric = metrics.find("first_word")
    assert (metric("yes it is", ["yes it was"]), metric("no", ["yes"])) == (1.0, 0.0)
    with pytest.raises(SettingError, match="the metric first_word failed on 'x'"):
        metric("x", [None])
    with pytest.raises(SettingError, match=r"there are .*first_word"):
        metrics.find("second_word")


def test_files_are_read_and_refused_by_name(installed, tmp_path):
    rows = [{"text": f"day {day} was {word}", "label": word} for day in range(20) for word in ("good", "bad")]
    path = tmp_path / "reviews.yaml"
    path.write_text("".join(f"- {json.dumps(row)}\n" for row in rows))
    assert is_data_file(path)
    task = Task.read(path)
    assert task.kind == "classification" and set(task.labels) == {"good", "bad"}
    path.write_text("just: this\n")
    with pytest.raises(DataError, match=r"reviews\.yaml.*it holds no list of rows"):
        Task.read(path)
    with pytest.raises(DataError, match=r"\.toml.*\.yml"):
        (tmp_path / "other.toml").write_text("a = 1")
        Task.read(tmp_path / "other.toml")


def test_the_export_is_compared_with_what_was_trained(installed, tmp_path, save_tiny):
    base = load_base(str(save_tiny(tmp_path / "base")))
    attachment = attach(make("lora"), base)
    fit(attachment)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    attachment.detach()
    parity = export(tmp_path / "adaptation", "bundle", tmp_path / "out", base=base, task=tiny_task())
    assert parity["same"] is True and parity["format"] == "bundle"
    assert (tmp_path / "out" / "NOTE.txt").is_file()


@pytest.mark.parametrize(
    ("group", "value", "said"),
    [
        ("metrics", "broken:METRIC", r"the plug-in mine = \"broken:METRIC\" of bad cannot be imported .*no such thing"),
        ("metrics", "kinds:TEXT", r"of bad is a str and must be a Metric"),
        ("metrics", "kinds:F1", r"the metric f1 is defined twice"),
        ("data_formats", "kinds:CSV", r"the ending \.csv is defined twice"),
        ("export_formats", "kinds:TEXT", r"of bad is a str and must be a Format"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named(site, tmp_path, group, value, said):
    modules = {
        "broken.py": "raise RuntimeError('no such thing')\n",
        "kinds.py": "from tunewise.data.file_formats import FileFormat\nfrom tunewise.fitting.metrics import Metric\n"
        "TEXT = 'text'\nCSV = FileFormat(('.csv',), list)\nF1 = Metric('f1', max, '', '', None)\n",
    }
    install(site, {"name": "bad", "version": "1", "entry-points": {f"tunewise.{group}": {"mine": value}}}, modules)
    importlib.invalidate_caches()
    (tmp_path / "file.other").write_text("x")
    uses = {"metrics": lambda: metrics.find("none"), "data_formats": lambda: is_data_file(tmp_path / "file.other")}
    with pytest.raises(SettingError, match=said):
        uses.get(group, formats)()


def test_without_plug_ins_nothing_is_added(site):
    assert metrics.all_metrics() == metrics.METRICS and "bundle" not in formats()
