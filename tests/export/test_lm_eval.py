"""An adaptation as a model of lm-evaluation-harness: it scores as the harness itself scores the merged weights."""

import json
from functools import partial

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tunewise.adaptation.artifact import load, save
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.comparison.probe import HarnessProbe
from tunewise.core.errors import SettingError, TechniqueError, TunewiseError
from tunewise.engine.model import load_base
from tunewise.export.lm_eval_model import evaluate_tasks, model_class
from tunewise.techniques.registry import make
from tunewise.testing import attach, fit, tiny_task

PAIRS = [
    ("the cat sat on", " the mat"),
    ("day 3 of the", " bird"),
    ("", "the dog ran"),
    ("the cat ", "ran"),
    ("a", " b c"),
]
TASKS = {
    "animals.yaml": """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "the {{animal}} ran to town by day"
doc_to_choice: ["old", "small"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 3.0}
""",
    "days.yaml": """
task: days
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/animals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "the {{animal}} ran"
doc_to_target: "town"
generation_kwargs: {until: ["day"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_tiny):
    """A tiny model, a LoRA and a prompt tuning of it, and the LoRA merged."""
    root = tmp_path_factory.mktemp("harness")
    model = save_tiny(root / "model")
    for name in ("lora", "prompt_tuning", "icl"):
        base = load_base(str(model))
        attachment = attach(make(name), base)
        if name != "icl":
            fit(attachment, steps=5)
        save(attachment, tiny_task(), root / name)
        if name == "lora":
            attachment.merge().save_pretrained(root / "merged")
            base.tokenizer.save_pretrained(root / "merged")
    (root / "tasks").mkdir()
    rows = [{"animal": animal, "label": place % 2} for place, animal in enumerate(["cat", "dog", "bird", "cat"])]
    (root / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (root / "tasks" / name).write_text(text.replace("FOLDER", str(root)))
    return root


def requests(kind, arguments):
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def models(folders):
    theirs = HFLM(pretrained=str(folders / "merged"), device="cpu", batch_size=1, dtype="float32")
    return model_class()(folders / "lora"), theirs


def test_likelihoods_are_those_of_the_merged_model(models):
    ours, theirs = (model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True) for model in models)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-3)


def test_whole_texts_are_read_in_windows(models, monkeypatch):
    texts = [("the cat sat on the mat by day 3",), ("the dog ran to town by day 4 and the bird sat on the tree",)]
    for limit in (None, 8):
        if limit is not None:
            monkeypatch.setattr(models[0].raw.encoder, "limit", limit + 1)
            monkeypatch.setattr(models[1], "_max_length", limit)
        ours, theirs = (
            model.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True) for model in models
        )
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_answers_are_those_of_the_merged_model(models):
    options = {"until": ["day"], "max_gen_toks": 8}
    asked = requests("generate_until", [("the cat sat on", options), ("the dog", {**options, "until": []})])
    ours, theirs = (model.generate_until(asked, disable_tqdm=True) for model in models)
    assert ours[0].strip() == theirs[0].strip() and "day" not in ours[0]
    with pytest.raises(SettingError, match="asks for sampling"):
        models[0].generate_until(requests("generate_until", [("the", {"do_sample": True, "temperature": 0.7})]))


def test_the_harness_knows_it_by_name(models):
    assert get_model("tunewise") is model_class()
    assert models[0].tokenizer_name and isinstance(models[0].apply_chat_template.__doc__, str)


def test_virtual_tokens_stand_before_every_text(folders):
    """Prompt tuning is no change of weights: its likelihoods differ from the bare base's."""
    tuned = model_class()(folders / "prompt_tuning")
    asked = requests("loglikelihood", PAIRS[:2])
    values = [value for value, _ in tuned.loglikelihood(asked, disable_tqdm=True)]
    base = HFLM(pretrained=str(folders / "model"), device="cpu", batch_size=1, dtype="float32")
    bare = [value for value, _ in base.loglikelihood(asked, disable_tqdm=True)]
    assert all(abs(one - other) > 1e-4 for one, other in zip(values, bare, strict=True))
    assert torch.isfinite(torch.tensor(values)).all()


def test_what_writes_into_prompts_is_refused(folders):
    with pytest.raises(TechniqueError, match="icl writes into the prompt"):
        model_class()(folders / "icl")


def test_tasks_are_scored_and_refused_by_name(folders, models, tmp_path, monkeypatch):
    loaded = load(folders / "lora")
    scores = evaluate_tasks(loaded, ["animals", "days"], include_path=folders / "tasks")
    by_name = {each["task"]: each for each in scores}
    assert by_name["animals"]["version"] == "3.0" and by_name["animals"]["examples"] == 4
    (accuracy,) = by_name["animals"]["metrics"].values()
    assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert list(by_name["days"]["metrics"]) == ["exact_match,none"]
    (limited,) = evaluate_tasks(loaded, ["animals"], include_path=folders / "tasks", limit=2)
    assert limited["examples"] == 2
    # Without the harness's own tasks, whose thousands of files take a while to be listed.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(SettingError, match="has no task nothing_of_the_kind"):
        evaluate_tasks(loaded, ["nothing_of_the_kind"], include_path=folders / "tasks")
    (tmp_path / "bad.yaml").write_text(TASKS["animals.yaml"].replace("FOLDER", "/nowhere"))
    with pytest.raises(TunewiseError, match="could not run animals"):
        evaluate_tasks(loaded, ["animals"], include_path=tmp_path)


def test_a_comparison_asks_its_tasks_after_each_row(folders, tmp_path):
    """By the harness's own score of the adaptation; what is only written into the prompt changes nothing."""
    base, task = load_base(str(folders / "model")), tiny_task()
    recipes = [make("base"), make("lora", {"lora": {"learning_rate": 0.05}}), make("icl", {"icl": {"k": 2}})]
    probe = HarnessProbe.read(f"lm-eval:animals,days@{folders / 'tasks'}")
    result = compare(base, task, recipes, tmp_path, budget=Budget(steps=20, test_examples=4), probe=probe)
    assert result["retention"]["probe"] == "lm-eval:animals,days"
    kept = {row["technique"]: row["forgetting"]["probe"] for row in result["rows"]}
    assert kept["icl"] == kept["base"]
    scores = evaluate_tasks(
        load(tmp_path / result["rows"][1]["adaptation"], base=base), ["animals", "days"], include_path=folders / "tasks"
    )
    assert kept["lora"] == pytest.approx(sum(next(iter(each["metrics"].values())) for each in scores) / 2)


@pytest.mark.parametrize(
    ("text", "message"), [("lm-eval:", "must name tasks"), ("lm-eval:animals@nowhere", "there is no folder nowhere")]
)
def test_a_probe_that_cannot_be_is_refused(text, message):
    with pytest.raises(SettingError, match=message):
        HarnessProbe.read(text)
