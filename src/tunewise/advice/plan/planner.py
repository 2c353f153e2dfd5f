"""Predicts what each technique needs before anything runs: parameters, bytes on disk, memory, time, whether it fits.

    memory   peak bytes alive x SLACK (what the allocator adds) + RUNTIME (what the libraries take)
    time     FLOPs / rate of matrix products + bytes moved / bandwidth + operations x overhead

The training loop itself runs for a few steps on fake tensors (see `tunewise.advice.plan.ledger`), on the largest
micro-batch of the budget. So everything is counted that a real run does: weights, gradients, the optimizer's state,
activations, and the temporary tensors of every operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from tunewise.adaptation.artifact import rows_text
from tunewise.advice.plan.ledger import Ledger, fake_tensors
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.plan_row import Memory, Parameters, PlanRow, Request, Time
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.attachment import Attachment
from tunewise.contract.technique import Technique
from tunewise.core import artifact_writer
from tunewise.core.errors import RequestError
from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.forward import why_not_packed
from tunewise.fitting.allowance import allowance
from tunewise.fitting.loop import PASS, order, passes, require_a_step_for_each_phase, train
from tunewise.fitting.scoring import encoder_for, loss, study
from tunewise.fitting.settings import TrainSettings, ever_lighter

# Measured by `benchmarks/plan.py`; memory that torch's allocator reserves on a GPU is not counted.
RUNTIME = {"cpu": 125e6, "cuda": 80e6}  # bytes that the libraries take at their first step
SLACK = {"cpu": 1.16, "cuda": 1.0}  # memory of the allocator / bytes alive in it
_MEASURED = 2000  # training examples whose lengths are measured
_SEARCHED = 200  # steps that are searched for the largest micro-batch
_SCORED = 64  # validation examples of the scoring pass, whose memory counts too
_STEPS = 2  # per phase; the second has the optimizer's state from its start


@dataclass(frozen=True)
class Requirements:
    """Holds what training and requests need on one kind of device; sizes in bytes, times in seconds.

    Attributes:
        optimised: parameters that training optimises.
        stored: parameters that the adaptation stores.
        artifact: size of the adaptation on disk.
        memory: the peak of memory in training.
        step: seconds per step; None without rates.
        epoch: seconds per epoch; None without rates.
        prompt_tokens: mean tokens per prompt.
        request: seconds per request; None without rates.
        whole: rows up to which a micro-batch is one forward pass, so that its activations grow with its rows.
    """

    optimised: int
    stored: int
    artifact: int
    memory: Memory
    step: float | None
    epoch: float | None
    prompt_tokens: float
    request: float | None
    whole: float

    @property
    def peak(self) -> float:
        """Return the peak bytes of memory in training."""
        return self.memory.peak


@dataclass
class Planner:
    """Makes the rows of a plan for any size of device; each technique is measured once per settings.

    Attributes:
        sketched: the model.
        task: the data.
        techniques: the techniques of the plan.
        settings: steps, batch size and precision.
        device: "cpu" or "cuda", the kind of device that is simulated.
        rates: how fast the machine is; without them there are no times.
        report: is called with a technique's name, how many are done, and how many there are.
    """

    sketched: Sketch
    task: Task
    techniques: Sequence[Technique]
    settings: TrainSettings
    device: str = "cpu"
    rates: Rates | None = None
    report: Callable[[str, int, int], None] = lambda name, done, total: None
    _measured: dict[tuple[Technique, TrainSettings], Requirements] = field(default_factory=dict, init=False, repr=False)

    def rows(self, limit: float) -> list[PlanRow]:
        """Return one row per technique, in their order, for a device of `limit` bytes."""
        rows = []
        for place, technique in enumerate(self.techniques):
            self.report(technique.name, place, len(self.techniques))
            try:
                rows.append(self._row(technique, limit))
            except RequestError as error:
                rows.append(PlanRow(technique=technique.name, verdict="not possible", reason=str(error)))
        self.report("", len(self.techniques), len(self.techniques))
        return rows

    def _need(self, technique: Technique, settings: TrainSettings) -> Requirements:
        if (technique, settings) not in self._measured:
            need = measure(self.sketched, self.task, technique, settings, self.device, self.rates)
            self._measured[technique, settings] = need
        return self._measured[technique, settings]

    def _row(self, technique: Technique, limit: float) -> PlanRow:
        changed = dict[str, int]()
        need = self._need(technique, self.settings)
        largest = None
        if technique.trains:
            largest = _largest(need, self.settings.per_device_train_batch_size, limit, len(self.task.train))
        for lighter in islice(ever_lighter(self.settings), 1, None) if technique.trains else ():
            if need.peak <= limit:
                break
            changed = {
                "per_device_train_batch_size": lighter.per_device_train_batch_size,
                "gradient_accumulation_steps": lighter.gradient_accumulation_steps,
                "gradient_checkpointing": lighter.gradient_checkpointing,
            }
            need = self._need(technique, lighter)
        fits = need.peak <= limit
        return PlanRow(
            technique=technique.name,
            verdict=("fits with" if changed else "fits") if fits else "does not fit",
            changed=changed if fits else {},
            reason=None
            if fits
            else f"it needs at least {need.peak / 1e9:.2f} GB, and {limit / 1e9:.2f} GB are available",
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
    """Return the largest micro-batch that fits, at most `rows`: size x (limit - peak + activations) / activations.

    From `need.whole` rows on, a micro-batch is split into passes and its activations grow no further.
    """
    activations = need.memory.activations or 0
    largest = size
    if activations > 0:
        largest = max(int(min(size, need.whole) * (limit - need.peak + activations) / activations), 0)
    return rows if largest >= need.whole else min(largest, rows)


def measure(
    sketched: Sketch,
    task: Task,
    technique: Technique,
    settings: TrainSettings,
    device: str = "cpu",
    rates: Rates | None = None,
) -> Requirements:
    """Measure what one technique needs, by running its training on fake tensors.

    Raises:
        RequestError: the technique cannot work on this model or task; the message says why.
    """
    with fake_tensors(device) as ledger:
        base = sketched.build()
        weights = ledger.live
        recipe = technique.resolved(base)
        attachment = recipe.attach(base, generator(0, "attach"))
        allowed = allowance(base, task, settings)
        attachment.prepare_shapes(study(attachment, task, task.validation, 0, allowance=allowed))
        training, shares, whole = _TrainingCosts(), 0.0, math.inf
        if recipe.trains:
            require_a_step_for_each_phase(attachment, settings)
            rows, mean_share = heaviest(attachment, task, settings)
            if device == "cpu" and attachment.accumulates:
                whole = 1.5 * PASS * len(rows) / sum(len(row.ids) for row in rows)
            _train_on_fakes(attachment, rows, settings, ledger, training)
            shares = mean_share * settings.gradient_accumulation_steps
        optimised = sum(p.numel() for p in attachment.params().values())
        state = attachment.state()
        fit = ledger.peak
        loss(attachment, task, task.validation[:_SCORED])
        peak = int(max(fit, ledger.peak) * SLACK[device] + RUNTIME[device])
        runtime = int(peak - max(fit, ledger.peak))
        counted = weights + training.gradients + training.optimizer + runtime + training.technique
        memory = Memory(
            weights=weights,
            gradients=training.gradients,
            optimizer=training.optimizer,
            runtime=runtime,
            activations=max(peak - counted, 0),
            technique=training.technique,
            peak=peak,
        )
        step = training.seconds(rates, shares) if rates is not None and recipe.trains else None
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
    """Return the mean tokens per prompt, and the seconds of the request of median length without batching.

    The prompt takes one forward pass, and each token of a generated answer another; each pass reads all weights.
    """
    encoder, examples = encoder_for(attachment, task), task.validation[:_SCORED]
    rendered = [attachment.render(example) for example in examples]
    sizes = [len(prompt.ids) for prompt in encoder.prompts(rendered, 0)]
    if not sizes or rates is None:
        return sum(sizes) / max(len(sizes), 1), None
    median = sorted(range(len(sizes)), key=sizes.__getitem__)[len(sizes) // 2]
    before = ledger.counts
    loss(attachment, task, [examples[median]])
    flops, moved, calls = (now - then for now, then in zip(ledger.counts, before, strict=True))
    sequence = encoder.encode([rendered[median]])[0]
    generated = 0 if task.kind in ("classification", "text") else len(sequence.ids) - sequence.prompt
    seconds = rates.seconds(flops, moved + weights, calls)
    return sum(sizes) / len(sizes), seconds + generated * rates.seconds(flops / len(sequence.ids), weights, calls)


def heaviest(attachment: Attachment, task: Task, settings: TrainSettings) -> tuple[list[TokenSequence], float]:
    """Find the micro-batch with the largest forward pass among the first steps, in the order of seed 0.

    Returns:
        Its rows, and tokens of a mean micro-batch / tokens of this one.
    """
    rendered = [attachment.render(example) for example in task.train[:_MEASURED]]
    sequences = encoder_for(attachment, task).encode(rendered)
    size, count = settings.per_device_train_batch_size, min(settings.max_steps, _SEARCHED) * settings.rows
    indices = order(len(sequences), 0, 0, count)
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    padded = why_not_packed(attachment.base)
    tokens = []  # per micro-batch, the tokens of each pass with padding
    for batch in batches:
        lengths = [[len(sequences[index].ids) for index in part] for part in passes(attachment, sequences, batch)]
        tokens.append([max(part) * len(part) if padded else sum(part) for part in lengths])
    heaviest_batch = max(range(len(batches)), key=lambda i: (max(tokens[i]), sum(tokens[i])))
    mean = sum(map(sum, tokens)) / len(tokens)
    return [sequences[index] for index in batches[heaviest_batch]], mean / sum(tokens[heaviest_batch])


@dataclass
class _TrainingCosts:
    """Holds what training on fake tensors took: bytes by kind, and the ledger's counts per micro-batch."""

    technique: int = 0
    optimizer: int = 0
    gradients: int = 0
    counts: tuple[int, int, int] = (0, 0, 0)

    def seconds(self, rates: Rates, shares: float) -> float:
        """Return the seconds per mean step, which has `shares` times the tokens of the heaviest micro-batch."""
        flops, moved, calls = self.counts
        return rates.seconds(flops * shares, moved * shares, calls)


def _train_on_fakes(
    attachment: Attachment, rows: list[TokenSequence], settings: TrainSettings, ledger: Ledger, costs: _TrainingCosts
) -> None:
    """Run the training loop on one micro-batch, for a few steps of every phase, and fill in its costs."""
    before, marks = ledger.live, list[tuple[int, int, int]]()
    weights = sum(p.numel() * p.element_size() for p in attachment.base.model.parameters())
    costs.technique = max(before - weights, 0)

    def on_step(step: int, value: float) -> None:
        if step == 1:
            costs.optimizer = max(ledger.live - before, 0)
            parameters = attachment.params().values()
            costs.gradients = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        marks.append(ledger.counts)

    steps = _STEPS * attachment.phases
    short = replace(
        settings,
        max_steps=steps,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1 if settings.gradient_accumulation_steps == 1 else 2,
    )
    train(attachment, rows, replace(short, replay=0.0, kl_to_base=0.0), on_step=on_step, reuse_trunk=False)
    count = short.gradient_accumulation_steps
    costs.counts = tuple((after - start) // count for start, after in zip(marks[0], marks[1], strict=True))  # type: ignore[assignment]
