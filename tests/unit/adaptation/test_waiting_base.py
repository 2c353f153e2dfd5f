"""A base whose weights wait on the CPU: what packs them is attached before anything is run on it."""

import pytest
import torch

from tunewise.adaptation import fit as fitting
from tunewise.adaptation.artifact import load
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import fingerprint, logits, tiny_base, tiny_task

SETTINGS = TrainSettings(max_steps=2, per_device_train_batch_size=2)


def waiting_base():
    base = tiny_base()
    base.waiting = torch.device("cpu")
    return base


def test_a_fit_packs_the_weights_before_it_runs_them(tmp_path, monkeypatch):
    base, seen = waiting_base(), []
    before = fingerprint(base)
    real = fitting.label_list_choice
    monkeypatch.setattr(
        fitting, "label_list_choice", lambda base, *args, **kw: seen.append(base.waiting) or real(base, *args, **kw)
    )
    fitting.fit(base, tiny_task(), make("qlora"), tmp_path / "waits", settings=SETTINGS)
    assert seen == [None]
    assert base.waiting == torch.device("cpu") and fingerprint(base) == before
    fitting.fit(tiny_base(), tiny_task(), make("qlora"), tmp_path / "plain", settings=SETTINGS)
    found, expected = (load(tmp_path / name / "adaptation", base=tiny_base()) for name in ("waits", "plain"))
    assert torch.equal(logits(found.attachment), logits(expected.attachment))


def test_a_base_that_waits_runs_on_the_cpu_until_it_is_placed():
    base = waiting_base()
    expected = logits_of(base)
    back = base.place()
    assert base.waiting is None and torch.equal(logits_of(base), expected)
    back()
    assert base.waiting == torch.device("cpu") and torch.equal(logits_of(base), expected)


def logits_of(base):
    attachment = make("base").attach(base, torch.Generator())
    found = logits(attachment)
    attachment.detach()
    return found


@pytest.mark.parametrize(("names", "packs"), [("qlora", True), ("lora", False), ("qlora+prompt_tuning", True)])
def test_what_packs_weights_says_so(names, packs):
    assert make(names).packs_weights == packs
