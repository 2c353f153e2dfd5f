"""Traces what a technique does on fake tensors, cheaply enough to be done before every comparison.

A technique is observed on two shallow copies of the model, and every figure is extrapolated to the depth of the model,
since blocks are alike. The first pair of copies is taken whose trained parameters give the number that the technique
trains on the whole model; where none does, the model itself is observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from tunewise.advice.plan.allocations import grow_in_blocks, peak_between
from tunewise.advice.plan.ledger import Ledger, Work, fake_tensors
from tunewise.advice.plan.observation import (
    MicroBatch,
    Observation,
    Requests,
    Scoring,
    Subject,
    Texts,
    Training,
    count,
    observe,
    parts_of,
)
from tunewise.advice.plan.scored_passes import CountedPasses, Passes
from tunewise.advice.plan.shallow_copies import Depths, Shapes, at_depth, depths_of, extrapolated, shapes_of
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.model import Base
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Holds what a technique was seen to do, at the depth of the model; sizes in bytes.

    Attributes:
        training: what attaching and training it takes.
        micro_batch: what it was trained on; None if it trains nothing.
        requests: what it was scored on.
        request: the work of the request of median length.
        passes: what scoring takes; None where it was not asked for.
        stored: numbers in the tensors that the adaptation stores.
        stored_bytes: its size on disk.
        setup_peak: what is alive at most until training begins.
        training_peak: the same from then on; 0 where nothing is trained.
        scoring_peak: the same while the first validation examples are scored.
        chosen_tokens: tokens that are read to make choices on validation before training.
        reused: outputs of frozen blocks that a training of more than an epoch keeps (`fitting.frozen_trunk`).
        reused_share: share of the blocks that are not run again then.
    """

    training: Training
    micro_batch: MicroBatch | None
    requests: Requests
    request: Work
    passes: CountedPasses | None
    stored: int
    stored_bytes: int
    setup_peak: float
    training_peak: float
    scoring_peak: float
    chosen_tokens: int
    reused: int
    reused_share: float

    @cached_property
    def answers(self) -> Passes:
        """What the loss on answers takes."""
        return self._counted.answers.divided()

    @cached_property
    def labels(self) -> Passes | None:
        """What scoring all labels takes; None where answers are generated."""
        counted = self._counted.labels
        return counted.divided() if counted is not None else None

    @property
    def _counted(self) -> CountedPasses:
        if self.passes is None:
            raise ValueError("this trace was made without counting what scoring takes")
        return self.passes


class _Scored(NamedTuple):
    """Holds what scoring takes: `above` is its peak beyond what is alive before."""

    scoring: Scoring
    above: float
    requests: Requests


class _Figures(NamedTuple):
    """Holds what was observed of the whole model, or extrapolated to it; the peaks are absolute."""

    training: Training
    scoring: Scoring | None
    setup_peak: float
    training_peak: float
    scoring_peak: float
    stored: int
    stored_bytes: int
    chosen_tokens: int


class _Attached(NamedTuple):
    """Says what a technique is on the whole model: parameters that it trains, and how many blocks it reuses."""

    parameters: int
    reused: int
    reused_share: float


