"""The command that scores an adaptation by tasks of the lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.commands.scoring import folder_of
from tunewise.cli.console import print_result
from tunewise.cli.options import AdaptationFolder, BaseLocation, Json, grouped_options
from tunewise.cli.progress_display import progress_display
from tunewise.core.errors import SettingError
from tunewise.core.extras import require
from tunewise.core.logs import quiet

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunewise.export.lm_eval_model import TaskScores


@grouped_options
def lm_eval(
    adaptation: AdaptationFolder,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks of the harness, separated by commas.")],
    model: BaseLocation = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task; default: all.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Worked examples in each prompt; default: as each task says.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with definitions of further tasks.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Write prompts in the model's chat template.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score an adaptation by tasks of EleutherAI's lm-evaluation-harness; their code is run, their data fetched."""
    require("the evaluation harness", "lm_eval")
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit} but must be at least 1")
    folder = folder_of(adaptation)
    quiet()
    from tunewise.adaptation.artifact import load
    from tunewise.export.lm_eval_model import evaluate_tasks

    with progress_display() as display:
        display(folder.name, "loading", 0, 0)
        loaded = load(folder, model=model)
        display(folder.name, f"scoring {tasks}", 0, 0)
        scores = evaluate_tasks(
            loaded,
            [name.strip() for name in tasks.split(",") if name.strip()],
            limit=limit,
            num_fewshot=num_fewshot,
            include_path=include_path,
            chat=apply_chat_template,
        )
    print_result(scores, as_json, lambda: _table(scores))


def _table(scores: list[TaskScores]) -> RenderableType:
    from tunewise.results.report.layout import Column, FittedTable, TableRow

    columns = (Column("task", kind="words"), Column("metric", kind="words"), Column("score"), Column("examples"))
    rows = [
        TableRow([each["task"], name, f"{value:.4f}", str(each["examples"])], "")
        for each in scores
        for name, value in each["metrics"].items()
    ]
    return FittedTable(columns, rows)
