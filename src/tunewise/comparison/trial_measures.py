"""Measures a trained trial: its score on the test split, what it forgot, and how far the model moved."""

from __future__ import annotations

from dataclasses import replace

from tunewise.comparison.context import ComparisonContext
from tunewise.contract.attachment import Attachment
from tunewise.core.progress import PROBING, Progress, as_stage
from tunewise.engine.memory import peak_memory, release_unused_memory
from tunewise.export.format import most_readable
from tunewise.fitting.scoring import describe, score
from tunewise.results.schema import Cost, FinishedTrial, FittedTrial, Forgetting, TrialScore

ANSWERS = 10  # test examples whose answers the report shows


def measure_test_split(
    context: ComparisonContext, attachment: Attachment, record: FittedTrial, progress: Progress
) -> FinishedTrial:
    """Score the test split once and measure what was forgotten and how far the model moved."""
    release_unused_memory()  # what training has freed; scoring would be added to it
    with peak_memory(context.base.device) as memory:
        test = score(attachment, context.task, context.test, progress=progress)
    forgetting, forgetting_peak = _measure_forgetting(context, attachment, progress)
    cost = record.cost.extended(
        Cost,
        scoring_peak_memory_bytes=memory[0],
        forgetting_peak_memory_bytes=forgetting_peak,
        seconds_per_example=test.seconds_per_example,
        prompt_tokens=test.prompt_tokens,
    )
    return record.extended(
        FinishedTrial,
        cost=cost,
        score=TrialScore(**describe(test)),
        nll=test.nll,
        per_example=tuple(test.per_example),
        answers=tuple(test.predictions[:ANSWERS]),
        forgetting=forgetting,
        confusion=test.confusion,
        lengths=test.lengths,
        export_format=most_readable(attachment),
    )


def _measure_forgetting(
    context: ComparisonContext, attachment: Attachment, progress: Progress
) -> tuple[Forgetting | None, int | None]:
    """Measure what was forgotten; return it with the peak of memory in bytes, both None if it is not to be measured.

    The base's own row is 0 by definition: it would be the base's passes over the same text once more. So is the
    change on given text of what only writes into prompts.
    """
    if context.retention is None:
        return None, None
    release_unused_memory()
    with peak_memory(context.base.device) as memory:
        if not attachment.recipe.adapts:
            forgetting = Forgetting(nll_rise=0.0, nll_rise_low=0.0, nll_rise_high=0.0, kl=0.0, kl_task=0.0)
        else:
            unchanged = dict.fromkeys(("nll_rise", "nll_rise_low", "nll_rise_high", "kl"), 0.0)
            only_prompts = attachment.recipe.only_prompts
            retained = unchanged if only_prompts else context.retention.compare(attachment, progress)
            kl_task, weight_change = _distances_from_base(attachment, context, progress)
            forgetting = Forgetting(
                nll_rise=retained["nll_rise"],
                nll_rise_low=retained["nll_rise_low"],
                nll_rise_high=retained["nll_rise_high"],
                kl=retained["kl"],
                kl_task=kl_task,
                weight_change=weight_change,
            )
        if context.probe is not None:
            probed = context.probe.score(attachment, context.task, as_stage(progress, PROBING))
            forgetting = replace(forgetting, probe=probed)
    return forgetting, memory[0]


def _distances_from_base(
    attachment: Attachment, context: ComparisonContext, progress: Progress
) -> tuple[float | None, float | None]:
    """Return KL(base || adapted) where the task's answers are predicted, and ||W - W_0|| / ||W_0||.

    Each is None where it was not measured; the second one also where the weights are not changed.
    """
    kl_task = context.on_task.divergence(attachment, context.task, progress) if context.on_task is not None else None
    distance = attachment.moved()
    return kl_task, distance / context.norm if distance is not None else None
