"""Traces what a technique does on fake tensors, cheaply enough to be done before every comparison.

One training step of each phase and a few scored examples are run on two shallow copies of the model, and every figure
is extrapolated to the depth of the model, since blocks are alike. Where that does not give the number of parameters
that the whole model trains, deeper copies are traced, or else the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from tunewise.advice.plan.ledger import Ledger, fake_tensors
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.planner import heaviest
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Task
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.model import Base
from tunewise.engine.packing import PASS_TOKENS, shared_prefix
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import require_a_step_for_each_phase, train
from tunewise.fitting.scoring import encoder_for, label_table, loss, study
from tunewise.fitting.settings import TrainSettings

_DEPTHS = ((2, 4), (4, 8))  # of the shallow copies; the second pair is for what trains a share of the blocks
_WHOLE = 6  # a model with fewer blocks is traced as it is
_NEAR = 0.05  # how far the extrapolated number of trained parameters may be off
_EXAMPLES = 8  # scored examples of a trace
_TEXTS = 48  # sequences of a trace that scores labels, at most
_TASK = 256  # training examples that a trace sees


class Work(NamedTuple):
    """Counts FLOPs of products, bytes that other operations move, and operations."""

    flops: float = 0.0
    moved: float = 0.0
    calls: float = 0.0

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """Return self + times x other."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))

    def seconds(self, rates: Rates) -> float:
        """Return how long it takes."""
        return rates.seconds(*self)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Says what scored examples take: `once` per forward pass, and `each` per example.

    `tokens` are those of a mean example beyond the beginning that all share. Peaks are in bytes, and like the work of
    one pass: `peak` with one example, and `peak_each` more for each further one.
    """

    once: Work
    each: Work
    tokens: float
    shared: float
    peak: float
    peak_each: float

    def passes(self, examples: int) -> float:
        """Return how many forward passes these examples take."""
        return max(1.0, examples * self.tokens / max(PASS_TOKENS - self.shared, 1.0))

    def work(self, examples: int) -> Work:
        """Return passes x once + examples x each."""
        return Work().plus(self.once, self.passes(examples)).plus(self.each, examples) if examples else Work()

    def peak_of(self, examples: int) -> float:
        """Return the peak of a pass that is as full as these examples make it: peak + (examples - 1) x peak_each."""
        return self.peak + (examples / self.passes(examples) - 1) * self.peak_each

    def towards(self, other: Passes, share: float) -> Passes:
        """Return self + share x (other - self), figure by figure."""
        return Passes(
            once=self.once.plus(other.once.plus(self.once, -1), share),
            each=self.each.plus(other.each.plus(self.each, -1), share),
            tokens=other.tokens,
            shared=other.shared,
            peak=self.peak + share * (other.peak - self.peak),
            peak_each=self.peak_each + share * (other.peak_each - self.peak_each),
        )


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Holds what a technique was seen to do.

    Attributes:
        optimised: parameters that training optimises.
        weights: bytes of the bare model.
        chosen_tokens: tokens that are read to make choices on validation before training.
        step: work of a mean training step.
        step_tokens: tokens of a mean training step.
        peaks: peaks of the stretches of a step, forward and backward in turn.
        answers: what the loss on answers takes.
        labels: what scoring all labels takes; None where answers are generated.
        reused: outputs of frozen blocks that a training of more than an epoch keeps (`fitting.frozen_trunk`).
        reused_share: share of the blocks that are not run again then.
    """

    optimised: float
    weights: float
    chosen_tokens: float
    step: Work
    step_tokens: float
    peaks: tuple[float, ...]
    answers: Passes
    labels: Passes | None
    reused: int = 0
    reused_share: float = 0.0

    @property
    def training_peak(self) -> float:
        """Return the peak of a step; 0 where nothing is trained."""
        return max(self.peaks, default=0.0)

    def towards(self, other: Self, share: float) -> Trace:
        """Return self + share x (other - self), figure by figure."""
        peaks: tuple[float, ...]
        if len(self.peaks) == len(other.peaks):
            peaks = tuple(a + share * (b - a) for a, b in zip(self.peaks, other.peaks, strict=True))
        else:
            peaks = (self.training_peak + share * (other.training_peak - self.training_peak),)
        return Trace(
            optimised=self.optimised + share * (other.optimised - self.optimised),
            weights=self.weights + share * (other.weights - self.weights),
            chosen_tokens=other.chosen_tokens,
            step=self.step.plus(other.step.plus(self.step, -1), share),
            step_tokens=other.step_tokens,
            peaks=peaks,
            answers=self.answers.towards(other.answers, share),
            labels=self.labels.towards(other.labels, share) if self.labels and other.labels else None,
        )


