"""What mpt promises beyond the contract: both stages on the sources run in the one training loop."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tunewise.core.seeds import generator
from tunewise.fitting import loop, source_training
from tunewise.fitting.scoring import study
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining
from tunewise.techniques.additive.mpt import _ROWS, _Students, distillation
from tunewise.techniques.registry import make
from tunewise.testing import example_settings, tiny_base, tiny_task

RECIPE = replace(make("mpt", example_settings()), source_steps=4)
STAGES = ("teacher-0", "teacher-1", "sources")


def prepared(base, trains, report=lambda *told: None):
    """Prepare mpt on the base; return its tensors and the tokens that were read."""
    attachment = RECIPE.resolved(base).attach(base, generator(0, "attach"))
    try:
        looked = study(attachment, tiny_task(), tiny_task().validation, 0, report, trains=trains)
        attachment.prepare(looked)
        return {name: values.clone() for name, values in attachment.state().items()}, looked.allowance.spent
    finally:
        base.release()


def test_the_sources_are_trained_on_with_the_settings_of_the_training_that_follows(tmp_path, monkeypatch):
    seen = []

    def train(attachment, sequences, settings, **options):
        seen.append((options["folder"].name, settings, options["until"]))
        return loop.train(attachment, sequences, settings, **options)

    monkeypatch.setattr(source_training, "train", train)
    settings = TrainSettings(
        max_steps=50,
        per_device_train_batch_size=3,
        bf16=True,
        lr_scheduler_type="linear",
        max_grad_norm=0.5,
        save_steps=2,
        early_stopping_patience=3,
        replay=0.5,
    )
    prepared(tiny_base(), SourceTraining(settings, tmp_path))
    assert [name for name, *_ in seen] == [*STAGES]
    for _, used, until in seen:
        assert (used.bf16, used.lr_scheduler_type, used.max_grad_norm, used.save_steps) == (True, "linear", 0.5, 2)
        assert (used.max_steps, until, used.rows) == (4, 4, _ROWS) and used.per_device_train_batch_size == 2
        assert not used.early_stopping_patience and not used.rehearses


def test_bf16_and_clipping_reach_the_distillation():
    plain, _ = prepared(tiny_base(), SourceTraining(TrainSettings()))
    for settings in (TrainSettings(bf16=True), TrainSettings(max_grad_norm=1e-3), TrainSettings(warmup_ratio=0.5)):
        other, _ = prepared(tiny_base(), SourceTraining(settings))
        assert not torch.equal(other["u"], plain["u"])


class Killed(BaseException):
    """What ends a process."""


@pytest.mark.parametrize("killed_in", ["teaching source 2 of 2", "distilling the sources"])
def test_killed_on_the_sources_it_continues_to_the_same_bits(tmp_path, killed_in, monkeypatch):
    settings = TrainSettings(save_steps=1)
    whole, tokens = prepared(tiny_base(), SourceTraining(settings, tmp_path / "whole"))

    def kill(what, done, total):
        if what == killed_in and done == 3:
            raise Killed

    with pytest.raises(Killed):
        prepared(tiny_base(), SourceTraining(settings, tmp_path / "parts"), kill)
    steps, advance = [], loop._Run.advance
    monkeypatch.setattr(loop._Run, "advance", lambda self: (steps.append(self.folder.name), advance(self))[1])
    parts, tokens_again = prepared(tiny_base(), SourceTraining(settings, tmp_path / "parts"))
    assert tokens == tokens_again and parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    first = "sources" if killed_in.startswith("distilling") else "teacher-1"
    assert set(steps) == {*STAGES[STAGES.index(first) :]} and steps.count(first) == 2  # two of four were saved
    steps.clear()
    prepared(tiny_base(), SourceTraining(settings, tmp_path / "parts"))
    assert not steps, "a finished stage is not run again"
    prepared(tiny_base(), SourceTraining(settings, tmp_path / "parts", resume=False))
    assert len(steps) == 12


def test_rows_of_several_sources_in_one_pass_are_learned_as_they_are_alone():
    """Each row sees the prompt of its own source, and the loss of a pass is the sum over its rows."""
    from tunewise.engine.forward import answer_states, batch_of, layout
    from tunewise.fitting.scoring import encoder_for
    from tunewise.techniques.additive.mpt import _with_prompt

    base = tiny_base()
    recipe = replace(RECIPE, num_virtual_tokens=3).resolved(base)
    owner = recipe.attach(base, generator(0, "attach"))
    rows = encoder_for(owner, tiny_task()).encode(tiny_task().train[:4])
    teachers = torch.randn(2, 3, base.anatomy.width, generator=generator(1))
    students = _Students(owner, teachers, [2, 2], seed=0)
    with torch.no_grad():
        students.u.mul_(torch.rand(students.u.shape, generator=generator(2)) + 0.5)

    def loss(indices):
        mixed = [*_with_prompt(rows[:2], 0, owner), *_with_prompt(rows[2:], 1, owner)]
        batch = batch_of(base, [mixed[index] for index in indices])
        with layout(base, batch):
            return float(students.loss(batch, 1.0).detach())

    def expected(index):
        prompts = {}
        batch = batch_of(base, [rows[index]])
        for who, prompt in (
            ("teacher", teachers[index // 2]),
            ("student", students._prompts().view(2, 3, -1)[index // 2]),
        ):
            owner.shown_prompt = lambda prompt=prompt: prompt
            with torch.no_grad(), layout(base, batch):
                prompts[who] = answer_states(base, batch)
        owner.shown_prompt = students._prompts
        states, logits = prompts["student"]
        task = torch.nn.functional.cross_entropy(logits, batch.targets)
        distilled = distillation(states, logits, *prompts["teacher"])
        return float((task + recipe.distillation * distilled) * len(batch.targets))

    alone = [expected(index) for index in range(4)]
    assert [loss([index]) for index in range(4)] == pytest.approx(alone, rel=1e-4)
    assert loss([0, 3, 1, 2]) == pytest.approx(sum(alone), rel=1e-4)
    base.release()


def test_a_step_draws_some_sources_and_as_many_rows_of_each():
    base = tiny_base()
    owner = replace(RECIPE, num_virtual_tokens=2).resolved(base).attach(base, generator(0, "attach"))
    students = _Students(owner, torch.zeros(4, 2, base.anatomy.width), [20, 30, 40, 50], seed=0)
    starts = [0, 20, 50, 90, 140]
    counts = set()
    for step in range(40):
        drawn = students.drawn(step)
        assert drawn == students.drawn(step)
        of = [sum(start <= index < end for index in drawn) for start, end in pairwise(starts)]
        assert set(of) <= {0, _ROWS}
        counts.add(sum(count > 0 for count in of))
    assert counts == {2, 3, 4}
    base.release()
