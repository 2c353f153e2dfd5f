"""What each technique will need, before anything runs: parameters, bytes on disk, memory, time, and whether it fits.

The training loop itself runs for a few steps over tensors without contents (see `tunewise.advice.plan.ledger`), on the
largest batch of the budget, so that what is counted is what will be done: weights, gradients, the optimiser's state,
activations, and what every operation holds for a moment.

    memory   bytes alive at most, times what an allocator adds, plus what the libraries themselves take
    time     flops / rate of matrix products + bytes moved / bandwidth + operations x their overhead
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from tunewise.adaptation.artifact import rows_text
from tunewise.advice.plan.ledger import Ledger, fake_tensors
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.plan_row import Memory, Parameters, PlanRow, Request, Time
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.attachment import Attachment
from tunewise.contract.study import Study
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.fitting.loop import PASS, order, passes, train
from tunewise.fitting.scoring import encoder_for, loss
from tunewise.fitting.settings import TrainSettings, ever_lighter

# From `benchmarks/plan.py`; what torch's allocator on a GPU keeps in reserve is not counted.
RUNTIME = {"cpu": 125e6, "cuda": 80e6}  # bytes that the libraries take at their first step
SLACK = {"cpu": 1.16, "cuda": 1.0}  # an allocator's whole over what is alive in it
_LOOKED = 2000  # training examples that lengths are taken of
_PASSES = 200  # steps whose passes are looked at
_SCORED = 64  # validation examples of the scoring pass that is counted too
_STEPS = 2  # of each phase: the second one has the optimiser's state from its beginning


@dataclass(frozen=True)
class Requirements:
    """What a trial needs on one kind of device, by one ledger; sizes in bytes, times in seconds."""

    optimised: int
    stored: int
    artifact: int
    memory: Memory
    step: float | None
    epoch: float | None
    prompt_tokens: float
    request: float | None
    whole: float  # rows up to which a pass is not split, and so grows with them

    @property
    def peak(self) -> float:
        """Bytes at most."""
        return self.memory.peak


@dataclass
class Planner:
    """Rows of a plan for any size of device; what a technique needs with some settings is found once.

    `sketched` is the model; `settings` say steps, batch size and precision; `device` is "cpu" or "cuda", whose bytes
    are asked for; `rates` how fast the machine is, without which there are no times.
    """

    sketched: Sketch
    task: Task
    techniques: Sequence[Technique]
    settings: TrainSettings
    device: str = "cpu"
    rates: Rates | None = None
    report: Callable[[str, int, int], None] = lambda name, done, total: None
    _known: dict[tuple[Technique, TrainSettings], Requirements] = field(default_factory=dict, init=False, repr=False)

    def rows(self, limit: float) -> list[PlanRow]:
        """One row for each technique, in the order given, on a device of `limit` bytes."""
        found = []
        for place, technique in enumerate(self.techniques):
            self.report(technique.name, place, len(self.techniques))
            try:
                found.append(self._row(technique, limit))
            except RequestError as error:
                found.append(PlanRow(technique=technique.name, verdict="not possible", reason=str(error)))
        self.report("", len(self.techniques), len(self.techniques))
        return found

    def _need(self, technique: Technique, settings: TrainSettings) -> Requirements:
        if (technique, settings) not in self._known:
            found = measure(self.sketched, self.task, technique, settings, self.device, self.rates)
            self._known[technique, settings] = found
        return self._known[technique, settings]

    def _row(self, technique: Technique, limit: float) -> PlanRow:
        changed = dict[str, Any]()
        need = self._need(technique, self.settings)
        largest = None
        if technique.trains:
            largest = _largest(need, self.settings.per_device_train_batch_size, limit, len(self.task.train))
        for given in islice(ever_lighter(self.settings), 1, None) if technique.trains else ():
            if need.peak <= limit:
                break
            changed = {
                "per_device_train_batch_size": given.per_device_train_batch_size,
                "gradient_accumulation_steps": given.gradient_accumulation_steps,
                "gradient_checkpointing": given.gradient_checkpointing,
            }
            need = self._need(technique, given)
        fits = need.peak <= limit
        return PlanRow(
            technique=technique.name,
            verdict=("fits with" if changed else "fits") if fits else "does not fit",
            changed=changed if fits else {},
            reason=None if fits else f"it needs {need.peak / 1e9:.2f} GB of {limit / 1e9:.2f} GB at the least",
            parameters=Parameters(optimised=need.optimised, stored=need.stored),
            artifact_bytes=need.artifact,
            memory=need.memory,
            time=Time(
                seconds_per_step=need.step,
                seconds_per_epoch=need.epoch,
                seconds=None if need.step is None else need.step * self.settings.max_steps,
            ),
            request=Request(prompt_tokens=need.prompt_tokens, seconds=need.request),
            micro_batch=largest,
        )


def _largest(need: Requirements, size: int, limit: float, rows: int) -> int:
    """The micro-batch whose activations fill what the rest leaves, at most all `rows`; they grow up to a whole pass."""
    grows = need.memory.activations or 0
    found = max(int(min(size, need.whole) * (limit - need.peak + grows) / grows), 0) if grows > 0 else size
    return rows if found >= need.whole else min(found, rows)


def measure(
    sketched: Sketch,
    task: Task,
    technique: Technique,
    settings: TrainSettings,
    device: str = "cpu",
    rates: Rates | None = None,
) -> Requirements:
    """What one technique needs, by running its training without contents.

    Raises:
        RequestError: the technique cannot work on this model or task; the message says why.
    """
    with fake_tensors(device) as ledger:
        base = sketched.build()
        weights = ledger.live
        recipe = technique.resolved(base)
        attachment = recipe.attach(base, generator(0, "attach"))
        attachment.prepare_shapes(Study(task, 0, lambda: 1.0))
        trained, shares, whole = _Trained(), 0.0, math.inf
        if recipe.trains:
            rows, mean = heaviest(attachment, task, settings)
            if device == "cpu" and attachment.accumulates:
                whole = 1.5 * PASS * len(rows) / sum(len(row.ids) for row in rows)
            _rehearse(attachment, rows, settings, ledger, trained)
            shares = mean * settings.gradient_accumulation_steps
        optimised = sum(p.numel() for p in attachment.params().values())
        state = attachment.state()
        fit = ledger.peak
        loss(attachment, task, task.validation[:_SCORED])
        peak = int(max(fit, ledger.peak) * SLACK[device] + RUNTIME[device])
        runtime = int(peak - max(fit, ledger.peak))
        counted = weights + trained.gradients + trained.optimizer + runtime + trained.own
        memory = Memory(
            weights=weights,
            gradients=trained.gradients,
            optimizer=trained.optimizer,
            runtime=runtime,
            activations=max(peak - counted, 0),
            technique=trained.own,
            peak=peak,
        )
        step = trained.seconds(rates, shares) if rates is not None and recipe.trains else None
        rows_bytes = len(rows_text(attachment.stored_rows()).encode())
        prompt, request = _request(attachment, task, ledger, weights, rates)
        return Requirements(
            optimised,
            sum(tensor.numel() for tensor in state.values()),
            artifact_writer.file_bytes(state) + rows_bytes,
            memory,
            step,
            step * max(1, round(len(task.train) / settings.rows)) if step is not None else None,
            prompt,
            request,
            whole,
        )


def _request(
    attachment: Attachment, task: Task, ledger: Ledger, weights: int, rates: Rates | None
) -> tuple[float, float | None]:
    """Tokens of a mean prompt; and seconds of a middling one with its answer, alone.

    Reading the prompt is a pass, and writing each token of a generated answer; each pass reads all weights.
    """
    encoder, shown = encoder_for(attachment, task), task.validation[:_SCORED]
    rendered = [attachment.render(example) for example in shown]
    sizes = [len(prompt.ids) for prompt in encoder.prompts(rendered, 0)]
    if not sizes or rates is None:
        return sum(sizes) / max(len(sizes), 1), None
    middle = sorted(range(len(sizes)), key=sizes.__getitem__)[len(sizes) // 2]
    before = ledger.counts
    loss(attachment, task, [shown[middle]])
    flops, moved, calls = (now - then for now, then in zip(ledger.counts, before, strict=True))
    whole = encoder.encode([rendered[middle]])[0]
    written = 0 if task.kind in ("classification", "text") else len(whole.ids) - whole.prompt
    seconds = rates.seconds(flops, moved + weights, calls)
    return sum(sizes) / len(sizes), seconds + written * rates.seconds(flops / len(whole.ids), weights, calls)


def heaviest(attachment: Attachment, task: Task, settings: TrainSettings) -> tuple[list[TokenSequence], float]:
    """The micro-batch with the largest pass of the first steps, as seed 0 will read them, and a mean one's share."""
    rendered = [attachment.render(example) for example in task.train[:_LOOKED]]
    sequences = encoder_for(attachment, task).encode(rendered)
    size, count = settings.per_device_train_batch_size, min(settings.max_steps, _PASSES) * settings.rows
    chosen = order(len(sequences), 0, 0, count)
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    padded = why_not_packed(attachment.base)
    places = []  # tokens of each pass of each micro-batch, with padding
    for batch in batches:
        lengths = [[len(sequences[index].ids) for index in part] for part in passes(attachment, sequences, batch)]
        places.append([max(own) * len(own) if padded else sum(own) for own in lengths])
    most = max(range(len(batches)), key=lambda i: (max(places[i]), sum(places[i])))
    mean = sum(map(sum, places)) / len(places)
    return [sequences[index] for index in batches[most]], mean / sum(places[most])