def traced(
    sketched: Sketch,
    task: Task,
    technique: Technique,
    settings: TrainSettings,
    device: str = "cpu",
    bare: Trace | None = None,
) -> Trace:
    """Trace a technique on the model of a sketch.

    Args:
        sketched: the model.
        task: what is learned and scored.
        technique: the recipe; its learning rate does not matter.
        settings: batch size and precision.
        device: "cpu" or "cuda", the kind of device that is simulated.
        bare: the trace of the bare model, if it is known, whose scoring is taken where the technique's is the same.

    Raises:
        RequestError: the technique cannot work on this model or task; the message says why.
    """
    task = replace(task, train=task.train[:_TASK])
    depth, whole = depth_of(sketched), _attached(sketched, technique)
    trace: Trace | None = None
    for pair in _DEPTHS if depth > _WHOLE else ():
        share = (depth - pair[0]) / (pair[1] - pair[0])
        try:
            shallow = [at_depth(sketched, blocks) for blocks in pair]
            few, many = (_attached(copy, technique).optimised for copy in shallow)
            if pair[1] < depth and abs(few + share * (many - few) - whole.optimised) <= _NEAR * whole.optimised:
                low, high = (_trace(copy, task, technique, settings, device, bare) for copy in shallow)
                trace = low.towards(high, share)
                break
        except RequestError:  # such as a recipe that names a block that a shallow copy lacks
            continue
    trace = trace or _trace(sketched, task, technique, settings, device, bare)
    if bare is not None and whole.bare_passes:  # and not what was extrapolated from figures of the whole model
        trace = replace(trace, answers=bare.answers, labels=bare.labels)
    return replace(trace, reused=whole.reused, reused_share=whole.reused_share)


def depth_of(sketched: Sketch) -> int:
    """Return the number of a model's blocks; 0 where a shallow copy of it cannot be made."""
    config = sketched.config
    depth = getattr(config, "num_hidden_layers", None)
    listed = any(  # a list with an entry per block, other than the one that `at_depth` cuts
        isinstance(value, list) and len(value) == depth and name != "layer_types"
        for name, value in vars(config).items()
    )
    return 0 if listed or not isinstance(depth, int) or not hasattr(config, "hidden_size") else depth


