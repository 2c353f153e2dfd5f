"""Commands that export an adaptation and push it to the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.commands.training import folder_of
from tunewise.cli.console import print_json, print_result, progress_display
from tunewise.cli.options import AdaptationFolder, BaseLocation, Json, Out, grouped_options, only
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row
from tunewise.resolve import DataOptions, TechniqueOptions, read_task, settings_of


@grouped_options
def export(
    adaptation: AdaptationFolder,
    to: Annotated[str, typer.Option("--to", help="Format: peft, merged, lora, sparse, onnx, gguf or ollama.")],
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Task to compare on; default: the fitted one, or text sampled from the model."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the stored weights: float32, bfloat16, float16; default: the base's.")
    ] = None,
    error: Annotated[float, typer.Option(help="For lora: largest relative error of each weight's change.")] = 0.01,
    rank: Annotated[int, typer.Option(help="For lora: the rank, whatever the error is; 0: chosen by --error.")] = 0,
    model: BaseLocation = None,
    *,
    reading: DataOptions,
    recipes: Annotated[TechniqueOptions, only("sets")],
    as_json: Json = False,
) -> None:
    """Export an adaptation for other programs, and check that they read the model that was trained."""
    task = read_task(data, reading) if data is not None else None
    if data is None and (reading.columns or reading.template or reading.metric):
        raise SettingError("--columns, --template and --metric say how to read --data, which is not given")
    folder = folder_of(adaptation)
    quiet()
    from tunewise.export.export import export
    from tunewise.export.summary import parity_summary

    with progress_display() as display:
        parity = export(
            folder,
            to,
            out,
            model=model,
            task=task,
            dtype=dtype,
            error=error,
            rank=rank,
            settings=settings_of(recipes.sets),
            progress=for_row(display, to),
        )
    print_result(parity, as_json, lambda: parity_summary(parity, out))
    if not parity["same"]:
        sys.exit(1)


@grouped_options
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an adaptation or of an export.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private if it is created.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence as the Hub names it, e.g. apache-2.0.")
    ] = None,
    card_only: Annotated[bool, typer.Option("--card-only", help="Print the model card and send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Push an adaptation or an export to the Hugging Face Hub, with a model card."""
    from tunewise.export.push import prepare_upload
    from tunewise.export.push import push as send

    path = folder_of(folder)
    if card_only:
        files, card = prepare_upload(path, repo, licence)
        if as_json:
            print_json({"repository": repo, "card": card, "files": [str(file.relative_to(path)) for file in files]})
        else:
            typer.echo(card, nl=False)
        return
    upload = send(path, repo, private=private, licence=licence)
    if as_json:
        print_json(upload)
    else:
        typer.echo(f"pushed {len(upload['files'])} files to {upload['url']}")
