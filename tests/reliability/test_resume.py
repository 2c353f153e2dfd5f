"""A run that is continued was asked for the same: other data, another order, template or window is refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from adaptation_files import weight_bytes
from tunewise.adaptation.fit import fit
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.data.task import Example, Message
from tunewise.engine.encoding import Encoder
from tunewise.engine.run_text import RunText
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

WINDOW = 48


def other_row(examples):
    first = examples[0]
    return (replace(first, messages=(Message("user", f"{first.prompt} and sang"),)), *examples[1:])


def long_text(words):
    return Example((), " ".join(["the cat sat on a mat"] * words))


def plain_task():
    """Long texts, which are cut into pieces of the window."""
    texts = tuple(long_text(count) for count in (40, 30, 50, 20))
    return replace(tiny_task("generation"), kind="text", format="text", train=texts, metric="likelihood")


# What changes: the name of the change, what it does to (task, window), and what the refusal says was there before.
CHANGES = {
    "a row": (lambda task, window: (replace(task, train=other_row(task.train)), window), "other train rows"),
    "order": (
        lambda task, window: (replace(task, train=task.train[::-1]), window),
        "the train rows in another order",
    ),
    "a label": (
        lambda task, window: (replace(task, train=(replace(task.train[0], answer="small"), *task.train[1:])), window),
        "other train rows",
    ),
    "validation": (
        lambda task, window: (replace(task, validation=other_row(task.validation)), window),
        "other validation rows",
    ),
    "template": (lambda task, window: (replace(task, template="Text: {prompt}\nKind:"), window), "another template"),
    "label list": (lambda task, window: (replace(task, label_list=True), window), "prompts without a list of labels"),
    "window": (lambda task, window: (task, window - 8), f"a window of {WINDOW} tokens (now {WINDOW - 8})"),
    "row and window": (
        lambda task, window: (replace(task, train=other_row(task.train)), window - 8),
        f"other train rows and a window of {WINDOW} tokens (now {WINDOW - 8})",
    ),
}
OF_A_COMPARISON = CHANGES | {
    "test": (lambda task, window: (replace(task, test=other_row(task.test)), window), "other test rows"),
    "test order": (
        lambda task, window: (replace(task, test=task.test[::-1]), window),
        "the test rows in another order",
    ),
}


def small_base(window=WINDOW):
    base = tiny_base()
    base.max_length = window
    return base


def fitted(task, window, out, stop=None, **options):
    """Fit in a folder, and stop as Ctrl-C does after a step."""

    def progress(what, done, total):
        if stop is not None and what.startswith("training") and done == stop:
            raise KeyboardInterrupt

    settings = TrainSettings(max_steps=6, save_steps=2, **options)
    return fit(small_base(window), task, make("lora"), out, settings=settings, resume=True, progress=progress)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A fit that was stopped with checkpoints, and what it would have ended with."""
    root = tmp_path_factory.mktemp("stopped")
    task = replace(tiny_task(), label_list=False)
    fitted(task, WINDOW, root / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(task, WINDOW, root / "run", stop=5)
    return task, root


@pytest.mark.parametrize("change", CHANGES)
def test_a_fit_with_another_request_is_not_resumed(stopped, tmp_path, change):
    task, root = stopped
    run = shutil.copytree(root / "run", tmp_path / "run")
    before = files(run)
    apply, was = CHANGES[change]
    with pytest.raises(ArtifactError) as refused:
        fitted(*apply(task, WINDOW), run)
    said = str(refused.value)
    assert f"was begun with {was};" in said and "choose another --out" in said and said.count(str(run)) == 1
    assert {name: raw for name, raw in files(run).items() if not name.name.startswith(".")} == {
        name: raw for name, raw in before.items() if not name.name.startswith(".")
    }
    fitted(task, WINDOW, run)  # the same again continues, to the same bits
    assert weight_bytes(run / "adaptation") == weight_bytes(root / "whole" / "adaptation")


def test_what_a_training_does_not_read_may_change(stopped, tmp_path):
    task, root = stopped
    run = shutil.copytree(root / "run", tmp_path / "run")
    fitted(replace(task, test=other_row(task.test), name="moved", source="elsewhere"), WINDOW, run)


@pytest.mark.parametrize(
    ("settings", "was"),
    [({"weight_decay": 0.1}, "weight_decay 0.0 (now 0.1)"), ({"adam_beta1": 0.5}, "adam_beta1 0.9 (now 0.5)")],
    ids=["weight decay", "beta"],
)
def test_other_settings_are_named_with_both_values(stopped, tmp_path, settings, was):
    task, root = stopped
    run = shutil.copytree(root / "run", tmp_path / "run")
    with pytest.raises(ArtifactError, match="was begun with") as refused:
        fitted(task, WINDOW, run, **settings)
    assert was in str(refused.value)


def test_of_a_long_text_only_the_window_is_named(tmp_path):
    """Its pieces differ with the window, but the text that the user gave is the same."""
    with pytest.raises(KeyboardInterrupt):
        fitted(plain_task(), WINDOW, tmp_path, stop=3)
    with pytest.raises(ArtifactError) as refused:
        fitted(plain_task(), WINDOW - 8, tmp_path)
    assert f"was begun with a window of {WINDOW} tokens (now {WINDOW - 8});" in str(refused.value)


def test_tokens_that_differ_for_no_known_reason_are_refused(stopped, tmp_path, monkeypatch):
    task, root = stopped
    run, encode = shutil.copytree(root / "run", tmp_path / "run"), Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, examples: encode(self, examples)[::-1])
    with pytest.raises(ArtifactError, match="was begun with training rows that had other tokens"):
        fitted(task, WINDOW, run)


