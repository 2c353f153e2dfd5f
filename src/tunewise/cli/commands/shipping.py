"""Commands that carry an adaptation to where it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.commands.training import folder_of
from tunewise.cli.console import console, print_json, progress
from tunewise.cli.options import Columns, Config, Json, Metric, Out, Sets, Template
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.resolve import read_task, settings_of


def export(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")],
    to: Annotated[str, typer.Option("--to", help="peft, merged, lora, sparse, onnx, gguf or ollama.")],
    out: Out,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Task to compare on; default: the one fitted, or text the model writes."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the stored weights: float32, bfloat16, float16; default: the base's.")
    ] = None,
    error: Annotated[float, typer.Option(help="lora: relative error allowed to each weight's change.")] = 0.01,
    rank: Annotated[int, typer.Option(help="lora: the rank, whatever the error; 0: by --error.")] = 0,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")] = None,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sets: Sets = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Write an adaptation for other programs, and prove that what they read is the model that was trained."""
    task = read_task(data, columns, template, metric) if data is not None else None
    if data is None and (columns or template or metric):
        raise SettingError("--columns, --template and --metric say how to read --data, which is not given")
    folder = folder_of(adaptation)
    quiet()
    from tunewise.export.export import export
    from tunewise.export.summary import text

    with progress() as show:
        found = export(
            folder,
            to,
            out,
            model=model,
            task=task,
            dtype=dtype,
            error=error,
            rank=rank,
            settings=settings_of(sets),
            progress=lambda what, done, total: show(to, what, done, total),
        )
    if as_json:
        print_json(found)
    else:
        console().print(text(found, out), markup=False, highlight=False)
    if not found["same"]:
        sys.exit(1)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an adaptation or of an export.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, where it is new.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence as the Hub names it, e.g. apache-2.0.")
    ] = None,
    card_only: Annotated[bool, typer.Option("--card-only", help="Print the model card and send nothing.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Put an adaptation or an export on the Hugging Face Hub, with a model card of what is known about it."""
    from tunewise.export.push import prepared
    from tunewise.export.push import push as send

    place = folder_of(folder)
    if card_only:
        files, text = prepared(place, repo, licence)
        if as_json:
            print_json({"repository": repo, "card": text, "files": [str(path.relative_to(place)) for path in files]})
        else:
            typer.echo(text, nl=False)
        return
    found = send(place, repo, private=private, licence=licence)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{len(found['files'])} files are at {found['url']}")
