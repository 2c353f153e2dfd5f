"""Defines a comparison as options of a command line: a worker process receives it as JSON and carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from tunewise.comparison.invocation import Invocation
from tunewise.core.errors import ArtifactError
from tunewise.core.progress import RowProgress, for_row
from tunewise.resolve import (
    COMPARED,
    ComputeOptions,
    DataOptions,
    ModelOptions,
    RemedyOptions,
    TechniqueOptions,
    TrainOptions,
    load_model,
    read_task,
    read_texts,
    recipes_of,
    settings_of,
    train_settings,
)
from tunewise.results.schema import Comparison

if TYPE_CHECKING:
    from tunewise.comparison.budget import Budget
    from tunewise.comparison.context import ComparisonContext
    from tunewise.comparison.invocation import OnTrial
    from tunewise.comparison.probe import Probe
    from tunewise.data.task import Task
    from tunewise.fitting.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Holds the options that say what each technique may spend."""

    budget_steps: int | None = None
    epochs: float | None = None
    budget_tokens: int | None = None
    budget_minutes: float | None = None
    search: int = 1
    seeds: int = 1
    test_examples: int | None = None
    validation_examples: int = 128

    def budget(self) -> Budget:
        """Return the budget of these options; a `SettingError` says which option is out of range."""
        from tunewise.comparison.budget import Budget

        return Budget(
            steps=self.budget_steps,
            epochs=self.epochs,
            tokens=self.budget_tokens,
            minutes=self.budget_minutes,
            search=self.search,
            seeds=self.seeds,
            test_examples=self.test_examples,
            validation_examples=self.validation_examples,
        )


