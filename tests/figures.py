"""Counts the cases of the tests of reliability and security, and gathers them in one file.

Every test in these folders, and every other one with the marker below, reports a figure: how many cases ran, how many
passed, and in how many seconds. A test is one case, unless it counts the cases of its loop:

    @pytest.mark.figure("R2")            # the promise that it belongs to
    def test_killed_at_every_event_of_an_export(cases):
        for event in events:
            ...
            cases.passed()

Where `TUNEWISE_FIGURES` names a file, the figures are written there; those of tests that did not run now stay, if the
versions are the same. `NIGHTLY` says whether everything runs, or a sample that takes a minute or two. A night is run in
parts (`scripts/nightly`), files or single tests, and `TUNEWISE_PARTS` names those of this session; what ran to its end
and passed is listed in the file. Run as a script, this module prints the others, those that take longest last.
"""

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

NIGHTLY = os.environ.get("TUNEWISE_NIGHTLY") == "1"
FOLDERS = ("reliability", "security")
_FILE = os.environ.get("TUNEWISE_FIGURES")
_PLACE = Path(_FILE).absolute() if _FILE else None  # tests may change the working directory
_PARTS = os.environ.get("TUNEWISE_PARTS", "").split()
_TESTS = Path(__file__).parent
# Parts that take long, in the order of their cost; of these files each test is a part.
_LONG = ("test_kill", "test_full_disk", "test_growth", "test_signals", "test_commands_stopped", "test_mutants")


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
    """Let every test of a promise carry its id to where reports are gathered."""
    for item in items:
        marker = item.get_closest_marker("figure")
        if marker or item.path.parent.name in FOLDERS:
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


def write(to_the_end):
    """Write the figures of this session to the file that `TUNEWISE_FIGURES` names.

    Unless it went `to_the_end` without a failure, its parts are run again next time.
    """
    if _PLACE is None or not _figures:
        return
    figures, earlier = {test: asdict(figure) for test, figure in _figures.items()}, _earlier()
    figures = {figure["test"]: figure for figure in earlier["figures"]} | figures
    whole = sorted({*earlier["whole"], *(_PARTS if to_the_end else [])})
    gathered = {"nightly": NIGHTLY, "versions": _versions(), "whole": whole}
    in_order = sorted(figures.values(), key=lambda figure: (figure["id"] is None, _order(figure["id"]), figure["test"]))
    kept = [{name: value for name, value in figure.items() if value or name in _ALWAYS} for figure in in_order]
    _PLACE.parent.mkdir(parents=True, exist_ok=True)
    _PLACE.write_text(json.dumps({**gathered, "figures": kept}, indent=1) + "\n", "utf-8")


def _earlier():
    """What the file holds, if it was made with these versions."""
    nothing = {"nightly": NIGHTLY, "versions": _versions(), "whole": [], "figures": []}
    earlier = json.loads(_PLACE.read_text("utf-8")) if _PLACE is not None and _PLACE.is_file() else nothing
    return earlier if {**earlier, "whole": [], "figures": []} == nothing else nothing


def parts():
    """The parts of a night that did not run to their end yet."""
    texts = {path: path.read_text("utf-8") for path in sorted(_TESTS.rglob("test_*.py"))}
    files = [path for path, text in texts.items() if path.parent.name in FOLDERS or "pytest.mark.figure(" in text]
    files.sort(key=lambda path: _LONG.index(path.stem) if path.stem in _LONG else -1)
    names = []
    for path in files:
        file = path.relative_to(_TESTS.parent).as_posix()
        tests = re.findall(r"^def (test_\w+)", texts[path], re.MULTILINE)
        names += [f"{file}::{test}" for test in tests] if path.stem in _LONG else [file]
    whole = _earlier()["whole"]
    return [name for name in names if name not in whole]


_ALWAYS = ("id", "what", "test", "cases", "passed", "seconds")


def _order(promise):
    return (promise[0], int(promise[1:])) if promise else ("", 0)


def _versions():
    names = ("tunewise", "torch", "transformers", "safetensors", "filelock")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


if __name__ == "__main__":
    print("\n".join(parts()))
