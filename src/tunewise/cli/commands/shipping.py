"""Commands that export an adaptation and push it to the Hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.commands.scoring import folder_of
from tunewise.cli.console import echo, print_json, print_result
from tunewise.cli.options import AdaptationFolder, BaseLocation, Json, Out, grouped_options, only
from tunewise.cli.progress_display import progress_display
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row
from tunewise.resolve import DataOptions, TechniqueOptions, read_task, settings_of


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Options that say how the proof of an export is made."""

    parity_prompts: Annotated[
        int | None,
        typer.Option(help="Prompts that are compared with the trained model; default: 60, or what the data has."),
    ] = None
    no_parity: Annotated[
        bool, typer.Option("--no-parity", help="Do not read the export back; it is marked as unproved.")
    ] = False

    def count(self) -> int | None:
        """Return how many prompts are compared, or None for no comparison.

        Raises:
            SettingError: the two options contradict each other.
        """
        from tunewise.export.parity import PROMPTS

        if self.no_parity and self.parity_prompts:
            raise SettingError(
                f"--no-parity compares no prompts, and --parity-prompts asks for {self.parity_prompts}; give one of "
                "the two"
            )
        if self.no_parity:
            return None
        return PROMPTS if self.parity_prompts is None else self.parity_prompts


@grouped_options
def export(
    adaptation: AdaptationFolder,
    to: Annotated[str, typer.Option("--to", help="Format: peft, merged, lora, sparse, onnx, gguf or ollama.")],
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Task to compare on; default: the shipped one that was fitted, or text sampled from the model.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the stored weights: float32, bfloat16, float16, for gguf and ollama also q8_0; default: the "
            "checkpoint's."
        ),
    ] = None,
    error: Annotated[float, typer.Option(help="For lora: largest relative error of each weight's change.")] = 0.01,
    rank: Annotated[int, typer.Option(help="For lora: the rank, whatever the error is; 0: chosen by --error.")] = 0,
    model: BaseLocation = None,
    *,
    proof: ParityOptions,
    reading: Annotated[DataOptions, only("columns", "template", "label_list", "metric")],
    recipes: Annotated[TechniqueOptions, only("sets", "places")],
    as_json: Json = False,
) -> None:
    """Export an adaptation for other programs, and check that they read the model that was trained."""
    task = read_task(data, reading) if data is not None else None
    if data is None and reading != DataOptions():
        raise SettingError(
            "--columns, --template, --kind, --skip-bad-rows, --label-list and --metric say how to read --data; "
            "give --data"
        )
    folder = folder_of(adaptation)
    quiet()
    prompts = proof.count()
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
            places=recipes.places,
            parity_prompts=prompts,
            progress=for_row(display, to),
        )
    print_result(parity, as_json, lambda: parity_summary(parity, out))
    if parity["same"] is False:
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
            echo(card, nl=False)
        return
    upload = send(path, repo, private=private, licence=licence)
    if as_json:
        print_json(upload)
    else:
        echo(f"pushed {len(upload['files'])} files to {upload['url']}")
