"""Chooses, before anything is trained, whether a chat model's prompts list the labels of a classification.

The list tells a model what to choose from, and takes tokens in every prompt: a tuned model has learnt the labels and
may not need it. So it is kept only where it helps the bare base on a sample of the validation split. Both ways, the
sample's labels are scored by likelihood, and the list is kept if

- it corrects more answers than it spoils, at a level of 5 % (one-sided sign test over the answers it changes), and,
- where it takes more than 200 tokens, it also raises the accuracy by at least ten points.

The sample has up to 64 examples: as many as keep both passes within 20,000 tokens, and at least 16. One choice is made
for all techniques and trials of a folder. It is written to `label_list.json` there, so that a run that is continued
goes on with the same prompts; a folder with results but no such file is from before there was a choice, and keeps the
list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunewise.core import sealed_json
from tunewise.core.json_record import Count, JsonRecord
from tunewise.core.progress import Progress, silent
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Task, sample
from tunewise.engine.encoding import Encoder
from tunewise.engine.model import Base
from tunewise.fitting.scoring import score
from tunewise.techniques.registry import make

FILE = "label_list.json"
LEVEL = 0.05
LONG, CLEAR = 200, 0.1  # a list of more tokens than this must raise the accuracy by at least this
_MOST, _FEWEST, _TOKENS = 64, 16, 20_000  # examples of the sample, and tokens that both passes may read

Answered = Callable[[Task, Sequence[Example]], Sequence[bool]]  # which examples are answered correctly


@dataclass(frozen=True, kw_only=True)
class LabelListChoice(JsonRecord):
    """Records whether prompts list the labels, for which base and task that holds, and why.

    `tokens` is the length of the list. `accuracy_with` and `accuracy_without` are those of the base on `examples`
    validation examples, and `p_value` is that of the sign test; they are absent where the user chose.
    """

    base: str
    task: str
    listed: bool
    labels: Count
    tokens: Count
    examples: Count | None = None
    accuracy_with: float | None = None
    accuracy_without: float | None = None
    p_value: float | None = None

    def applied_to(self, task: Task) -> Task:
        """Return the task with this choice, and with a note of it."""
        notes = task.notes if self.note in task.notes else (*task.notes, self.note)
        return replace(task, label_list=self.listed, notes=notes)

    @property
    def note(self) -> str:
        """Say in a sentence or two what was chosen, why, and what the list costs."""
        what = f"The prompt {'lists' if self.listed else 'does not list'} the {self.labels} labels"
        costs = f"{'it costs' if self.listed else 'it would cost'} {self.tokens} tokens a prompt"
        if self.accuracy_with is None or self.accuracy_without is None:
            return f"{what}, as --label-list {'yes' if self.listed else 'no'} asks; {costs}."
        why = "" if self.listed else ", which is no clear gain"
        return (
            f"{what}: base accuracy on {self.examples} validation examples is {self.accuracy_with:.2f} with the list "
            f"and {self.accuracy_without:.2f} without{why}; {costs}."
        )


def label_list_choice(
    base: Base, task: Task, folder: Path, *, has_results: bool, progress: Progress = silent
) -> LabelListChoice | None:
    """Return the choice for a run and write it to its folder; None leaves the task's prompts as they are.

    There is no choice to make where the labels are not listed anyway: in another kind of task, with a template of the
    user's own, and with a model that is no chat model, unless the user asks for a list.

    Args:
        base: the bare base.
        task: the data; its own `label_list` is the user's choice, and None leaves the choice to validation.
        folder: where the run keeps its results; an earlier choice is read from there.
        has_results: whether the folder has results already.
        progress: is told how far the scoring is.
    """
    if task.kind != "classification" or task.template is not None:
        return None
    if task.label_list is None and (not base.tokenizer.chat_template or not task.validation):
        return None
    path = folder / FILE
    found = (has_results and not path.exists(), _earlier(path, base, task)) if base.ranks.writes else (False, None)
    predates, choice = base.ranks.first(found)
    if task.label_list is not None and (choice is None or choice.listed != task.label_list):
        choice = _unmeasured(base, task, task.label_list)
    elif choice is None:
        if predates:
            return None
        choice = _choose(base, task, progress)
    if base.ranks.writes:
        sealed_json.write(path, choice.to_json())
    return choice


def choose(base: Base, task: Task, examples: Sequence[Example], correct: Answered) -> LabelListChoice:
    """Choose by the rule that the module describes; `correct` answers the examples with and without the list."""
    with_list = correct(replace(task, label_list=True), examples)
    without = correct(replace(task, label_list=False), examples)
    p_value = sign_test(with_list, without)
    clear = sum(with_list) - sum(without) >= CLEAR * len(examples)
    choice = _unmeasured(base, task, listed=True)
    helps = p_value < LEVEL and (choice.tokens <= LONG or clear)
    return replace(
        choice,
        listed=helps,
        examples=len(examples),
        accuracy_with=sum(with_list) / len(examples),
        accuracy_without=sum(without) / len(examples),
        p_value=p_value,
    )


def sign_test(with_list: Sequence[bool], without: Sequence[bool]) -> float:
    """Return how likely the list corrects so many of the answers that it changes, if it did as much harm as good."""
    from scipy.stats import binomtest

    corrected = sum(new and not old for new, old in zip(with_list, without, strict=True))
    changed = sum(new != old for new, old in zip(with_list, without, strict=True))
    return float(binomtest(corrected, changed, 0.5, alternative="greater").pvalue) if changed else 1.0


def _earlier(path: Path, base: Base, task: Task) -> LabelListChoice | None:
    """Read the choice that was made in this folder, unless it was made for another base or task."""
    choice = sealed_json.read_or_set_aside(
        path, lambda value: LabelListChoice.from_json(value, path), "the list of labels is chosen again"
    )
    return choice if choice and (choice.base, choice.task) == (base.fingerprint, task.fingerprint) else None


def _unmeasured(base: Base, task: Task, listed: bool) -> LabelListChoice:
    return LabelListChoice(
        base=base.fingerprint,
        task=task.fingerprint,
        listed=listed,
        labels=len(task.labels),
        tokens=_list_tokens(base, task),
    )


def _list_tokens(base: Base, task: Task) -> int:
    """Return how many tokens the list adds to a prompt; it is the same for all prompts, almost."""
    first = (task.train or task.validation)[:1]
    with_list, without = (
        Encoder(base, replace(task, label_list=listed)).sizes(first)[0][0] for listed in (True, False)
    )
    return with_list - without


def _choose(base: Base, task: Task, progress: Progress) -> LabelListChoice:
    examples = sample(task.validation, _MOST)
    prompts = Encoder(base, replace(task, label_list=True)).sizes(examples)
    labels = sum(
        answer for _, answer in Encoder(base, task).sizes([replace(examples[0], answer=a) for a in task.labels])
    )
    per_example = 2 * (sum(prompt for prompt, _ in prompts) / len(prompts) + labels) - _list_tokens(base, task)
    examples = sample(task.validation, max(_FEWEST, min(_MOST, int(_TOKENS / per_example))))
    attachment = make("base").attach(base, generator(0, "label list"))

    def correct(asked: Task, examples: Sequence[Example]) -> list[bool]:
        which = "with" if asked.label_list else "without"

        def report(what: str, done: int, total: int) -> None:
            progress(f"scoring {which} the list of labels", done, total)

        predictions = score(attachment, asked, examples, report).predictions
        return [label == example.answer for label, example in zip(predictions, examples, strict=True)]

    try:
        return choose(base, task, examples, correct)
    finally:
        attachment.detach()