def at_depth(sketched: Sketch, depth: int) -> Sketch:
    """Return the sketch of the same model with only its first `depth` blocks."""
    config = deepcopy(sketched.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    config.num_hidden_layers = depth
    return replace(sketched, config=config)


class _Attached(NamedTuple):
    """Says what a technique is on a model, without running it.

    Attributes:
        optimised: parameters that it trains.
        reused: outputs of frozen blocks that training may keep.
        reused_share: share of the blocks below the highest of them.
        bare_passes: whether scoring takes what it takes without the technique.
    """

    optimised: int
    reused: int
    reused_share: float
    bare_passes: bool


def _attached(sketched: Sketch, technique: Technique) -> _Attached:
    """Attach a technique to the whole model, without running it."""
    with fake_tensors():
        base = sketched.build()
        before = _parts(base)
        attachment = technique.resolved(base).attach(base, generator(0, "attach"))
        reused = attachment.trunk()
        return _Attached(
            sum(parameter.numel() for parameter in attachment.params().values()),
            len(reused),
            (max(reused) + 1) / len(base.anatomy.blocks) if reused else 0.0,
            _parts(base) == before and technique.trains and not attachment.virtual_tokens,
        )


def _parts(base: Base) -> list[tuple[str, str, int, bool]]:
    """List the modules of a model with what decides how they are called: types, hooks, and replaced methods."""
    return [
        (
            name,
            type(module).__name__,
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            "forward" in vars(module),
        )
        for name, module in base.model.named_modules()
    ]


def _trace(
    sketched: Sketch, task: Task, technique: Technique, settings: TrainSettings, device: str, bare: Trace | None
) -> Trace:
    with fake_tensors(device) as ledger:
        base = sketched.build()
        weights, modules = ledger.live, _parts(base)
        recipe = technique.resolved(base)
        attachment = recipe.attach(base, generator(0, "attach"))
        allowed = allowance(base, task, settings)
        attachment.prepare_shapes(study(attachment, task, task.validation, 0, allowance=allowed))
        optimised = sum(parameter.numel() for parameter in attachment.params().values())
        step, step_tokens, peaks = Work(), 0.0, tuple[float, ...]()
        if recipe.trains:
            require_a_step_for_each_phase(attachment, settings)
            step, step_tokens, peaks = _train_one_step(attachment, task, settings, ledger)
        if bare is not None and _parts(base) == modules and recipe.trains and not attachment.virtual_tokens:
            answers, labels = bare.answers, bare.labels
        else:
            answers, labels = _trace_scoring(attachment, task, ledger)
        return Trace(
            optimised=optimised,
            weights=weights,
            chosen_tokens=allowed.spent,
            step=step,
            step_tokens=step_tokens,
            peaks=peaks,
            answers=answers,
            labels=labels,
        )


def _trace_scoring(attachment: Attachment, task: Task, ledger: Ledger) -> tuple[Passes, Passes | None]:
    """Return what the loss on answers takes, and what scoring all labels takes; None where answers are generated."""
    examples = _spread(task.validation or task.test or task.train, _EXAMPLES)
    encoder, labels = encoder_for(attachment, task), None
    rendered = [attachment.render(example) for example in examples]
    if task.kind == "classification":
        shown = rendered[: max(2, min(_EXAMPLES, _TEXTS // max(len(task.labels), 1)))]
        prompts, tries = attachment.base.label_tokens.prompts(encoder, shown)
        added = [len(trie.ids) for trie in tries]
        labels = _passes(shown, prompts, lambda part: label_table(attachment, task, part), ledger, added)
    return _passes(examples, encoder.encode(rendered), lambda part: loss(attachment, task, part), ledger), labels


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Return up to `count` examples whose lengths are spread as those of all are, the middle one first."""
    ordered = sorted(examples, key=lambda example: len(example.prompt) + len(example.answer))
    count = min(count, len(ordered))
    places = [int((place + 0.5) * len(ordered) / count) for place in range(count)]
    return [ordered[place] for place in sorted(places, key=lambda place: abs(place - len(ordered) / 2))]


def _train_one_step(
    attachment: Attachment, task: Task, settings: TrainSettings, ledger: Ledger
) -> tuple[Work, float, tuple[float, ...]]:
    """Take one step of each phase on the heaviest micro-batch.

    Returns:
        The work of a mean step, its tokens, and the peaks of its stretches as from the second step on, which finds the
        optimiser's state in memory.
    """
    rows, mean_share = heaviest(attachment, task, settings)
    micro_batches = settings.gradient_accumulation_steps
    short = replace(
        settings,
        max_steps=attachment.phases,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=min(micro_batches, 2),
        replay=0.0,
        kl_to_base=0.0,
    )
    before, first, marks = ledger.live, len(ledger.peaks) - 1, [Work(*ledger.counts)]
    ledger.peaks[-1] = before
    state, stretches = 0, 0

    def on_step(step: int, value: float) -> None:
        nonlocal state, stretches
        if step == 1:
            state, stretches = max(ledger.live - before, 0), len(ledger.peaks) - first
        marks.append(Work(*ledger.counts))

    train(attachment, rows, short, on_step=on_step, reuse_trunk=False)
    peaks = ledger.peaks[first : first + stretches]
    later = max([peak + state for peak in peaks[:-1]] + peaks[-1:] + ledger.peaks[first + stretches :])
    work = Work().plus(marks[-1].plus(marks[0], -1), mean_share * micro_batches / short.gradient_accumulation_steps)
    tokens = sum(len(row.ids) for row in rows) * mean_share * micro_batches
    final = (*(peak + state for peak in peaks[:-1]), peaks[-1])
    return Work().plus(work, 1 / attachment.phases), tokens, final if later <= max(final) else (*final, later)


def _passes(
    examples: Sequence[Example],
    sequences: Sequence[TokenSequence],
    score: Callable[[Sequence[Example]], object],
    ledger: Ledger,
    added: Sequence[int] = (),
) -> Passes:
    """Score half of the examples, then all, and divide what that takes into a part per pass and one per example.

    Half of them have as many labelled tokens as are computed at once where the vocabulary is large, so that logits,
    which do not grow from there on, are in the part per pass.

    Args:
        examples: what is scored; few enough for one pass.
        sequences: their tokens, from which the mean follows.
        score: scores examples.
        ledger: counts.
        added: tokens that labels add to each of the sequences.
    """
    shared = shared_prefix(sequences)
    more = added or [0] * len(sequences)
    sizes = [len(sequence.ids) - shared + tokens for sequence, tokens in zip(sequences, more, strict=True)]
    tokens = sum(sizes) / len(sizes)
    half = max(len(examples) // 2, 1)
    figures = list[tuple[float, Work, float]]()  # mean examples, work and peak of each part
    for part in (half, len(examples)):
        before, ledger.peaks[-1] = Work(*ledger.counts), ledger.live
        first = len(ledger.peaks) - 1
        score(examples[:part])
        work = Work(*ledger.counts).plus(before, -1)
        figures.append((sum(sizes[:part]) / max(tokens, 1.0), work, max(ledger.peaks[first:])))
    (few, work_of_few, peak_of_few), (many, work_of_many, peak_of_many) = figures
    if len(examples) == 1:
        return Passes(once=Work(), each=work_of_many, tokens=tokens, shared=shared, peak=peak_of_many, peak_each=0.0)
    further = max(many - few, 0.1)
    each = Work().plus(work_of_many.plus(work_of_few, -1), 1 / further)
    grown = max(peak_of_many - peak_of_few, 0.0) / further
    once = Work(*(max(figure, 0.0) for figure in work_of_few.plus(each, -few)))
    peak = max(peak_of_few - (few - 1) * grown, 0.0)
    return Passes(once=once, each=each, tokens=tokens, shared=shared, peak=peak, peak_each=grown)
