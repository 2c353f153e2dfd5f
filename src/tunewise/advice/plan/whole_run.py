"""Estimates what a whole comparison takes before it starts: seconds by stage, and the peak of memory of the process.

    row      preparing + training + scoring + forgetting, for each seed and each training of a search; what its
             trainings read in common before their first step is prepared once
    memory   what the process holds without the model + max(training, scoring, forgetting)

Work and bytes come from traces (`tunewise.advice.plan.tracing`), seconds from the machine's rates. One function per
part states its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace

import psutil
import torch

from tunewise.advice.plan.ledger import Work
from tunewise.advice.plan.machine_rates import Rates
from tunewise.advice.plan.planner import RUNTIME, SLACK
from tunewise.advice.plan.scored_passes import Passes
from tunewise.advice.plan.tracing import Trace, Tracer
from tunewise.advice.plan.weightless import Sketch
from tunewise.contract.technique import Technique
from tunewise.core.errors import RequestError
from tunewise.data.task import Example, Task
from tunewise.engine.configuration import UnloadedModel
from tunewise.engine.encoding import Encoder
from tunewise.engine.generation import answer_room
from tunewise.engine.packing import PASS_TOKENS
from tunewise.fitting.settings import TrainSettings
from tunewise.results.estimate import Estimate, RowEstimate
from tunewise.techniques.registry import make

# Calibrated by `benchmarks/plan.py --whole`.
LOADING_BYTES = 4e8  # bytes of weights per second that are read, converted and hashed
DECODING_CALLS = 1.3  # calls of a decoding step / calls of a forward pass: the library's own bookkeeping
HEAD_PASSES = 6  # times that logits are read or written for log-probabilities
FIRST_SECONDS = 0.5  # of a trial: attaching, reading and writing its files
LIBRARIES = 0.8e9  # bytes of the interpreter and its libraries in a worker process
KEPT_ENTRIES = 1 << 26  # log-probabilities of the base that are kept, for each of retention and task
_TASK_EXAMPLES = 64  # examples of the divergence on the task
_OWN_TEXT = (32, 128)  # sequences and tokens each of text that is sampled from the base
_ROWS = 64  # answers that are generated together


@dataclass(frozen=True, kw_only=True)
class Share:
    """Says how much of a technique is still to be done.

    Attributes:
        trainings: trainings of full length.
        scorings: scored seeds.
        preparations: times that something is read before training; the trainings of a search share it.
    """

    trainings: float
    scorings: int
    preparations: int

    def without(self, done: Share) -> Share:
        """Return what is left without so much that is done."""
        return Share(
            trainings=max(self.trainings - done.trainings, 0.0),
            scorings=max(self.scorings - done.scorings, 0),
            preparations=max(self.preparations - done.preparations, 0),
        )

    @property
    def nothing(self) -> bool:
        """Tell whether everything is done."""
        return not self.trainings and not self.scorings


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Says what a comparison does with every technique.

    Attributes:
        task: what is learned.
        validation: the validation sample.
        test: the test sample.
        settings: training settings, with the budget's steps.
        tokens: training tokens of each trial, in place of steps.
        search: trainings that a search may cost.
        seeds: seeds of each row.
        minutes: the budget in minutes, in place of steps.
        retention: the number of tokens of the retention text; None: text is sampled from the base.
        probe: a task whose score is taken again after each trial.
        probed: its examples.
        device: "cpu" or "cuda".
        held_bytes: memory of the process without the model; None: the libraries'.
        spent: seconds that the start has taken already, the measuring of the base included; None: they are to come.
    """

    task: Task
    validation: Sequence[Example]
    test: Sequence[Example]
    settings: TrainSettings
    tokens: int | None = None
    search: int = 1
    seeds: int = 1
    minutes: float | None = None
    retention: int | None = None
    probe: Task | None = None
    probed: Sequence[Example] = ()
    device: str = "cpu"
    held_bytes: float | None = None
    spent: float | None = None

    def share(self, technique: Technique) -> Share:
        """Return all that is to be done for a technique: search + seeds - 1 trainings, and every seed scored.

        Each seed is prepared once, and so are all candidates of a search together; a search that varies what is read
        takes more (`tunewise.comparison.search.preparations`).
        """
        seeds = self.seeds if technique.seeded else 1
        trainings = seeds + (self.search - 1 if technique.trains else 0)
        return Share(trainings=trainings, scorings=seeds, preparations=seeds)