@dataclass
class _Trained:
    """What a rehearsal wrote down."""

    own: int = 0
    optimizer: int = 0
    gradients: int = 0
    counts: tuple[int, int, int] = (0, 0, 0)

    def seconds(self, rates: Rates, shares: float) -> float:
        """Of a mean step: the passes' share of the heaviest one's."""
        flops, moved, calls = self.counts
        return rates.seconds(flops * shares, moved * shares, calls)


def _rehearse(
    attachment: Attachment, rows: list[TokenSequence], settings: TrainSettings, ledger: Ledger, found: _Trained
) -> None:
    """The training loop on one micro-batch, for a few steps of every phase."""
    before, marks = ledger.live, list[tuple[int, int, int]]()
    weights = sum(p.numel() * p.element_size() for p in attachment.base.model.parameters())
    found.own = max(before - weights, 0)

    def on_step(step: int, value: float) -> None:
        if step == 1:
            found.optimizer = max(ledger.live - before, 0)
            own = attachment.params().values()
            found.gradients = sum(p.numel() * p.element_size() for p in own if p.requires_grad)
        marks.append(ledger.counts)

    steps = _STEPS * attachment.phases
    once = replace(
        settings,
        max_steps=steps,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1 if settings.gradient_accumulation_steps == 1 else 2,
    )
    train(attachment, rows, replace(once, replay=0.0, kl_to_base=0.0), on_step=on_step, reuse_trunk=False)
    count = once.gradient_accumulation_steps
    found.counts = tuple((after - start) // count for start, after in zip(marks[0], marks[1], strict=True))  # type: ignore[assignment]
