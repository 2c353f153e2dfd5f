"""Multitask prompt tuning: one prompt distilled from several tasks, then tuned to another (Wang et al. 2023).

    P_k = P* x (u_k v_k^T) elementwise,   P* in R^{m x d}, u_k in R^m, v_k in R^d

    1. teachers    ordinary prompt tuning on each source task
    2. sources     P*, u_k, v_k on all source tasks: task loss + distillation * (KL(teacher || student) + mean squared
                   difference of last hidden states), at the answers' positions; some tasks per step, drawn anew
    3. target      P*, and u, v from the means of the sources', with two speeds

The target stage is what a comparison's budget counts; the other two are part of `prepare`, `source_steps` each, in the
training loop and with the settings of the target stage; their tokens and time are figures of the row. u and v start at
one, so a prompt starts as P* itself, which starts as the mean of the teachers. Each answer token of a step weighs the
same, whichever source it is of.
Differs from the paper: it is made from the paper's text alone, whose authors' code was not at hand, and m = 20 in place
of 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.contract.attachment import Attachment, ParamGroup
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.study import Study
from tunewise.contract.technique import Citation, Technique
from tunewise.core.errors import TechniqueError
from tunewise.core.seeds import derive
from tunewise.core.seeds import generator as stream
from tunewise.techniques.building.virtual_tokens import Placeholders

if TYPE_CHECKING:
    from tunewise.data.task import Task
    from tunewise.engine.encoding import TokenSequence
    from tunewise.engine.model import Base
    from tunewise.engine.packing import Batch

_ROWS = 8  # sequences of a source task in one step


@dataclass(frozen=True, kw_only=True)
class MPT(Technique):
    """A prompt distilled from source tasks, with rank-one factors for each task."""

    name = "mpt"
    family = "additive"
    summary = "a prompt distilled from source tasks, tuned to another"
    citation = Citation(
        "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
        "Wang, Panda, Karlinsky, Feris, Sun, Kim",
        2023,
        "https://arxiv.org/abs/2303.02861",
        "section 3",
    )
    equation = "P_k = P* x (u_k v_k^T), distilled from prompts of the source tasks"
    sides = frozenset({"virtual tokens"})
    needs = "source tasks (--sources), and room for the virtual tokens in the window"
    differs = "from the paper's text alone"
    identity_at_start = False
    needs_whole_rows = ""
    reference_rate = 3e-2
    example_settings = MappingProxyType({"sources": ("world:letters/name", "world:letters/age"), "source_steps": 3})
    unread_settings = frozenset()  # the prompts of the sources are trained at the learning rate too

    sources: tuple[str, ...] = setting((), "Data of the source tasks, each as --data takes it.")
    num_virtual_tokens: int = setting(20, "Length m of the prompt.", low=1, high=2048, search=(50,))
    source_steps: int = setting(100, "Steps of each teacher, and of the training on all sources.", low=1, high=10**6)
    distillation: float = setting(0.9, "Weight of the distillation losses.", low=0.0, high=100.0)
    factor_speed: float = setting(4 / 3, "Learning rate of u and v over that of P*.", low=0.0, high=100.0)
    learning_rate: float | None = learning_rate()

    def lacks(self, base: Base, task: Task) -> str:
        """Say that source tasks are missing, if they are."""
        message = "mpt needs source tasks to distil its prompt from; give --sources task1,task2, or use prompt_tuning"
        return "" if self.sources else message

    def rows_before_training(self, available: int) -> float:
        """Count the teachers' steps and those on all sources, with a third more for the teachers' forward passes."""
        count = len(self.sources)
        drawn = (min(2, count) + count) / 2
        return self.source_steps * _ROWS * (count + drawn * 4 / 3)

    def attach(self, base: Base, generator: torch.Generator) -> Attachment:
        """Put the prompt before the input; it is made in `prepare`.

        Raises:
            TechniqueError: the virtual tokens leave no room in the model's context.
        """
        return _Multitask(base, self)


class _Multitask(Attachment):
    def __init__(self, base: Base, recipe: MPT) -> None:
        super().__init__(base, recipe)
        self.recipe: MPT = recipe
        self.virtual_tokens = m = recipe.num_virtual_tokens
        self.shown_prompt: Callable[[], Tensor] | None = None  # prompts of sources, in place of the target's
        Placeholders(self, m, lambda: (self.shown_prompt or self._prompt)())
        self.add("prompt", torch.zeros(m, base.anatomy.width))
        self.add("u", torch.ones(m))
        self.add("v", torch.ones(base.anatomy.width))

    def _prompt(self) -> Tensor:
        params = self._params
        return prompt_of(params["prompt"], params["u"], params["v"])

    def param_groups(self) -> list[ParamGroup]:
        rate, params = self.recipe.learning_rate or 0.0, self._params
        factors = {"params": [params["u"], params["v"]], "lr": rate * self.recipe.factor_speed}
        return [{"params": [params["prompt"]], "lr": rate}, factors]

    def prepare(self, study: Study) -> None:
        tasks = self._sources(study)
        start = study.once("sources", lambda: self._from_sources(tasks, study))
        with torch.no_grad():
            for name, values in start.items():
                self._params[name].copy_(values)

    def _sources(self, study: Study) -> list[Task]:
        from tunewise.data.task import Task as Reader

        if lacking := self.recipe.lacks(self.base, study.task):
            raise TechniqueError(lacking)
        return [Reader.read(source) for source in self.recipe.sources]

    def prepare_shapes(self, study: Study) -> None:
        """Check that the sources can be read; the size does not depend on them."""
        self._sources(study)

    def _from_sources(self, tasks: Sequence[Task], study: Study) -> dict[str, Tensor]:
        """Return the target's start: P*, and the means of the sources' u and v, after both stages on the sources."""
        from tunewise.fitting.scoring import encoder_for

        sequences = [encoder_for(self, source).encode(source.train) for source in tasks]
        try:
            teachers = [self._teacher(rows, study, index) for index, rows in enumerate(sequences)]
            return self._distilled(sequences, torch.stack(teachers), study)
        finally:
            self.shown_prompt = None

    def _teacher(self, rows: list[TokenSequence], study: Study, index: int) -> Tensor:
        """Return the prompt that ordinary prompt tuning finds for one source task."""
        teacher = _Teacher(self, stream(study.seed, "mpt", "teacher", index))
        try:
            steps, what = self.recipe.source_steps, f"teaching source {index + 1} of {len(self.recipe.sources)}"
            taught = study.trains.run(
                f"teacher-{index}",
                teacher,
                rows,
                steps=steps,
                rows=_ROWS,
                seed=derive(study.seed, "mpt", index),
                on_step=lambda step, loss: study.report(what, step, steps),
            )
            study.allowance.count(taught.tokens)
            return teacher.prompt.detach().clone()
        finally:
            teacher.detach()

    def _distilled(self, sequences: list[list[TokenSequence]], teachers: Tensor, study: Study) -> dict[str, Tensor]:
        """Train P*, u_k and v_k on all sources against their teachers (sources, m, d); return the target's start."""
        from tunewise.fitting.loop import Objective

        students = _Students(self, teachers, [len(rows) for rows in sequences], study.seed)
        try:
            steps = self.recipe.source_steps
            trained = study.trains.run(
                "sources",
                students,
                [row for index, rows in enumerate(sequences) for row in _with_prompt(rows, index, self)],
                steps=steps,
                rows=_ROWS,
                seed=derive(study.seed, "mpt", "sources"),
                objective=Objective(students.drawn, students.loss),
                on_step=lambda step, loss: study.report("distilling the sources", step, steps),
            )
            study.allowance.count(2 * trained.tokens)  # by the teachers and by the students
            params = students.params()
            means = {"prompt": params["prompt"], "u": params["u"].mean(0), "v": params["v"].mean(0)}
            return {name: values.detach().clone() for name, values in means.items()}
        finally:
            students.detach()


