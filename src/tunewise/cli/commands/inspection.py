"""Commands that list techniques and check data; they change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from tunewise.cli.console import console, print_json, print_result, progress_display
from tunewise.cli.options import Data, Json, grouped_options, only
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
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

    base = load_model(model, ModelOptions(device="cpu"))
    with progress_display() as display:
        rows = peft_bridge.survey(base, lambda what, done, total: display(what, "trying", done, total))
    print_result(rows, as_json, lambda: techniques.peft_table(rows, base.name))


@grouped_options
def check(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model whose tokenizer and context lengths are checked with."),
    ] = None,
    *,
    reading: DataOptions,
    loading: Annotated[ModelOptions, only("max_length", "revision")],
    as_json: Json = False,
) -> None:
    """Detect the data's format, validate it, and show what a model would see."""
    task = read_task(data, reading)
    from tunewise.cli.views import data_check

    result = data_check.check(task, load_model(model, replace(loading, device="cpu")) if model else None)
    print_result(result.to_json(), as_json, lambda: data_check.check_page(result))