@dataclass
class WholeRun:
    """Estimates the parts of a comparison on one model; the bare model is traced once.

    Attributes:
        sketched: the model.
        workload: what is done.
        rates: how fast the machine is in the type of the weights, which everything but training computes in.
        training_rates: how fast it trains, where that is another type; default: the same.
        tracer: traces the techniques; default: one of its own.
    """

    sketched: Sketch
    workload: Workload
    rates: Rates
    training_rates: Rates | None = None
    tracer: InitVar[Tracer | None] = None
    _tracer: Tracer = field(init=False, repr=False)

    def __post_init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer or Tracer(self.sketched, self.workload.device)

    @classmethod
    def here(cls, sketched: Sketch, workload: Workload, tracer: Tracer | None = None) -> WholeRun:
        """Measure this machine at the model's shapes, in about a second for each type that is computed in."""
        rates = Rates.for_model(sketched.config, sketched.dtype, workload.device)
        mixed = workload.settings.bf16 and sketched.dtype != torch.bfloat16
        training = Rates.for_model(sketched.config, torch.bfloat16, workload.device) if mixed else None
        return cls(sketched, workload, rates, training, tracer)

    def estimate(
        self,
        techniques: Sequence[Technique],
        shares: Mapping[str, Share] | None = None,
        report: Callable[[str], None] = lambda name: None,
    ) -> Estimate:
        """Estimate a comparison of these techniques.

        Args:
            techniques: what is compared; one that cannot work on this model or task fails at once and is left out.
            shares: by name, how much of each is still to be done; default: all of it.
            report: is called with the name of each technique.
        """
        rows, fewest = [], None
        for technique in techniques:
            share = (shares or {}).get(technique.name) or self.workload.share(technique)
            if share.nothing:
                continue
            report(technique.name)
            try:
                rows.append(self.row(technique, share))
            except RequestError:  # its row will give the reason
                continue
        if self.workload.minutes is not None:
            trained = {technique.name for technique in techniques if technique.trains}
            rows, fewest = self._within_minutes(rows, trained)
        return Estimate(startup=self.startup() if rows else 0.0, rows=tuple(rows), fewest_steps=fewest)

    def row(self, technique: Technique, share: Share | None = None) -> RowEstimate:
        """Estimate one row.

        Raises:
            RequestError: the technique cannot work on this model or task.
        """
        share = share or self.workload.share(technique)
        trace = self.trace(technique)
        validated = self.seconds(trace.answers.work(len(self.workload.validation)))
        if technique.trains:
            validated += self.evaluating(trace)
        return RowEstimate(
            technique=technique.name,
            preparing=share.preparations * self.preparing(technique, trace) + share.trainings * FIRST_SECONDS,
            training=share.trainings * self.training(trace) if technique.trains else 0.0,
            scoring=share.trainings * validated + share.scorings * self.scoring(technique, trace),
            forgetting=share.scorings * self.forgetting(trace, technique),
            peak_memory_bytes=int(self.process_peak(technique, trace)),
        )

    def trace(self, technique: Technique, task: Task | None = None) -> Trace:
        """Trace a technique on a task; default: the workload's task with its validation sample."""
        task = task or replace(self.workload.task, validation=tuple(self.workload.validation))
        return self._tracer.trace(task, technique, self.workload.settings)

    def seconds(self, work: Work) -> float:
        """Return how long work takes on this machine."""
        return self.rates.seconds(*work)

    # Seconds.

    def startup(self) -> float:
        """Return what comes before the first row.

        loading + sampling the retention text + retention of the base + log-probabilities of the task's answers
        """
        trace = self.trace(make("base", {}))
        if self.workload.spent is not None:
            return self.workload.spent
        loading, sampled = trace.training.weights / LOADING_BYTES, 0.0
        if self.workload.retention is None:
            rows, length = _OWN_TEXT
            sampled = self.decoding(trace.answers, rows, length)
        return loading + sampled + self._retained(trace) + self._on_task(trace)

    def preparing(self, technique: Technique, trace: Trace) -> float:
        """Return what one preparation takes.

        tokens read to choose on validation x seconds per token + rows read in advance, as rows of a training step
        """
        per_token = self.seconds(trace.answers.each) / max(trace.answers.tokens, 1.0)
        rows = technique.rows_before_training(len(self.workload.task.train))
        return trace.chosen_tokens * per_token + rows / self.workload.settings.rows * self.step_seconds(trace)

    def _tokens_of_example(self) -> float:
        trace = self.trace(make("base", {}))
        return trace.answers.tokens + trace.answers.shared

    def step_seconds(self, trace: Trace) -> float:
        """Return the seconds of a mean training step."""
        share = trace.micro_batch.share if trace.micro_batch else 0.0
        work = trace.training.step(share, self.workload.settings.gradient_accumulation_steps)
        return (self.training_rates or self.rates).seconds(*work)

    def step_tokens(self, trace: Trace) -> float:
        """Return the tokens of a mean training step."""
        micro_batches = self.workload.settings.gradient_accumulation_steps
        return trace.micro_batch.mean_tokens * micro_batches if trace.micro_batch else 0.0

    def steps(self, trace: Trace) -> float:
        """Return the steps of a trial: those of the budget, or tokens / tokens of a step."""
        if self.workload.tokens is None:
            return float(self.workload.settings.max_steps)
        return max(math.ceil(self.workload.tokens / max(self.step_tokens(trace), 1.0)), 1)

    def training(self, trace: Trace) -> float:
        """Return the seconds of one trial's steps.

        steps x (seconds of a mean step - what reused blocks save), and a pass over all examples to record these
        """
        steps, step = self.steps(trace), self.step_seconds(trace)
        if not self.reuses(trace):
            return steps * step
        per_token = self.seconds(trace.answers.each) / max(trace.answers.tokens, 1.0)
        saved = trace.reused_share * per_token * self.step_tokens(trace)
        return steps * max(step - saved, 0.1 * step) + self._train_tokens() * per_token

    def evaluating(self, trace: Trace) -> float:
        """Return the seconds of the validation losses within one trial's training, by which the best state is kept."""
        settings = replace(self.workload.settings, max_steps=int(self.steps(trace)))
        if not settings.evaluation_interval:
            return 0.0
        count = -(-settings.max_steps // settings.evaluation_interval)
        return count * self.seconds(trace.answers.work(settings.evaluated_examples(len(self.workload.validation))))

    def reuses(self, trace: Trace) -> bool:
        """Tell whether training keeps outputs of frozen blocks, as `tunewise.fitting.frozen_trunk` decides."""
        visits = self.steps(trace) * self.workload.settings.rows
        fits = self._reused_bytes(trace) <= psutil.virtual_memory().total / 8
        return bool(trace.reused) and visits >= 1.5 * len(self.workload.task.train) and fits

    def _train_tokens(self) -> float:
        return len(self.workload.task.train) * self._tokens_of_example()

    def _reused_bytes(self, trace: Trace) -> float:
        return self._train_tokens() * self.sketched.config.get_text_config().hidden_size * 4.0 * trace.reused

    def scoring(self, technique: Technique, trace: Trace) -> float:
        """Return the seconds of scoring the test sample once.

        labels      the passes over prompts with all labels behind each
        answers     the loss, a pass over each prompt, and the decoding steps of each batch
        plain text  the loss
        """
        return self._scored(self.workload.task, self.workload.test, trace)

    def _scored(self, task: Task, examples: Sequence[Example], trace: Trace) -> float:
        if trace.labels is not None:
            return self.seconds(trace.labels.work(len(examples)))
        loss = self.seconds(trace.answers.work(len(examples)))
        if task.kind == "text":
            return loss
        batches = max(1.0, len(examples) / _ROWS)
        tokens = self._answer_steps(task, examples)
        return 2 * loss + batches * self.decoding(trace.answers, len(examples) / batches, tokens)

    def _answer_steps(self, task: Task, examples: Sequence[Example]) -> float:
        """Return the decoding steps of a batch: the longest reference, bounded by the room for an answer.

        A batch goes on until its last answer has ended.
        """
        sketched = self.sketched
        config = sketched.config.get_text_config()
        encoder = Encoder(UnloadedModel(sketched.name, config, sketched.tokenizer, sketched.max_length), task)
        longest = sorted(examples, key=lambda example: -len(example.answer))[:8]
        sizes = [len(sequence.ids) - sequence.prompt for sequence in encoder.encode(longest)]
        return min(max(sizes, default=1), answer_room(encoder, task))

    def decoding(self, passes: Passes, rows: float, steps: float) -> float:
        """Return the seconds of decoding a batch of answers.

        steps x (rows x work of a token + reading all weights + calls of a pass x DECODING_CALLS)
        """
        token = passes.each.flops / max(passes.tokens, 1.0), passes.each.moved / max(passes.tokens, 1.0)
        weights = self.trace(make("base", {})).training.weights
        work = Work(rows * token[0], rows * token[1] + weights, DECODING_CALLS * passes.once.calls)
        return steps * self.seconds(work)

    def forgetting(self, trace: Trace, technique: Technique) -> float:
        """Return the seconds of measuring once what was forgotten.

        retention   a pass over its tokens with the loss of all and the log-probabilities of some, unless nothing but
                    prompts is changed
        task        a pass over each of 64 examples alone
        probe       its labels or answers
        """
        seconds = 0.0
        if technique.adapts:
            seconds += self._on_task(trace)
            if not technique.only_prompts:
                seconds += self._retained(trace)
        if self.workload.probe is not None:
            bare = self.trace(make("base", {}), self.workload.probe)
            seconds += self._scored(self.workload.probe, self.workload.probed, bare)
        return seconds

    def _retained(self, trace: Trace) -> float:
        """Return the seconds of a pass over the retention text."""
        tokens = self._retention_tokens()
        kept = min(self._kept_positions(), tokens)
        per_token = Work().plus(trace.answers.each, 1 / max(trace.answers.tokens, 1.0))
        passes = max(1.0, tokens / PASS_TOKENS)
        retention = Work().plus(trace.answers.once, passes).plus(per_token, tokens)
        return self.seconds(retention.plus(self._head(tokens + kept)))

    def _on_task(self, trace: Trace) -> float:
        """Return the seconds of a pass over each of the task's examples on which the divergence is measured."""
        per_token = Work().plus(trace.answers.each, 1 / max(trace.answers.tokens, 1.0))
        alone = min(len(self.workload.validation), _TASK_EXAMPLES)
        whole = Work().plus(trace.answers.once).plus(per_token, trace.answers.shared).plus(trace.answers.each)
        return self.seconds(Work().plus(whole, alone))

    def _head(self, positions: float) -> Work:
        """Return the work of log-probabilities over the vocabulary: 2 d V FLOPs and HEAD_PASSES x 4 V bytes each."""
        config = self.sketched.config.get_text_config()
        entries = positions * config.vocab_size
        return Work(2 * entries * config.hidden_size, 4 * HEAD_PASSES * entries, 0)

    def _retention_tokens(self) -> float:
        rows, length = _OWN_TEXT
        return rows * length if self.workload.retention is None else self.workload.retention

    def _kept_positions(self) -> float:
        return max(64, KEPT_ENTRIES // self.sketched.config.get_text_config().vocab_size)

    # Bytes.

    def process_peak(self, technique: Technique, trace: Trace) -> float:
        """Return the peak of the whole process while a row runs.

        libraries + SLACK x max(training, scoring, forgetting)

        A process whose base has been measured already holds what a first pass takes, and not what a first step does.
        """
        held, runtime = self.workload.held_bytes, RUNTIME[self.workload.device]
        if held is None:
            held = LIBRARIES + runtime
        elif technique.trains:
            held += runtime
        parts = (self.training_peak(technique, trace), self.scoring_peak(trace), self.forgetting_peak(trace))
        return held + SLACK[self.workload.device] * max(parts)

    def training_peak(self, technique: Technique, trace: Trace) -> float:
        """Return the bytes alive at most in training: those of a step, and the outputs of frozen blocks kept for it."""
        kept = self._reused_bytes(trace) if technique.trains and self.reuses(trace) else 0.0
        return trace.training_peak + kept

    def scoring_peak(self, trace: Trace) -> float:
        """Return the bytes alive at most in scoring: those of the fullest pass, or the caches of a batch of answers."""
        workload = self.workload
        peaks = [trace.answers.peak_of(len(workload.validation))]
        if trace.labels is not None:
            peaks.append(trace.labels.peak_of(len(workload.test)))
        elif workload.task.kind != "text":
            room = self._answer_steps(workload.task, workload.test)
            peaks.append(trace.training.weights + self._cache_bytes(2 * PASS_TOKENS + _ROWS * room))
        return max(peaks)

    def _cache_bytes(self, tokens: float) -> float:
        """Return the bytes of keys and values, twice as a cache is copied when it grows by a token."""
        config = self.sketched.config.get_text_config()
        heads = config.num_attention_heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return 2 * 2 * tokens * config.num_hidden_layers * kept * size * self.sketched.dtype.itemsize

    def forgetting_peak(self, trace: Trace) -> float:
        """Return the bytes alive at most when forgetting is measured: those of a pass over retention text.

        It computes as a scoring pass of as many tokens does. Log-probabilities exist a few at a time, and the base's
        are read from a file.
        """
        examples = min(self._retention_tokens(), PASS_TOKENS) / max(trace.answers.tokens, 1.0)
        return trace.answers.peak + max(examples - 1, 0.0) * trace.answers.peak_each

    def _within_minutes(self, rows: Sequence[RowEstimate], trained: set[str]) -> tuple[list[RowEstimate], int | None]:
        """Give the rows that train equal shares of what a budget in minutes leaves them.

        Return them with the steps of a trial of the slowest one, None where no row trains.
        """
        others = self.startup() + sum(row.seconds - row.training for row in rows)
        left = max((self.workload.minutes or 0.0) * 60 - others, 0.0)
        count = sum(row.technique in trained for row in rows)
        whole = [row.training for row in rows if row.technique in trained and row.training]
        fewest = int(self.workload.settings.max_steps * left / count / max(whole)) if whole else None
        divided = [replace(row, training=left / count) if row.technique in trained else row for row in rows]
        return divided, fewest
