"""Runs a technique on fake tensors, on one copy of the model, and counts what it takes.

The training loop itself runs for a step of every phase on the heaviest micro-batch, and some validation examples are
scored. So everything is counted that a real run does: weights, gradients, the optimizer's state, activations, and the
temporary tensors of every operation. The optimizer's state, and the gradients of the micro-batches before where several
add up, are there from the beginning of the step, as they are in all steps but the first.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import torch

from tunewise.adaptation.artifact import rows_text
from tunewise.advice.plan.allocations import Allocations
from tunewise.advice.plan.ledger import Ledger, Work, fake_tensors
from tunewise.advice.plan.micro_batches import heaviest
from tunewise.advice.plan.scored_passes import CountedPasses, traced_passes
from tunewise.advice.plan.shallow_copies import Shapes
from tunewise.advice.plan.watched_training import Costs, trained
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.attachment import Attachment
from tunewise.contract.study import Allowance
from tunewise.contract.technique import Technique
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Task
from tunewise.engine.attention import forget_layouts
from tunewise.engine.encoding import TokenSequence, Untruncated
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import require_a_step_for_each_phase
from tunewise.fitting.passes import PASS
from tunewise.fitting.scoring import AnswerReading, encoder_for, study
from tunewise.fitting.settings import TrainSettings

_SCORED = 64  # validation examples of the scoring pass, whose memory counts too, at most
_FEWEST_SCORED, _SCORED_TOKENS = 8, 32_000  # fewer of them where prompts are long, down to so many


@dataclass(frozen=True, kw_only=True)
class Training:
    """Counts what attaching and training a technique takes; sizes in bytes.

    Attributes:
        optimised: parameters that it trains in the end; `own` of them are the model's.
        weights: the bare model.
        technique: what it adds before the first step.
        gradients: of the parameters of the first step.
        optimizer: what the first step leaves.
        held: what is alive after the first step, whatever the size of a micro-batch.
        resting: what is alive when training is over.
        passes: work of the passes over a micro-batch, in the mean of the phases.
        update: work of a step beyond these, once its gradients are there.
    """

    optimised: int
    own: int
    weights: int
    technique: int
    gradients: int
    optimizer: int
    held: int
    resting: int
    passes: Work
    update: Work

    def step(self, share: float, micro_batches: int) -> Work:
        """Return the work of a step of so many micro-batches, each with this share of the observed one's tokens.

        Operations are as many in a smaller micro-batch.
        """
        tokens = self.passes._replace(flops=self.passes.flops * share, moved=self.passes.moved * share)
        return self.update.plus(tokens, micro_batches)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Counts the work of a request alone, and what scoring takes; None where only requests were asked for."""

    request: Work
    passes: CountedPasses | None


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Holds the rows of the heaviest micro-batch.

    `share` is the size of a mean one, in tokens of this one. `whole` is the number of rows up to which a micro-batch is
    one forward pass, so that its activations grow with its rows.
    """

    rows: list[TokenSequence] = field(repr=False)
    share: float
    whole: float

    @property
    def mean_tokens(self) -> float:
        """Return the tokens of a mean micro-batch."""
        return sum(len(row.ids) for row in self.rows) * self.share


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Holds validation examples as they are scored, the one of median length, and the mean tokens of their prompts.

    `generated` counts the tokens of the median answer, if it is generated.
    """

    scored: list[TokenSequence] = field(repr=False)
    median: TokenSequence | None
    prompt_tokens: float
    generated: int


