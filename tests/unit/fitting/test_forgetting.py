"""What was forgotten: exactly nothing by the base itself, and the divergence that its formula gives."""

import pytest
import torch

from tunewise.engine.forward import _logits, batch_of, observe_predictions, why_not_packed
from tunewise.engine.packing import by_tokens, padded_batch
from tunewise.fitting.forgetting import OnTask, Retention
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

ARCHITECTURES = ["llama", "gpt_neo"]  # packed and padded
ZEROS = {"nll_rise": 0.0, "nll_rise_low": 0.0, "nll_rise_high": 0.0, "kl": 0.0}


def unadapted(base):
    return make("base", {}).attach(base, torch.Generator())


def perturbed(base):
    attachment = make("full", {}).resolved(base).attach(base, torch.Generator())
    with torch.no_grad():
        for parameter in attachment.params().values():
            parameter.mul_(1.1)
    return attachment


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_base_forgets_exactly_nothing(architecture):
    base = tiny_base(architecture)
    retention, on_task = Retention.measure(base, None), OnTask.measure(base, tiny_task(), tiny_task().validation)
    assert retention.compare(unadapted(base)) == ZEROS
    assert retention.nll_rise(unadapted(base)) == 0.0
    assert on_task.divergence(unadapted(base), tiny_task()) == 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("entries", [64 * 320, 100 * 320, 1 << 26])  # few positions, a part of a batch, all of them
def test_divergence_is_that_of_whole_distributions(architecture, entries, monkeypatch):
    monkeypatch.setattr("tunewise.fitting.forgetting._KL_ENTRIES", entries)
    monkeypatch.setattr("tunewise.engine.forward._LOGITS_AT_ONCE", 320 * 20)
    monkeypatch.setattr("tunewise.engine.forward._PADDED_LOGITS_AT_ONCE", 320 * 300)
    base = tiny_base(architecture)
    assert bool(why_not_packed(base)) == (architecture == "gpt_neo")
    retention = Retention.measure(base, ["the cat sat on a mat and the dog ran to town"] * 60)

    def distributions():
        with torch.no_grad():
            order = [retention.sequences[index] for group in by_tokens(retention.sequences, 4096) for index in group]
            rows = [_logits(base, padded_batch([sequence], base.device)) for sequence in order]
        return torch.cat(rows)[: retention.kl_tokens].double().log_softmax(-1)

    log_p = distributions()
    attachment = perturbed(base)
    log_q = distributions()
    expected = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert retention.kl_tokens == min(entries // 320, sum(len(row.ids) - 1 for row in retention.sequences))
    assert retention.compare(attachment)["kl"] == pytest.approx(expected, rel=1e-4) and expected > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_recorded_later_are_the_same_bits(architecture, monkeypatch):
    monkeypatch.setattr("tunewise.fitting.forgetting._KL_ENTRIES", 100 * 320)
    base = tiny_base(architecture)
    first = Retention.measure(base, None)
    later = Retention(first.sequences, first.nll, first.source, first.kl_tokens, first.nats)
    with pytest.raises(ValueError, match="record_predictions"):
        later.compare(unadapted(base))
    later.record_predictions(base)
    assert torch.equal(later.log_p, first.log_p) and len(first.log_p) == 100


def test_a_few_positions_are_observed_at_a_time(monkeypatch):
    monkeypatch.setattr("tunewise.engine.forward._LOGITS_AT_ONCE", 320 * 20)
    base, sizes = tiny_base(), []
    retention = Retention.measure(base, None)
    batch = batch_of(base, retention.sequences[:1])
    observe_predictions(base, batch, 50, lambda part: sizes.append(tuple(part.shape)))
    assert sizes == [(20, 320), (20, 320), (10, 320)]