def without_fingerprints(run):
    """Make the checkpoints of a run such as earlier versions wrote them."""
    for folder in run.glob("checkpoint-*"):
        stored = artifact_writer.read(folder)
        state = stored.json("trainer_state.json")
        texts = {
            "trainer_state.json": json.dumps({k: v for k, v in state.items() if k not in ("text", "tokens_sha256")})
        }
        tensors = {name: stored.tensors(name) for name in stored.names if name.endswith(".safetensors")}
        artifact_writer.commit(folder, texts=texts, tensors=tensors)


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_a_warning(stopped, tmp_path, caplog):
    task, root = stopped
    run = shutil.copytree(root / "run", tmp_path / "run")
    without_fingerprints(run)
    fitted(task, WINDOW, run)
    assert any("earlier version" in line and "cannot be checked" in line for line in caplog.messages)
    assert weight_bytes(run / "adaptation") == weight_bytes(root / "whole" / "adaptation")


def test_an_earlier_version_counted_its_rows_at_least(stopped, tmp_path):
    task, root = stopped
    run = shutil.copytree(root / "run", tmp_path / "run")
    without_fingerprints(run)
    with pytest.raises(ArtifactError, match=r"12 training rows \(now 11\)"):
        fitted(replace(task, train=task.train[1:]), WINDOW, run)


def test_an_adaptation_records_what_it_was_trained_on(stopped):
    task, root = stopped
    facts = artifact_writer.read(root / "whole" / "adaptation").json("adaptation.json")
    assert facts["text"] == RunText.of(small_base(), task).to_json()


def compared(task, window, out, names=("base",)):
    recipes = [make(name) for name in names]
    budget = Budget(steps=2, test_examples=4)
    return compare(small_base(window), task, recipes, out, budget=budget, retention=["the cat sat on a mat"])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    task = replace(tiny_task(), label_list=False)
    compared(task, WINDOW, root / "run")
    return task, root / "run"


@pytest.mark.parametrize("change", OF_A_COMPARISON)
def test_a_comparison_with_another_request_is_not_continued(comparison, tmp_path, change):
    task, folder = comparison
    run = shutil.copytree(folder, tmp_path / "run")
    before = files(run)
    apply, was = OF_A_COMPARISON[change]
    with pytest.raises(ArtifactError) as refused:
        compared(*apply(task, WINDOW), run)
    said = str(refused.value)
    assert f"was begun with {was};" in said and "choose another --out" in said and said.count(str(run)) == 1
    assert files(run) == before


def test_a_comparison_is_not_continued_with_another_model(comparison, tmp_path):
    task, folder = comparison
    run = shutil.copytree(folder, tmp_path / "run")
    base = tiny_base("gpt2")
    base.max_length = WINDOW
    with pytest.raises(ArtifactError, match="was begun with another model"):
        compare(base, task, [make("base")], run, budget=Budget(steps=2))


def test_weights_of_another_type_are_named_as_such(comparison, tmp_path):
    task, folder = comparison
    run = shutil.copytree(folder, tmp_path / "run")
    base = small_base(WINDOW)
    base.model.to(torch.bfloat16)
    with pytest.raises(ArtifactError, match=r"was begun with --dtype float32 \(now bfloat16\); give the same again"):
        compare(base, task, [make("base")], run, budget=Budget(steps=2))


def test_a_comparison_gets_one_more_technique(comparison, tmp_path):
    task, folder = comparison
    run = shutil.copytree(folder, tmp_path / "run")
    assert [row["technique"] for row in compared(task, WINDOW, run, ("base", "bitfit"))["rows"]] == ["base", "bitfit"]


def test_a_comparison_of_an_earlier_version_is_told_by_its_result(comparison, tmp_path):
    task, folder = comparison
    run = shutil.copytree(folder, tmp_path / "run")
    (run / "text.json").unlink()
    with pytest.raises(ArtifactError, match="was begun with other rows, another order of them or another template;"):
        compared(replace(task, train=task.train[::-1]), WINDOW, run)
    with pytest.raises(ArtifactError, match=rf"was begun with a window of {WINDOW} tokens \(now 40\);"):
        compared(task, 40, run)
    compared(task, WINDOW, run)
    assert (run / "text.json").is_file()
