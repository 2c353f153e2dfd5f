"""A loss, gradient, penalty or weight that is not finite ends a run at once; the last good checkpoint stays.

It is injected at the first step, in the middle and at the last one, and never becomes an adaptation.
"""

import math

import pytest
import torch

import figures
from tunewise.adaptation.fit import fit
from tunewise.core import artifact_writer
from tunewise.core.errors import DivergedError
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task

pytestmark = [pytest.mark.figure("R7"), pytest.mark.timeout(figures.of(300, 3600))]

STEPS = 4
TECHNIQUES = figures.of(["lora"], ["adapter", "bitfit", "full", "krona", "lora", "prompt_tuning"])


def poisoned(monkeypatch, attachment_class, kind, at, value):
    """Let an attachment put a value that is not finite into one of its steps."""

    def patched(name, act):
        original = getattr(attachment_class, name)

        def changed(self, *given):
            result = original(self, *given)
            return act(self, result, *given)

        monkeypatch.setattr(attachment_class, name, changed)

    def first(self):
        return next(iter(self.params().values()))

    def gradient(self, result, step, total):
        if step == at and first(self).grad is not None:
            first(self).grad.fill_(value)
        return result

    def weight(self, result, step, total):
        if step == at:
            with torch.no_grad():
                first(self).view(-1)[0] = value
        return result

    seen = [0]

    def penalty(self, result):
        seen[0] += 1
        return first(self).sum() * value if seen[0] == at + 1 else result

    name = {"gradient": "after_backward", "weight": "after_step", "penalty": "penalty"}[kind]
    patched(name, {"gradient": gradient, "weight": weight, "penalty": penalty}[kind])


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_what_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(monkeypatch, tmp_path, cases, technique):
    base = tiny_base()
    attachment_class = type(attach(make(technique), base))
    base.release()
    for kind in ("gradient", "weight", "penalty"):
        for at in (0, STEPS // 2, STEPS - 1):
            out = tmp_path / f"{kind}-{at}"
            with monkeypatch.context() as patch:
                poisoned(patch, attachment_class, kind, at, math.nan if at else math.inf)
                with pytest.raises(DivergedError) as end:
                    fit(
                        tiny_base(),
                        tiny_task(),
                        make(technique),
                        out,
                        settings=TrainSettings(max_steps=STEPS, save_steps=1),
                    )
            step = int(str(end.value).partition("step ")[2].partition(":")[0])
            assert step == at + 1
            assert not (out / "adaptation").exists()
            newest = artifact_writer.latest(out)
            assert (newest is None) == (at == 0)
            if newest is not None:
                kept, stored = newest
                assert kept == at
                tensors = stored.tensors("weights.safetensors").values()
                assert all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
            cases.passed()