@dataclass
class Tracer:
    """Traces techniques on one model, each once for a task and settings.

    Attributes:
        sketched: the model.
        device: "cpu" or "cuda", the kind of device that is simulated.
        counts_passes: whether traces say what scoring takes, which only an estimate of a whole run needs.
    """

    sketched: Sketch
    device: str = "cpu"
    counts_passes: bool = True
    _texts: list[Texts] = field(default_factory=list, init=False, repr=False)
    _traces: dict[tuple[int, Technique, TrainSettings], Trace] = field(default_factory=dict, init=False, repr=False)
    _scored: dict[tuple[int, Technique], _Scored] = field(default_factory=dict, init=False, repr=False)
    _depths: dict[Technique, list[Depths]] = field(default_factory=dict, init=False, repr=False)  # that were enough
    _attachments: dict[tuple[Technique, int], _Attached] = field(default_factory=dict, init=False, repr=False)
    _skeletons: dict[int, tuple[Ledger, Base]] = field(default_factory=dict, init=False, repr=False)  # by depth

    def trace(self, task: Task, technique: Technique, settings: TrainSettings) -> Trace:
        """Trace a technique.

        Args:
            task: what is learned and scored.
            technique: the recipe; its learning rate does not matter.
            settings: batch size and precision.

        Raises:
            RequestError: the technique cannot work on this model or task; the message says why.
        """
        number = next((place for place, known in enumerate(self._texts) if known.task == task), len(self._texts))
        if number == len(self._texts):
            self._texts.append(Texts(task))
        key = number, technique, settings
        if key not in self._traces:
            self._traces[key] = self._traced(number, technique, settings)
        return self._traces[key]

    def _traced(self, number: int, technique: Technique, settings: TrainSettings) -> Trace:
        bare = make("base", {})
        if technique != bare and (number, bare) not in self._scored:
            self.trace(self._texts[number].task, bare, settings)
        scored = self._scored.get((number, technique))
        subject = Subject(self._texts[number], technique, settings, requests=scored.requests if scored else None)
        attached = self._attached(technique)
        figures = self._figures(subject, attached.parameters, scores=scored is None, has_bare=technique != bare)
        if figures.scoring is not None and subject.requests is not None:
            above = figures.scoring_peak - figures.training.resting
            scored = _Scored(figures.scoring, above, subject.requests)
        self._scored[number, technique] = scored = scored or self._scored[number, bare]
        scoring = scored.scoring
        return Trace(
            training=figures.training,
            micro_batch=subject.micro_batch,
            requests=scored.requests,
            request=scoring.request,
            passes=scoring.passes,
            stored=figures.stored,
            stored_bytes=figures.stored_bytes,
            setup_peak=figures.setup_peak,
            training_peak=figures.training_peak,
            scoring_peak=figures.training.resting + scored.above,
            chosen_tokens=figures.chosen_tokens,
            reused=attached.reused,
            reused_share=attached.reused_share,
        )

    def _attached(self, technique: Technique, depth: int = 0) -> _Attached:
        """Attach a technique to the whole model, or to a copy of so many blocks, without running it.

        Models are built once for all techniques.
        """
        if (technique, depth) in self._attachments:
            return self._attachments[technique, depth]
        if depth not in self._skeletons:
            with fake_tensors(self.device) as ledger:
                sketched = at_depth(self.sketched, depth) if depth else self.sketched
                self._skeletons[depth] = ledger, sketched.build()
        ledger, base = self._skeletons[depth]
        with fake_tensors(ledger=ledger):
            parts = parts_of(base)
            try:
                attachment = technique.resolved(base).attach(base, generator(0, "attach"))
                reused = attachment.trunk()
                share = (max(reused) + 1) / len(base.anatomy.blocks) if reused else 0.0
                attached = _Attached(count(attachment), len(reused), share)
            finally:
                base.release()
                if parts_of(base) != parts:
                    del self._skeletons[depth]
        self._attachments[technique, depth] = attached
        return attached

    def _scales(self, technique: Technique, depths: Depths, attached: int) -> bool:
        """Tell whether what a technique trains on two copies gives what it trains on the whole model."""
        try:
            counts = [self._attached(technique, depth).parameters for depth in (depths.few, depths.many)]
        except RequestError:  # such as a recipe that names a block that a shallow copy lacks
            return False
        return extrapolated(counts, depths.share) == attached

    def _figures(self, subject: Subject, attached: int, *, scores: bool, has_bare: bool) -> _Figures:
        """Observe a technique that trains `attached` parameters on the whole model."""

        def observed(sketched: Sketch) -> Observation:
            asked = {"scores": scores, "has_bare": has_bare, "counts_passes": self.counts_passes}
            return observe(sketched, subject, self.device, **asked)

        for depths in self._depths.get(subject.technique) or depths_of(self.sketched):
            if not self._scales(subject.technique, depths, attached):
                continue
            try:
                copies = [observed(at_depth(self.sketched, depth)) for depth in (depths.few, depths.many)]
                if _grow_in_blocks(*copies):
                    copies.append(observed(at_depth(self.sketched, depths.more)))
            except RequestError:  # the whole model says why
                continue
            figures = _extrapolated(copies, depths)
            if figures is not None:
                self._depths[subject.technique] = [depths]
                return figures
        whole = observed(self.sketched)
        return _Figures(
            whole.training,
            whole.scoring,
            whole.setup.peak,
            whole.steps.peak,
            whole.scored.peak,
            _stored(whole.shapes),
            _file_bytes(whole.shapes) + whole.rows_bytes,
            whole.chosen_tokens,
        )


def _grow_in_blocks(few: Observation, many: Observation) -> bool:
    """Tell whether each block has more to do where there are more blocks."""
    return grow_in_blocks(few.steps, many.steps) or grow_in_blocks(few.scored, many.scored)


def _extrapolated(copies: list[Observation], depths: Depths) -> _Figures | None:
    """Return the figures of the whole model; None where the copies are not alike."""
    few, many = copies[:2]
    pairs = ((few.setup, many.setup), (few.steps, many.steps), (few.scored, many.scored))
    setup, steps, scored = (peak_between(*pair, depths.share) for pair in pairs)
    if setup is None or steps is None or scored is None:
        return None
    shapes = shapes_of(few.shapes, many.shapes, depths)
    stored, size = (
        figure(shapes) if shapes is not None else extrapolated([figure(few.shapes), figure(many.shapes)], depths.share)
        for figure in (_stored, _file_bytes)
    )
    training = extrapolated([copy.training for copy in copies], depths.share)
    scorings = [copy.scoring for copy in copies if copy.scoring is not None]
    scoring = extrapolated(scorings, depths.share) if len(scorings) == len(copies) else None
    return _Figures(training, scoring, setup, steps, scored, stored, size + few.rows_bytes, few.chosen_tokens)


def _stored(shapes: Shapes) -> int:
    """Count the numbers of these tensors."""
    return sum(math.prod(shape) for shape, _ in shapes.values())


def _file_bytes(shapes: Shapes) -> int:
    """Return the size of the file of these tensors."""
    return artifact_writer.file_bytes(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    )