class Texts:
    """Encodes a task's examples; what techniques show as it is is tokenized once for all of them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._untruncated: dict[tuple[str, tuple[int, ...]], list[Untruncated]] = {}
        self._allowances: dict[tuple[int, int], int] = {}

    def training(self, attachment: Attachment, places: Sequence[int]) -> list[TokenSequence]:
        """Return the training examples at these places."""
        return self._encoded("train", attachment, places, [self.task.train[place] for place in places])

    def validation(self, attachment: Attachment) -> list[TokenSequence]:
        """Return the first validation examples: so many as hold `_SCORED_TOKENS`, within bounds."""
        examples = self.task.validation[:_SCORED]
        first, count = attachment.render(examples[0]) if examples else None, len(examples)
        if first is not None and first is not examples[0]:
            mean = self._mean_tokens(attachment, examples[:_FEWEST_SCORED])
            count = min(count, max(_FEWEST_SCORED, int(_SCORED_TOKENS / mean)))
        return self._encoded("validation", attachment, (), examples[:count])

    def _mean_tokens(self, attachment: Attachment, examples: Sequence[Example]) -> float:
        """Return the mean tokens of examples as a technique shows them."""
        rendered = [attachment.render(example) for example in examples]
        sizes = encoder_for(attachment, self.task).sizes(rendered)
        return max(sum(map(sum, sizes)) / len(sizes), 1.0)

    def _encoded(
        self, split: str, attachment: Attachment, places: Sequence[int], examples: Sequence[Example]
    ) -> list[TokenSequence]:
        key = split, tuple(places)
        rendered, encoder = [attachment.render(example) for example in examples], encoder_for(attachment, self.task)
        if any(shown is not example for shown, example in zip(rendered, examples, strict=True)):
            return encoder.encode(rendered)
        if key not in self._untruncated:
            self._untruncated[key] = list(encoder.untruncated(rendered))
        return encoder.truncated(self._untruncated[key])

    def allowance(self, base: Base, settings: TrainSettings) -> Allowance:
        """Return what a technique may read before a training with these settings."""
        key = settings.max_steps, settings.rows
        if key not in self._allowances:
            self._allowances[key] = allowance(base, self.task, settings).tokens
        return Allowance(self._allowances[key])


@dataclass
class Subject:
    """Says what is observed, and remembers what is the same on every copy of the model.

    `prepared` is an attachment that trains nothing and has made its choices; `chosen_tokens` were read for them.
    """

    texts: Texts
    technique: Technique
    settings: TrainSettings
    micro_batch: MicroBatch | None = None
    requests: Requests | None = None
    prepared: Attachment | None = None
    chosen_tokens: int = 0
    rows_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Holds what was seen on one copy of the model.

    Attributes:
        training: what attaching and training took.
        scoring: what scoring took; None where it takes what it takes without the technique, or was not asked for.
        setup: the allocations until training begins.
        steps: those of training; none if there was none.
        scored: those of scoring the first validation examples.
        shapes: the tensors of the adaptation.
        rows_bytes: the size of its rows.
        chosen_tokens: tokens that were read to make choices on validation before training.
    """

    training: Training
    scoring: Scoring | None
    setup: Allocations
    steps: Allocations
    scored: Allocations
    shapes: Shapes
    rows_bytes: int
    chosen_tokens: int


def observe(
    sketched: Sketch, subject: Subject, device: str, *, scores: bool, has_bare: bool, counts_passes: bool = True
) -> Observation:
    """Run a technique on a model.

    A run that imports modules is repeated: their frames, as long as they live, keep tensors alive.

    Args:
        sketched: the model, or a shallow copy of it.
        subject: the technique, the task and the settings.
        device: "cpu" or "cuda", the kind of device that is simulated.
        scores: whether examples are scored.
        has_bare: whether what scoring takes without a technique is known, so that it is not observed again.
        counts_passes: whether what scoring takes is divided into passes and examples.

    Raises:
        RequestError: the technique cannot work on this model or task; the message says why.
    """
    modules = len(sys.modules)
    observation = _observe(sketched, subject, device, scores, has_bare, counts_passes)
    if len(sys.modules) != modules:
        gc.collect()
        observation = _observe(sketched, subject, device, scores, has_bare, counts_passes)
    return observation


def _observe(
    sketched: Sketch, subject: Subject, device: str, scores: bool, has_bare: bool, counts_passes: bool
) -> Observation:
    texts, settings = subject.texts, subject.settings
    forget_layouts()
    with fake_tensors(device) as ledger:
        base = sketched.build()
        if device != "cpu" and subject.technique.packs_weights:
            base.waiting = torch.device("cpu")  # as `load_base` leaves it, until the technique moves it
            ledger.set_aside(cast(Any, module).weight for _, _, module in base.anatomy.linears())
        weights, parts = ledger.live, parts_of(base)
        recipe = subject.technique.resolved(base)
        attachment = _prepared(recipe, base, subject)
        setup, costs = ledger.take_allocations(), Costs()
        if recipe.trains:
            require_a_step_for_each_phase(attachment, settings)
            if subject.micro_batch is None:
                subject.micro_batch = _micro_batch(attachment, texts, settings, device)
            costs = trained(attachment, subject.micro_batch.rows, settings, ledger, weights)
        steps = ledger.take_allocations() if recipe.trains else Allocations()
        state = attachment.state()
        if subject.rows_bytes is None:
            subject.rows_bytes = len(rows_text(attachment.stored_rows()).encode())
        training = Training(
            optimised=count(attachment),
            own=sum(p.numel() for p in attachment.changed()),
            weights=weights,
            technique=costs.technique,
            gradients=costs.gradients,
            optimizer=costs.optimizer,
            held=costs.held,
            resting=ledger.live,
            passes=costs.passes,
            update=costs.update,
        )
        if subject.requests is None:
            subject.requests = _requests(attachment, texts)
        scoring, scored = None, Allocations()
        if scores and not (has_bare and recipe.trains and _is_bare(attachment, texts, parts)):
            scoring, scored = _scored(attachment, texts.task, subject.requests, ledger, counts_passes)
        return Observation(
            training=training,
            scoring=scoring,
            setup=setup,
            steps=steps,
            scored=scored,
            shapes={name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()},
            rows_bytes=subject.rows_bytes,
            chosen_tokens=subject.chosen_tokens,
        )


