"""Multitask prompt tuning: one prompt distilled from several tasks, then tuned to another (Wang et al. 2023).

    P_k = P* x (u_k v_k^T) elementwise,   P* in R^{m x d}, u_k in R^m, v_k in R^d

    1. teachers    ordinary prompt tuning on each source task
    2. sources     P*, u_k, v_k on all source tasks: task loss + distillation * (KL(teacher || student) + mean squared
                   difference of last hidden states), at the answers' positions; some tasks per step, drawn anew
    3. target      P*, and u, v from the means of the sources', with two speeds

The target stage is what a comparison's budget counts; the other two are part of `prepare`, `source_steps` each, and
their time is in the measured seconds. u and v start at one, so a prompt starts as P* itself, which starts as the mean
of the teachers.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    identity_at_start = False
    reference_rate = 3e-2

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
        self.shown_prompt: Tensor | None = None  # a teacher's or a source's prompt, in place of the target's
        Placeholders(self, m, lambda: self.shown_prompt if self.shown_prompt is not None else self._prompt())
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
        from tunewise.fitting.scoring import encoder_for

        tasks = self._sources(study)
        sequences = [encoder_for(self, source).encode(source.train) for source in tasks]
        teachers = [self._teacher(rows, study, index) for index, rows in enumerate(sequences)]
        self._distil(sequences, teachers, study)
        self.shown_prompt = None

    def _sources(self, study: Study) -> list[Task]:
        from tunewise.data.task import Task as Reader

        if lacking := self.recipe.lacks(self.base, study.task):
            raise TechniqueError(lacking)
        return [Reader.read(source) for source in self.recipe.sources]

    def prepare_shapes(self, study: Study) -> None:
        """Check that the sources can be read; the size does not depend on them."""
        self._sources(study)

    def _teacher(self, rows: list[TokenSequence], study: Study, index: int) -> Tensor:
        """Return the prompt that ordinary prompt tuning finds for one source task."""
        from tunewise.fitting.loop import train
        from tunewise.fitting.settings import TrainSettings

        teacher = _Teacher(self, stream(study.seed, "mpt", "teacher", index))
        try:
            settings = TrainSettings(max_steps=self.recipe.source_steps, per_device_train_batch_size=_ROWS)
            what = f"teaching source {index + 1} of {len(self.recipe.sources)}"
            train(
                teacher,
                rows,
                settings,
                seed=derive(study.seed, "mpt", index),
                on_step=lambda step, loss: study.report(what, step, settings.max_steps),
            )
            return teacher.prompt.detach().clone()
        finally:
            teacher.detach()

    def _distil(self, sequences: list[list[TokenSequence]], teachers: list[Tensor], study: Study) -> None:
        """Train P*, u_k and v_k on all sources against their teachers; leave the target's start in the parameters."""
        from tunewise.fitting.loop import order

        recipe, params, count = self.recipe, self._params, len(teachers)
        with torch.no_grad():
            params["prompt"].copy_(torch.stack(teachers).mean(0))
        u = nn.Parameter(torch.ones(count, *params["u"].shape, device=self.base.device))  # (sources, m)
        v = nn.Parameter(torch.ones(count, *params["v"].shape, device=self.base.device))  # (sources, d)
        rate = recipe.learning_rate or 0.0
        factors = {"params": [u, v], "lr": rate * recipe.factor_speed}
        optimizer = torch.optim.AdamW([{"params": [params["prompt"]], "lr": rate}, factors], weight_decay=0.0)
        for step in study.counted("distilling the sources", range(recipe.source_steps)):
            random = stream(study.seed, "mpt", "sources", step)
            drawn = int(torch.randint(min(2, count), count + 1, (), generator=random))  # K ~ U[2, number of sources]
            for k in torch.randperm(count, generator=random)[:drawn].tolist():
                rows = sequences[k]
                batch = [rows[i] for i in order(len(rows), study.seed, step * _ROWS, _ROWS)]
                student = prompt_of(params["prompt"], u[k], v[k])
                (self._source_loss(batch, student, teachers[k]) / drawn).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            params["u"].copy_(u.mean(0))
            params["v"].copy_(v.mean(0))

    def _source_loss(self, rows: list[TokenSequence], student: Tensor, teacher: Tensor) -> Tensor:
        from tunewise.engine.forward import answer_states, batch_of, layout

        batch = batch_of(self.base, rows)
        with layout(self.base, batch):
            with torch.no_grad():
                self.shown_prompt = teacher
                # (N, d) and (N, V), at the N answer tokens
                teacher_states, teacher_logits = answer_states(self.base, batch)
            self.shown_prompt = student
            states, logits = answer_states(self.base, batch)
        loss = nn.functional.cross_entropy(logits, batch.targets)
        return loss + self.recipe.distillation * distillation(states, logits, teacher_states, teacher_logits)


class _Teacher(Attachment):
    """Trains one source task's prompt, in the placeholders of its owner."""

    def __init__(self, owner: _Multitask, generator: torch.Generator) -> None:
        from tunewise.techniques.building.virtual_tokens import embed, ordinary_tokens

        super().__init__(owner.base, owner.recipe)
        self.virtual_tokens = owner.virtual_tokens
        owner.shown_prompt = None
        start = embed(self.base, ordinary_tokens(self.base, self.virtual_tokens, generator))
        self.prompt = self.add("prompt", start)
        owner.shown_prompt = self.prompt


def prompt_of(shared: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """P* x (u v^T), elementwise: return the prompt of a task, (m, d)."""
    return shared * torch.outer(u, v)


def distillation(states: Tensor, logits: Tensor, teacher_states: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats per token, plus the mean squared difference of the hidden states (N, d)."""
    log_p, log_q = teacher_logits.log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() + (states - teacher_states).square().mean()
