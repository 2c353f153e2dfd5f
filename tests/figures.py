"""Counts the cases of the tests of reliability and security, and gathers them in one file.

Every test in these folders reports a figure: how many cases ran, how many passed, and in how many seconds. A test is
one case, unless it counts the cases of its loop:

    @pytest.mark.figure("R2")            # the promise that it belongs to
    def test_killed_at_every_event_of_an_export(cases):
        for event in events:
            ...
            cases.passed()

Where `TUNEWISE_FIGURES` names a file, the figures are written there; those of tests that did not run now stay, if the
versions are the same. `NIGHTLY` says whether everything runs, or a sample that takes a minute or two.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

NIGHTLY = os.environ.get("TUNEWISE_NIGHTLY") == "1"
FOLDERS = ("reliability", "security")
_FILE = os.environ.get("TUNEWISE_FIGURES")
_PLACE = Path(_FILE).absolute() if _FILE else None  # tests may change the working directory


def of(sample, whole):
    """`whole` at night, else the sample."""
    return whole if NIGHTLY else sample


class Cases:
    """Counts the cases of one test that have passed so far; one that fails ends the test."""

    def __init__(self):
        self.count = 0
        self.note = ""

    def passed(self, count=1):
        self.count += count


@pytest.fixture
def cases(request):
    """What a test counts its cases with; `cases.note` says what a reader of the figure must know."""
    counted = Cases()
    yield counted
    request.node.user_properties.append(("cases", (counted.count, counted.note)))


@dataclass
class Figure:
    """What one test, with all its parameters, has found."""

    id: str | None
    what: str
    test: str
    cases: int = 0
    passed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""

    def add(self, outcome, counted, note, seconds):
        self.skipped += outcome == "skipped"
        self.passed += counted if outcome != "skipped" else 0
        self.cases += counted + (outcome == "failed") if outcome != "skipped" else 0
        self.seconds = round(self.seconds + seconds, 1)
        self.note = note or self.note


_figures: dict[str, Figure] = {}
_outcomes: dict[str, str] = {}
_seconds: dict[str, float] = {}


def mark_items(items):
    """Let every test of the two folders carry the id of its promise to where reports are gathered."""
    for item in items:
        if item.path.parent.name in FOLDERS:
            marker = item.get_closest_marker("figure")
            item.user_properties.append(("figure", marker.args[0] if marker else None))


def gather(report):
    """Add the report of one phase of a test to the figures."""
    name, properties = report.nodeid, dict(report.user_properties)
    if "figure" not in properties:
        return
    if report.outcome != "passed" or name not in _outcomes:
        _outcomes[name] = report.outcome
    _seconds[name] = _seconds.get(name, 0.0) + report.duration
    if report.when == "teardown":
        test = name.partition("[")[0]
        what = test.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        counted, note = properties.get("cases", (None, ""))
        outcome = _outcomes.pop(name)
        if counted is None:
            counted = int(outcome == "passed")
        figure = _figures.setdefault(test, Figure(properties["figure"], what, test))
        figure.add(outcome, counted, note, _seconds.pop(name))


def write():
    """Write the figures of this session to the file that `TUNEWISE_FIGURES` names."""
    if _PLACE is None or not _figures:
        return
    gathered = {"nightly": NIGHTLY, "versions": _versions(), "figures": []}
    figures = {test: asdict(figure) for test, figure in _figures.items()}
    if _PLACE.is_file():
        earlier = json.loads(_PLACE.read_text("utf-8"))
        if {**earlier, "figures": []} == gathered:
            figures = {figure["test"]: figure for figure in earlier["figures"]} | figures
    in_order = sorted(figures.values(), key=lambda figure: (figure["id"] is None, _order(figure["id"]), figure["test"]))
    kept = [{name: value for name, value in figure.items() if value or name in _ALWAYS} for figure in in_order]
    _PLACE.parent.mkdir(parents=True, exist_ok=True)
    _PLACE.write_text(json.dumps({**gathered, "figures": kept}, indent=1) + "\n", "utf-8")


_ALWAYS = ("id", "what", "test", "cases", "passed", "seconds")


def _order(promise):
    return (promise[0], int(promise[1:])) if promise else ("", 0)


def _versions():
    names = ("tunewise", "torch", "transformers", "safetensors", "filelock")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