@dataclass(frozen=True, kw_only=True)
class ForgettingOptions:
    """Holds the options that say what forgetting is measured on."""

    retention: str | None = None
    probe: str | None = None


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Holds the options of `tunewise compare` that say what is compared, in the order of its help."""

    model: str
    data: str
    out: Path
    techniques: str = COMPARED
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    forgetting: ForgettingOptions = field(default_factory=ForgettingOptions)
    training: TrainOptions = field(default_factory=TrainOptions)
    reading: DataOptions = field(default_factory=DataOptions)
    recipes: TechniqueOptions = field(default_factory=TechniqueOptions)
    loading: ModelOptions = field(default_factory=ModelOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    remedies: RemedyOptions = field(default_factory=RemedyOptions)
    need: list[str] | None = None
    price_per_hour: float | None = None
    report_to: str | None = None
    advised: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """Holds everything that defines a comparison, in types that JSON can hold."""

    options: CompareOptions
    default_sources: list[str] = field(default_factory=list)  # of techniques that learn from other tasks, by default
    started: float | None = None
    command: list[str] | None = None

    def to_json(self) -> dict[str, object]:
        """Write this request for another process."""
        value = asdict(self)
        value["options"]["out"] = str(self.options.out)
        return value

    @classmethod
    def from_json(cls, value: object) -> Request:
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: a field is missing, unknown or of another type; the message names it.
        """
        return _from_json(cls, value, "request")

    def run(self, progress: RowProgress, invocation: Invocation | None = None) -> Comparison:
        """Run the comparison in this process; `invocation` says who follows it.

        Raises:
            RequestError: the data, a setting or the model cannot be used as requested.
        """
        options = self.options
        task = read_task(options.data, options.reading)
        retention, remembered = read_texts(options.forgetting.retention), read_texts(options.remedies.remember)
        probe = _probe(options.forgetting.probe) if options.forgetting.probe else None
        chosen = [
            f"{name}.{setting}" for name, settings in settings_of(options.recipes.sets).items() for setting in settings
        ]
        names = options.techniques
        if options.advised and not _names_base(names):
            names = f"base,{names}"
        recipes = recipes_of(names, options.recipes, default_sources=self.default_sources)
        from tunewise.comparison.compare import compare

        budget = options.budget.budget()
        settings = train_settings(None, options.training, options.compute, options.remedies)
        if not budget.is_settled and any(recipe.trains for recipe in recipes):
            budget = self._with_chosen_steps(budget, task, settings, progress)
        progress(options.model, "loading", 0, 0)
        base = load_model(options.model, options.loading)
        course = None
        if options.advised:
            from tunewise.adaptation.label_list import label_list_choice
            from tunewise.advice.course import Course
            from tunewise.comparison.recorded_text import require_same_text
            from tunewise.core import artifact_writer
            from tunewise.engine.rows import fitted_to

            folder, task = artifact_writer.output_folder(options.out), fitted_to(base, task)
            require_same_text(base, task, folder)
            label_list = label_list_choice(
                base, task, folder, has_results=(folder / "trials").is_dir(), progress=for_row(progress, "advice")
            )
            task = label_list.applied_to(task) if label_list is not None else task
            progress("advice", "measuring the task", 0, 0)
            course = Course.open(
                base,
                task,
                recipes,
                folder,
                knowledge=options.recipes.places.knowledge,
                examples=budget.optimiser_steps(len(task.train), settings) * settings.rows,
                needs=options.need or [],
            )
        result = compare(
            base,
            task,
            recipes,
            options.out,
            budget=budget,
            settings=settings,
            retention=retention,
            probe=probe,
            remembered=remembered,
            needs=options.need or [],
            price=options.price_per_hour,
            report_to=self._trackers(),
            progress=progress,
            invocation=replace(
                invocation or Invocation(), held=chosen, started=self.started, command=self.command, course=course
            ),
        )
        return Comparison.from_json(result)

    def loaded(self, progress: RowProgress) -> Callable[[bool | None, str, OnTrial], ComparisonContext]:
        """Load the base and the data, in a process that runs trials for the one that compares.

        Returns:
            What makes the context of trials, once that process has measured the base: it takes whether prompts list
            the labels, the id of the attempt, and whom to tell which trial runs.

        Raises:
            RequestError: the data or the model cannot be used as requested.
        """
        from tunewise.comparison.context import ComparisonContext
        from tunewise.comparison.measured_base import retention_of
        from tunewise.comparison.probe import TaskProbe
        from tunewise.data.task import Task, default_test_examples
        from tunewise.engine.rows import fitted_to
        from tunewise.fitting.encoded_rows import FOLDER as ROWS

        options, budget = self.options, self.options.budget.budget()
        task = read_task(options.data, options.reading)
        texts, remembered = read_texts(options.forgetting.retention), read_texts(options.remedies.remember)
        probe = _probe(options.forgetting.probe) if options.forgetting.probe else None
        progress(options.model, "loading", 0, 0)
        base = load_model(options.model, options.loading)
        task = fitted_to(base, task)

        def context(label_list: bool | None, attempt_id: str, on_trial: OnTrial) -> ComparisonContext:
            return ComparisonContext(
                base,
                replace(task, label_list=label_list),
                validation=budget.validation_examples,
                test=budget.test_examples or default_test_examples(task.kind),
                retention=retention_of(base, texts, options.out),
                probe=TaskProbe.of(probe) if isinstance(probe, Task) else probe,
                remembered=remembered,
                attempt_id=attempt_id,
                report_to=self._trackers(),
                on_trial=on_trial,
                rows=options.out / ROWS,
            )

        return context

    def _trackers(self) -> list[str]:
        named = self.options.report_to
        return [name.strip() for name in named.split(",")] if named else []

    def for_workers(self) -> Request:
        """Return the request with the type of the weights as this process chooses it, for other devices than its own.

        Each would choose by what its device can compute, and weights of another type are another base.

        Raises:
            ModelError: there is no such model.
        """
        from tunewise.comparison.budget import training_device
        from tunewise.engine.configuration import read_unloaded
        from tunewise.engine.model import AUTO, weights_dtype

        loading = self.options.loading
        if loading.dtype != AUTO:
            return self
        config = read_unloaded(self.options.model, revision=loading.revision).config
        chosen = str(weights_dtype(AUTO, config, training_device(loading.device))).removeprefix("torch.")
        return replace(self, options=replace(self.options, loading=replace(loading, dtype=chosen)))

    def _with_chosen_steps(self, budget: Budget, task: Task, settings: TrainSettings, progress: RowProgress) -> Budget:
        """Choose the steps of a trial from the model's configuration alone."""
        from tunewise.advice.plan.weightless import outline
        from tunewise.comparison.budget import settled, training_device

        options = self.options
        progress(options.model, "choosing the budget", 0, 0)
        loading = options.loading
        model = outline(
            options.model, loading.revision, loading.max_length, resize_embeddings=loading.resize_embeddings
        )
        device = training_device(options.loading.device)
        return settled(budget, model, task, settings, options.out, device)


def _names_base(techniques: str) -> bool:
    names = [name.strip() for name in techniques.split(",")]
    return "base" in names or names == ["all"]


def _from_json(kind: Any, value: object, where: str) -> Any:
    """Read a value of the type `kind` from parsed JSON; errors call it `where`."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            raise ArtifactError(
                f"{where}: must be an object of {', '.join(hints)}; both processes must run the same tunewise"
            )
        return kind(**{name: _from_json(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    for allowed in get_args(kind) if isinstance(kind, UnionType) else (kind,):
        if _has_type(allowed, value):
            return Path(str(value)) if allowed is Path else value
    raise ArtifactError(f"{where}: is {value!r} but must be {kind}; both processes must run the same tunewise")


def _has_type(kind: Any, value: object) -> bool:
    """Return whether a parsed JSON value has a type: `true` is no number, and 1 is a float too."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(get_args(kind)[0], item) for item in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, str if kind is Path else kind)


def _probe(text: str) -> Task | Probe:
    """Read `--probe`: data as `--data` takes them, or tasks of the evaluation harness."""
    from tunewise.comparison.probe import HARNESS, HarnessProbe

    return HarnessProbe.read(text) if text.startswith(HARNESS) else read_task(text)
