"""Commands that list techniques and check data; they change nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from tunewise.cli.console import console, print_json, print_result
from tunewise.cli.options import Data, Json, grouped_options, only
from tunewise.cli.progress_display import progress_display
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.text import model_name
from tunewise.resolve import DataOptions, ModelOptions, load_model, read_task


def techniques(
    name: Annotated[str | None, typer.Argument(help="Name of one technique, to show all of it.")] = None,
    peft: Annotated[bool, typer.Option("--peft", help="Try each of PEFT's own methods on a model.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="Model that --peft tries them on.")] = "world",
    as_json: Json = False,
) -> None:
    """Show all techniques as a tree, one technique in full, or which of PEFT's own methods work on a model."""
    from tunewise.cli.views import techniques

    if peft:
        if name is not None:
            raise SettingError("--peft lists all of PEFT's methods; leave the name out")
        _survey(model, as_json)
        return
    if as_json:
        print_json(techniques.facts(name))
    else:
        console().print(techniques.tree() if name is None else techniques.render_technique(name))


def _survey(model: str, as_json: bool) -> None:
    quiet()
    from tunewise.cli.views import techniques
    from tunewise.techniques import peft_bridge

    with progress_display() as display:
        display(model, "loading", 0, 0)
        base = load_model(model, ModelOptions(device="cpu"))
        rows = peft_bridge.survey(base, lambda what, done, total: display(what, "trying", done, total))
    print_result(rows, as_json, lambda: techniques.peft_table(rows, model_name(base.name)))


@grouped_options
def check(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model whose tokenizer and context length are used; no weights are read."),
    ] = None,
    *,
    reading: DataOptions,
    loading: Annotated[ModelOptions, only("max_length", "revision", "resize_embeddings")],
    examples: Annotated[int, typer.Option(help="Examples to show as the model sees them.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Detect the data's format, validate it, and show what a model would see."""
    task = read_task(data, reading)
    from tunewise.cli.views import data_check

    with progress_display() as display:
        unloaded = None
        if model is not None:
            quiet()
            from tunewise.engine.configuration import read_unloaded
            from tunewise.engine.vocabulary import fit_configuration

            unloaded = read_unloaded(model, revision=loading.revision, max_length=loading.max_length)
            fit_configuration(model, unloaded.config, unloaded.tokenizer, resize_embeddings=loading.resize_embeddings)
        display(task.name, "checking", 0, 0)
        result = data_check.check(task, unloaded, examples)
    print_result(result.to_json(), as_json, lambda: data_check.check_page(result))
