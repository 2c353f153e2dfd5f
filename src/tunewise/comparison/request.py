"""A comparison in words, as a command line gives it: what a worker process is told, and can do alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewise.core import artifact_writer
from tunewise.core.progress import RowProgress
from tunewise.resolve import COMPARED, load_model, read_task, read_texts, recipes_of, settings_of
from tunewise.results.schema import Comparison

# What has the same name and type as an option of `tunewise compare`.
SAME = (
    *("model", "data", "techniques", "retention", "probe", "columns", "template", "metric", "sources", "knowledge"),
    *("max_length", "revision", "dtype", "device", "remember"),
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that `compare` is asked, in JSON's types; names and defaults are those of the command line."""

    model: str
    data: str
    out: str
    techniques: str = COMPARED
    budget: dict[str, Any] = field(default_factory=dict)  # arguments of `tunewise.comparison.compare.Budget`
    settings: dict[str, Any] = field(default_factory=dict)  # arguments of `tunewise.fitting.settings.TrainSettings`
    retention: str | None = None
    probe: str | None = None
    columns: str | None = None
    template: str | None = None
    metric: str | None = None
    sets: list[str] = field(default_factory=list)
    sources: str | None = None
    default_sources: list[str] = field(default_factory=list)  # for what learns from other tasks, where none are given
    knowledge: str | None = None
    max_length: int | None = None
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    remember: str | None = None
    needs: list[str] = field(default_factory=list)
    price: float | None = None
    report_to: list[str] = field(default_factory=list)
    started: float | None = None
    command: list[str] | None = None
    advised: bool = False

    def to_json(self) -> dict[str, Any]:
        """The arguments of this class."""
        return asdict(self)

    def run(
        self, progress: RowProgress, on_row: Callable[[Comparison], None] = lambda result: None, **watching: Any
    ) -> Comparison:
        """Carry it out in this process.

        Args:
            progress: called as progress(row, what, done, total).
            on_row: called with the result so far after each row.
            watching: further arguments of `compare`.

        Raises:
            RequestError: the data, a setting or the model cannot be used as asked.
        """
        task = read_task(self.data, self.columns, self.template, self.metric)
        texts, remembered = read_texts(self.retention), read_texts(self.remember)
        probed = read_task(self.probe, None, None, None) if self.probe else None
        chosen = settings_of(self.sets)
        held = [f"{name}.{setting}" for name, own in chosen.items() for setting in own]
        names = f"base,{self.techniques}" if self.advised and not self._has_base() else self.techniques
        recipes = recipes_of(names, chosen, self.sources, self.default_sources, self.knowledge)
        from tunewise.comparison.budget import Budget
        from tunewise.comparison.compare import compare
        from tunewise.fitting.settings import TrainSettings

        budget, settings = Budget(**self.budget), TrainSettings(**self.settings)
        progress(self.model, "loading", 0, 0)
        base = load_model(self.model, self.revision, self.dtype, self.device, self.max_length)
        course = None
        if self.advised:
            from tunewise.advice.course import Course

            progress("advice", "looking at the task", 0, 0)
            course = Course.open(
                base,
                task,
                recipes,
                artifact_writer.output_folder(self.out),
                knowledge=self.knowledge,
                examples=budget.steps * settings.rows,
                needs=self.needs,
            )
        result = compare(
            base,
            task,
            recipes,
            Path(self.out),
            budget=budget,
            settings=settings,
            retention=texts,
            probe=probed,
            remembered=remembered,
            needs=self.needs,
            held=held,
            price=self.price,
            report_to=self.report_to,
            started=self.started,
            command=self.command,
            progress=progress,
            course=course,
            on_row=lambda result: on_row(Comparison.from_json(result)),
            **watching,
        )
        return Comparison.from_json(result)

    def _has_base(self) -> bool:
        names = [name.strip() for name in self.techniques.split(",")]
        return "base" in names or names == ["all"]