def _with_prompt(rows: list[TokenSequence], index: int, owner: _Multitask) -> list[TokenSequence]:
    """Return a source's sequences with virtual tokens of their own, so that one pass holds rows of several sources."""
    first, shift = owner.base.anatomy.vocabulary, index * owner.virtual_tokens
    return [replace(row, ids=[token + shift if token >= first else token for token in row.ids]) for row in rows]


class _Teacher(Attachment):
    """Trains one source task's prompt, in the placeholders of its owner."""

    def __init__(self, owner: _Multitask, generator: torch.Generator) -> None:
        from tunewise.techniques.building.virtual_tokens import embed, ordinary_tokens

        super().__init__(owner.base, owner.recipe)
        self.virtual_tokens = owner.virtual_tokens
        owner.shown_prompt = None
        start = embed(self.base, ordinary_tokens(self.base, self.virtual_tokens, generator))
        self.prompt = self.add("prompt", start)
        owner.shown_prompt = lambda: self.prompt


class _Students(Attachment):
    """Trains P* and each source's factors against the teachers' prompts, in the placeholders of its owner."""

    def __init__(self, owner: _Multitask, teachers: Tensor, sizes: list[int], seed: int) -> None:
        super().__init__(owner.base, owner.recipe)
        self.recipe: MPT = owner.recipe
        self.owner, self.teachers, self.sizes, self.seed = owner, teachers, sizes, seed
        self.virtual_tokens = owner.virtual_tokens
        count, m, width = teachers.shape
        self.prompt = self.add("prompt", teachers.mean(0))
        self.u, self.v = self.add("u", torch.ones(count, m)), self.add("v", torch.ones(count, width))
        owner.shown_prompt = self._prompts

    def param_groups(self) -> list[ParamGroup]:
        rate = self.recipe.learning_rate or 0.0
        factors = {"params": [self.u, self.v], "lr": rate * self.recipe.factor_speed}
        return [{"params": [self.prompt], "lr": rate}, factors]

    def _prompts(self) -> Tensor:
        """Return the prompts of all sources below one another, (sources * m, d)."""
        return torch.cat([prompt_of(self.prompt, u, v) for u, v in zip(self.u, self.v, strict=True)])

    def drawn(self, step: int) -> list[int]:
        """Return the sequences of a step: some of K sources, K ~ U[2, number of sources]."""
        from tunewise.fitting.row_order import order

        random, count = stream(self.seed, "mpt", "sources", step), len(self.sizes)
        drawn = int(torch.randint(min(2, count), count + 1, (), generator=random))
        chosen: list[int] = []
        for k in torch.randperm(count, generator=random)[:drawn].tolist():
            first = sum(self.sizes[:k])
            chosen += [first + place for place in order(self.sizes[k], self.seed, step * _ROWS, _ROWS)]
        return chosen

    def loss(self, batch: Batch, scale: float) -> Tensor:
        """Return the task loss and the distillation losses of all answer tokens, times `scale`."""
        from tunewise.engine.forward import answer_states

        owner = self.owner
        try:
            with torch.no_grad():
                owner.shown_prompt = lambda: self.teachers.flatten(0, 1)
                # (N, d) and (N, V), at the N answer tokens
                teacher_states, teacher_logits = answer_states(self.base, batch)
        finally:
            owner.shown_prompt = self._prompts
        states, logits = answer_states(self.base, batch)
        if not len(batch.targets):  # a device's stretch of a row may hold no answer, and a mean of none is no number
            return states.sum() * 0.0
        states, logits, teacher_states, teacher_logits = (
            values.to(torch.promote_types(values.dtype, torch.float32))
            for values in (states, logits, teacher_states, teacher_logits)
        )
        task = nn.functional.cross_entropy(logits, batch.targets)
        distilled = distillation(states, logits, teacher_states, teacher_logits)
        return (task + self.recipe.distillation * distilled) * len(batch.targets) * scale


def prompt_of(shared: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """P* x (u v^T), elementwise: return the prompt of a task, (m, d)."""
    return shared * torch.outer(u, v)


def distillation(states: Tensor, logits: Tensor, teacher_states: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats per token, plus the mean squared difference of the hidden states (N, d)."""
    log_p, log_q = teacher_logits.log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() + (states - teacher_states).square().mean()
