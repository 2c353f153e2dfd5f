"""Predicts what each technique needs before anything runs: parameters, bytes on disk, memory, time, whether it fits.

    memory   peak bytes alive x SLACK (what the allocator adds) + RUNTIME (what the libraries take)
    time     FLOPs / rate of matrix products + bytes moved / bandwidth + operations x overhead

Bytes and work are those of a trace (`tunewise.advice.plan.tracing`) of training on the largest micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.observation import Training
from tunewise.advice.plan.plan_row import Memory, Parameters, PlanRow, Request, Time
from tunewise.advice.plan.tracing import Trace, Tracer
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.technique import Technique
from tunewise.core.errors import RequestError
from tunewise.data.task import Task
from tunewise.fitting.settings import TrainSettings, ever_lighter

# Measured by `benchmarks/plan.py`; memory that torch's allocator reserves on a GPU is not counted.
RUNTIME = {"cpu": 125e6, "cuda": 80e6}  # bytes that the libraries take at their first step
SLACK = {"cpu": 1.16, "cuda": 1.0}  # memory of the allocator / bytes alive in it


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
        least: bytes that training takes at its peak however small its micro-batches are, at the least.
        divisible: bytes that devices can share out (`fit --shard`): the weights, and what training keeps for them.
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
    least: float = 0.0
    divisible: float = 0.0

    @property
    def peak(self) -> float:
        """Return the peak bytes of memory in training."""
        return self.memory.peak

    def devices(self, limit: float, gathered: float) -> int | None:
        """Return the fewest devices of `limit` bytes that have room for it together; None where no number of them has.

        Args:
            limit: the memory of each.
            gathered: bytes of the weights that each holds whole while a block runs.
        """
        room = limit - gathered - (self.peak - self.divisible)
        return max(2, math.ceil(self.divisible / room)) if room > 0 else None


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
        whole_run: whether a whole run is estimated from the same traces.
        tracer: traces the techniques.
    """

    sketched: Sketch
    task: Task
    techniques: Sequence[Technique]
    settings: TrainSettings
    device: str = "cpu"
    rates: Rates | None = None
    report: Callable[[str, int, int], None] = lambda name, done, total: None
    whole_run: bool = False
    tracer: Tracer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tracer = Tracer(self.sketched, self.device, self.whole_run)

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
        trace = self.tracer.trace(self.task, technique, settings)
        return _requirements(trace, self.task, settings, self.device, self.rates)

    def _row(self, technique: Technique, limit: float) -> PlanRow:
        changed = dict[str, int]()
        need = self._need(technique, self.settings)
        largest = None
        if technique.trains:
            largest = _largest(need, self.settings.per_device_train_batch_size, limit, len(self.task.train))
        rungs = list(ever_lighter(self.settings))[1:] if technique.trains else []
        for lighter in rungs[-1:] if need.least > limit else rungs:  # where none fits, the last one needs least
            if need.peak <= limit:
                break
            changed = {
                "per_device_train_batch_size": lighter.per_device_train_batch_size,
                "gradient_accumulation_steps": lighter.gradient_accumulation_steps,
                "gradient_checkpointing": lighter.gradient_checkpointing,
            }
            need = self._need(technique, lighter)
        fits = need.peak <= limit
        shares = not fits and self.device != "cpu"
        shared = shares and not technique.needs_whole_weights
        devices = need.devices(limit, self._gathered) if shared else None
        return PlanRow(
            technique=technique.name,
            verdict=("fits with" if changed else "fits") if fits else "does not fit",
            changed=changed if fits else {},
            reason=None if fits else _too_little(need, limit) + (_several(technique, devices) if shares else ""),
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
            devices=devices,
        )

    @cached_property
    def _gathered(self) -> float:
        """The bytes of weights that a device holds whole where it has a part of all: two blocks, and what is beside."""
        with fake_tensors(self.device):
            base = self.sketched.build()
            blocks = [sum(p.nbytes for p in block.parameters()) for block in base.anatomy.blocks]
            return sum(p.nbytes for p in base.model.parameters()) - sum(blocks) + 2 * max(blocks)


def _too_little(need: Requirements, limit: float) -> str:
    return f"it needs at least {need.peak / 1e9:.2f} GB, and {limit / 1e9:.2f} GB are available"


def _several(technique: Technique, devices: int | None) -> str:
    """Say what several devices of this size can do for a technique that is too large for one."""
    if technique.needs_whole_weights:
        return f"; several devices cannot share the weights out, as {technique.needs_whole_weights}: take a larger one"
    if devices is None:
        return "; no number of them has room for it together: take larger ones"
    return f"; {devices} such devices have room for it together (fit --devices {devices} --shard)"


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
    return _requirements(
        Tracer(sketched, device, counts_passes=False).trace(task, technique, settings), task, settings, device, rates
    )


def _requirements(trace: Trace, task: Task, settings: TrainSettings, device: str, rates: Rates | None) -> Requirements:
    """Draw what a technique needs from its trace."""
    training, batch, requests = trace.training, trace.micro_batch, trace.requests
    alive = max(trace.setup_peak, trace.training_peak, trace.scoring_peak)
    peak = int(alive * SLACK[device] + RUNTIME[device])
    runtime = int(peak - alive)
    counted = training.weights + training.gradients + training.optimizer + runtime + training.technique
    memory = Memory(
        weights=training.weights,
        gradients=training.gradients,
        optimizer=training.optimizer,
        runtime=runtime,
        activations=max(peak - counted, 0),
        technique=training.technique,
        peak=peak,
    )
    step = None
    if rates is not None and batch is not None:
        step = rates.seconds(*training.step(batch.share, settings.gradient_accumulation_steps))
    return Requirements(
        optimised=training.optimised,
        stored=trace.stored,
        artifact=trace.stored_bytes,
        memory=memory,
        step=step,
        epoch=step * max(1, round(len(task.train) / settings.rows)) if step is not None else None,
        prompt_tokens=requests.prompt_tokens,
        request=_request_seconds(trace, rates) if rates is not None else None,
        whole=batch.whole if batch is not None else math.inf,
        divisible=_divisible(training),
        least=max(trace.setup_peak, training.held) * SLACK[device] + RUNTIME[device],
    )


def _divisible(training: Training) -> float:
    """Return the bytes of the weights, and of the optimised parameters that are the model's all that is kept for them.

    Copies of half-precision weights that are trained count as what the technique keeps.
    """
    share = min(training.own / training.optimised, 1.0) if training.optimised else 0.0
    return training.weights + share * (training.gradients + training.optimizer + training.technique)


def _request_seconds(trace: Trace, rates: Rates) -> float | None:
    """Return the seconds of the request of median length without batching; None where there is none.

    The prompt takes one forward pass, and each token of a generated answer another; each pass reads all weights.
    """
    requests, work, weights = trace.requests, trace.request, trace.training.weights
    if requests.median is None:
        return None
    seconds = rates.seconds(work.flops, work.moved + weights, work.calls)
    token = rates.seconds(work.flops / len(requests.median.ids), weights, work.calls)
    return seconds + requests.generated * token
