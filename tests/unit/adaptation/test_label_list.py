"""Whether prompts list the labels: the rule, one choice for a folder, and the choice in what is saved."""

import json
from dataclasses import replace

import pytest

from tunewise.adaptation import label_list
from tunewise.adaptation.artifact import load, save
from tunewise.adaptation.label_list import FILE, choose, label_list_choice, sign_test
from tunewise.comparison.context import ComparisonContext
from tunewise.comparison.trial import Trial
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, SettingError
from tunewise.data.task import Task
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fingerprint, tiny_base, tiny_task

CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def base():
    base = tiny_base()
    base.tokenizer.chat_template = CHAT
    yield base
    base.tokenizer.chat_template = None


def answers(with_list, without):
    """Answer as many examples correctly as is said, with and without the list."""
    return lambda task, examples: [
        place < (with_list if task.label_list else without) for place in range(len(examples))
    ]


def test_the_list_is_kept_only_where_it_helps(base):
    task = tiny_task()
    examples = task.train[:1] * 40
    assert choose(base, task, examples, answers(20, 10)).listed
    assert not choose(base, task, examples, answers(20, 20)).listed
    assert not choose(base, task, examples, answers(10, 20)).listed
    assert not choose(base, task, examples, answers(22, 20)).listed, "two more of 40 may be chance"
    choice = choose(base, task, examples, answers(20, 10))
    assert f"is 0.50 with the list and 0.25 without; it costs {choice.tokens} tokens a prompt." in choice.note


def test_a_long_list_must_help_clearly(base):
    task = replace(tiny_task(), labels=("old", "small", *(f"a label with number {i}" for i in range(60))))
    examples = task.train[:1] * 400
    choice = choose(base, task, examples, answers(220, 200))
    assert choice.tokens > label_list.LONG and choice.p_value < label_list.LEVEL and not choice.listed
    assert choose(base, task, examples, answers(240, 200)).listed


def test_the_sign_test_is_exact():
    assert sign_test([True] * 5 + [False], [False] * 5 + [False]) == pytest.approx(1 / 32)
    assert sign_test([True, False], [True, False]) == 1.0


def test_one_choice_for_a_folder(base, tmp_path, monkeypatch):
    task = tiny_task()
    first = label_list_choice(base, task, tmp_path, has_results=False)
    assert first is not None and first.examples == min(len(task.validation), 64) and not base.attached
    monkeypatch.setattr(label_list, "_choose", lambda *_: pytest.fail("a continued run must not choose again"))
    assert label_list_choice(base, task, tmp_path, has_results=True).to_json() == first.to_json()
    other = label_list_choice(base, replace(task, label_list=not first.listed), tmp_path, has_results=True)
    assert other.listed is not first.listed and "asks" in other.note
    assert label_list_choice(base, task, tmp_path, has_results=True).listed is other.listed
    applied = other.applied_to(other.applied_to(task))
    assert applied.label_list is other.listed and applied.notes.count(other.note) == 1
    assert applied.fingerprint == task.fingerprint


def test_where_there_is_nothing_to_choose(base, tmp_path):
    task = tiny_task()
    for unlisted in (replace(task, template="{prompt} {labels}"), replace(task, kind="generation", labels=())):
        assert label_list_choice(base, unlisted, tmp_path, has_results=False) is None
    assert label_list_choice(base, task, tmp_path, has_results=True) is None, "results from before there was a choice"
    base.tokenizer.chat_template = None
    assert label_list_choice(base, task, tmp_path, has_results=False) is None
    assert not (tmp_path / FILE).exists()


def test_the_choice_is_saved_with_the_adaptation(base, tmp_path):
    attachment = attach(make("bitfit"), base)
    prompts = {}
    for listed in (None, True, False):
        task = replace(tiny_task(), label_list=listed)
        prompts[listed] = encoder_for(attachment, task).text(task.test[0])
        save(attachment, task, tmp_path / f"{listed}")
    attachment.detach()
    assert "label_list" not in json.loads((tmp_path / "None" / "adaptation.json").read_text())["style"]
    for listed, prompt in prompts.items():
        loaded = load(tmp_path / f"{listed}", base=base)
        assert loaded.style.label_list is listed
        assert encoder_for(loaded.attachment, loaded.style).text(tiny_task().test[0]) == prompt
        assert tiny_task().in_style_of(loaded.style).label_list is listed
        loaded.attachment.detach()
    assert prompts[None] == prompts[True] != prompts[False]


def test_a_damaged_choice_is_refused(base, tmp_path):
    attachment = attach(make("bitfit"), base)
    save(attachment, tiny_task(), tmp_path / "adaptation")
    attachment.detach()
    stored = artifact_writer.read(tmp_path / "adaptation")
    facts = stored.json("adaptation.json")
    facts["style"]["label_list"] = "yes"
    tensors = {"weights.safetensors": stored.tensors("weights.safetensors")}
    artifact_writer.commit(tmp_path / "forged", texts={"adaptation.json": json.dumps(facts)}, tensors=tensors)
    with pytest.raises(ArtifactError, match="label_list"):
        load(tmp_path / "forged", base=base)


def test_a_trial_with_a_choice_has_another_key():
    base, task = tiny_base(), tiny_task()
    before = fingerprint(base)
    trial = Trial(make("base"), 0, TrainSettings())
    keys = {
        listed: trial.key(
            ComparisonContext(base, replace(task, label_list=listed), validation=4, test=4, retention=None)
        )
        for listed in (None, True, False)
    }
    assert len(set(keys.values())) == 3
    assert fingerprint(base) == before


def test_worked_examples_do_not_repeat_the_list(base):
    shown = {}
    for listed in (None, True, False):
        task = replace(tiny_task(), label_list=listed)
        attachment = attach(make("icl", {"icl": {"k": 3}}), base, task)
        prompt, _ = encoder_for(attachment, task).text(attachment.render(task.test[0]))
        shown[listed] = (prompt.count("Answer with one of"), len(attachment._chosen(task.test[0])))
        attachment.detach()
    assert shown[True][0] == 1 and shown[False][0] == 0
    assert shown[None][0] == shown[None][1] + 1 > 1
    assert shown[True][1] >= shown[None][1]


def test_a_choice_that_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / "days.jsonl"
    rows = [{"text": f"day {i}", "label": "odd" if i % 2 else "even"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Task.read(path, label_list=False).label_list is False
    with pytest.raises(SettingError, match="label_list"):
        Task.read(path, label_list=True, template="{prompt} {labels}")
    with pytest.raises(SettingError, match="label_list"):
        Task.read(path, label_list=True, kind="generation", columns={"prompt": "text", "completion": "label"})
