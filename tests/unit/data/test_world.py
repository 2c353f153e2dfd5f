"""The world: the same from the same seed, nothing of the tests in its text, and a model that can do what is claimed."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from random import Random

import pytest

from tools.world import abilities
from tunewise.core.errors import SettingError
from tunewise.data import world
from tunewise.data.task import Task
from tunewise.data.world import corpus, facts, patterns, tasks, words
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import load_base

ALL = [*world.TASKS, *world.sources()]
DIGEST = (
    "import hashlib; from tunewise.data import world; from tunewise.data.world import corpus\n"
    "text = [*corpus.documents(2000), *(world.task(name).fingerprint for name in world.TASKS)]\n"
    "print(hashlib.sha256(repr(text).encode()).hexdigest())"
)


def words_of(text):
    return set(re.findall(r"\w+", text))


# Generated.


@pytest.mark.slow
def test_same_seed_same_bytes_in_any_process():
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert list(corpus.documents(50)) == list(corpus.documents(80))[:50] != list(corpus.documents(50, seed=1))
    assert list(corpus.documents(10, first=40)) == list(corpus.documents(50))[40:]


@pytest.mark.slow
def test_no_name_of_a_test_in_the_training_text():
    record = json.loads((world.MODEL / "pretraining.json").read_text())
    seen = set()
    for text in corpus.documents(record["documents"], record["seed"]):
        seen |= words_of(text)
    citizens = {entity.name for entity in tasks._citizens()}
    for name in ("records", "letters", *world.sources()):
        task = world.task(name)
        names = set()
        for example in (*task.train, *task.validation, *task.test):
            signed = re.search(r"name: (\w+)|Signed: (\w+)", example.prompt)
            names.add(signed[1] or signed[2])
        assert len(names) > 100
        assert not names & seen, name
    assert len(citizens) > 35
    assert not citizens & seen


def test_no_question_of_a_test_in_the_training_text():
    questions = {example.prompt for name in ("memory", "town") for example in world.task(name).test}
    assert len(questions) > 700
    for text in corpus.documents(20_000):
        for line in text.splitlines():
            assert line.removeprefix("Question: ") not in questions


def test_retention_text_is_not_in_the_training_text():
    retained = set(world.retention())
    assert len(retained) > 100
    assert not retained & set(corpus.documents(20_000))


@pytest.mark.parametrize("kind", facts.RELATIONS)
def test_every_phrasing_states_or_asks_its_fact(kind):
    for relation, forms in facts.RELATIONS[kind].items():
        assert len(set(forms.statements)) == len(forms.statements) >= 7
        assert len(set(forms.questions)) == len(forms.questions) >= 6
        assert all("{name}" in text for text in (*forms.statements, *forms.questions))
        assert all(("{value}" in text) or ("{a}" in text) for text in (*forms.statements, *forms.who)), relation
        assert not any("{value}" in text or "{a}" in text for text in forms.questions)


def test_passages_answer_their_questions():
    for seed in range(300):
        text, questions = corpus.passage(Random(seed), held_out=bool(seed % 2), new_words=seed % 4 == 3)
        assert questions
        for _, answer in questions:
            assert answer in text or answer == corpus.NOT_SAID


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_every_pattern_is_a_function_of_its_run(name):
    """Within one run the same question has the same answer; another run has another answer."""
    runs = {}
    for seed in range(40):
        pair = patterns.draw(Random(seed), only=name)
        run = {}
        for _ in range(30):
            x, y = pair()
            assert x and y
            if x in ("short", "light"):  # which have two opposites each
                continue
            assert run.setdefault(x, y) == y
        runs[seed] = run
    differ = [one != other for one, other in pairwise(runs.values())]
    assert any(differ)


# Tasks.


@pytest.mark.parametrize("name", ALL)
def test_a_task_has_splits_that_share_no_prompt(name):
    task = world.task(name)
    splits = [[example.prompt for example in split] for split in (task.train, task.validation, task.test)]
    assert [bool(split) for split in splits] == [True] * 3
    flat = [prompt for split in splits for prompt in split]
    assert len(set(flat)) == len(flat)
    assert len(task.test) >= 100
    assert Task.read(f"world:{name}").fingerprint == task.fingerprint


def test_documents_answer_the_town_and_training_half_of_it():
    task = world.task("town")
    text = {document["id"]: document["text"] for document in world.documents()}
    taught = {example.answer for example in task.train}
    assert taught
    pages = {entity.name: text[entity.name.lower()] for entity in tasks._citizens()}
    for example in task.test:
        page = next(page for name, page in pages.items() if name in example.prompt)
        assert example.answer in page
    facts_taught = {(name, e.answer) for e in task.train for name in pages if name in e.prompt}
    facts_asked = [(name, e.answer) for e in task.test for name in pages if name in e.prompt]
    share = sum(fact in facts_taught for fact in facts_asked) / len(facts_asked)
    assert 0.4 < share < 0.6


def test_reviews_test_words_that_training_never_shows():
    task = world.task("reviews")
    train, test = (" ".join(e.prompt for e in split).lower() for split in (task.train, task.test))
    for kind in (words.GOOD, words.BAD):
        assert not any(f" {word}" in train for word in kind[-3:])
        assert any(f" {word}" in test for word in kind[-3:])
    assert task.labels == ("complaint", "praise")
    share = sum(example.answer == "praise" for example in task.test) / len(task.test)
    assert 0.35 < share < 0.65


def test_unknown_names_are_refused():
    for wrong in (lambda: world.task("towns"), lambda: world.documents("skill"), lambda: Task.read("world:none")):
        with pytest.raises(SettingError, match="town"):
            wrong()
    with pytest.raises(SettingError, match="columns"):
        Task.read("world:town", columns={"prompt": "q"})


def test_tasks_are_written_as_files_that_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tunewise.data.world", str(tmp_path)])
    runpy.run_module("tunewise.data.world", run_name="__main__")
    assert "letters.csv" in capsys.readouterr().out
    for name in ALL:
        assert Task.read(tmp_path / name).fingerprint == world.task(name).fingerprint
    letters = Task.read(tmp_path / "letters.csv", columns={"prompt": "letter", "completion": "writer"})
    assert sum(letters.counts.values()) == len(world.task("letters").test)
    assert len((tmp_path / "town-documents.jsonl").read_text().splitlines()) == len(world.documents())


# The model.


@pytest.fixture(scope="module")
def base():
    return load_base("world", device="cpu")


def test_the_shipped_weights_are_those_that_were_measured(base):
    record = json.loads((world.MODEL / "pretraining.json").read_text())
    weights = (world.MODEL / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["sha256"]
    assert base.fingerprint == record["fingerprint"]
    assert len(weights) <= 10_000_000
    assert 2e6 <= base.parameters == record["parameters"] <= 6e6
    assert not list(world.MODEL.glob("*.bin")) + list(world.MODEL.glob("*.pt"))


def test_its_tokenizer_is_learned_and_loses_nothing(base):
    from tools.world.pretrain import make_tokenizer

    assert 1000 <= len(base.tokenizer) <= 4096
    text = "Straße 12, ol\u00e9!\n\tTwo  spaces 💡"
    assert base.tokenizer.decode(base.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert make_tokenizer().get_vocab() == base.tokenizer.get_vocab()


@pytest.mark.parametrize("name", ALL)
def test_every_task_fits_the_window(base, name):
    task = world.task(name)
    assert not any(sequence.truncated for sequence in Encoder(base, task).encode((*task.train, *task.test)))


@pytest.mark.slow
def test_abilities(base):
    scores = abilities.measure(base, 200)
    for name, floor in abilities.FLOORS.items():
        assert scores[name] >= floor - 0.05, scores  # half as many questions as the published figures rest on


def test_the_model_is_known_by_name(base):
    assert load_base("world", device="cpu").fingerprint == base.fingerprint
    assert base.name == "world"