def _prepared(recipe: Technique, base: Base, subject: Subject) -> Attachment:
    """Attach a recipe and let it make its choices; those on texts alone are taken over from the copy before."""
    if subject.prepared is not None:
        attachment = copy(subject.prepared)
        attachment.base = base
        return attachment
    task, allowed = subject.texts.task, subject.texts.allowance(base, subject.settings)
    attachment = recipe.attach(base, generator(0, "attach"))
    attachment.prepare_shapes(study(attachment, task, task.validation, 0, allowance=allowed))
    subject.chosen_tokens = allowed.spent
    if not recipe.trains:
        subject.prepared = attachment
    return attachment


def count(attachment: Attachment) -> int:
    """Count the parameters that an attachment trains now."""
    return sum(parameter.numel() for parameter in attachment.params().values())


def parts_of(base: Base) -> list[tuple[object, ...]]:
    """List the modules of a model with what decides how they are called: types, parameters, hooks, replaced methods."""
    return [
        (
            name,
            type(module).__name__,
            [(key, parameter.shape) for key, parameter in module.named_parameters(recurse=False)],
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            "forward" in vars(module),
        )
        for name, module in base.model.named_modules()
    ]


def _is_bare(attachment: Attachment, texts: Texts, parts: list[tuple[object, ...]]) -> bool:
    """Tell whether a forward pass over a task's examples is as without the technique."""
    shown = all(attachment.render(example) is example for example in texts.task.validation[:1])
    return shown and not attachment.virtual_tokens + attachment.virtual_suffix and parts_of(attachment.base) == parts


def _micro_batch(attachment: Attachment, texts: Texts, settings: TrainSettings, device: str) -> MicroBatch:
    count = len(texts.task.train)
    rows, share = heaviest(attachment, count, lambda places: texts.training(attachment, places), settings)
    whole = math.inf
    if device == "cpu" and attachment.accumulates:
        whole = 1.5 * PASS * len(rows) / sum(len(row.ids) for row in rows)
    return MicroBatch(rows=rows, share=share, whole=whole)


def _requests(attachment: Attachment, texts: Texts) -> Requests:
    task, scored = texts.task, texts.validation(attachment)
    sizes = [sequence.prompt for sequence in scored]
    if not sizes:
        return Requests(scored=scored, median=None, prompt_tokens=0.0, generated=0)
    median = scored[sorted(range(len(sizes)), key=sizes.__getitem__)[len(sizes) // 2]]
    generates = task.kind not in ("classification", "text")
    return Requests(
        scored=scored,
        median=median,
        prompt_tokens=sum(sizes) / len(sizes),
        generated=len(median.ids) - median.prompt if generates else 0,
    )


def _of_one_pass(sequences: list[TokenSequence]) -> list[TokenSequence]:
    """Return the first sequences, as many as fill a scoring pass, and at least one."""
    ends = list(accumulate(len(sequence.ids) for sequence in sequences))
    return sequences[: max(sum(end <= PASS_TOKENS for end in ends), 1)]


def _scored(
    attachment: Attachment, task: Task, requests: Requests, ledger: Ledger, counts_passes: bool
) -> tuple[Scoring, Allocations]:
    """Score the validation examples of one pass, then the one of median length, then a few for what passes take."""
    ledger.take_allocations()
    AnswerReading(attachment, _of_one_pass(requests.scored)).losses()
    scored, before = ledger.take_allocations(), ledger.work
    if requests.median is not None:
        AnswerReading(attachment, [requests.median]).losses()
    request = ledger.work.plus(before, -1)
    passes = traced_passes(attachment, task, ledger) if counts_passes else None
    return Scoring(request=request, passes=passes), scored
