"""Commands that look and change nothing: the techniques there are, and what a model would see of some data."""

from __future__ import annotations

from typing import Annotated

import typer

from tunewise.cli.console import console, print_json, progress
from tunewise.cli.options import Columns, Config, Data, Json, MaxLength, Metric, Revision, Template
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.resolve import load_model, read_task


def techniques(
    name: Annotated[str | None, typer.Argument(help="One technique, in depth.")] = None,
    peft: Annotated[bool, typer.Option("--peft", help="PEFT's own methods, each tried on a model.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that --peft tries them on.")] = "world",
    as_json: Json = False,
) -> None:
    """The taxonomy of techniques as a tree, one technique in depth, or what PEFT's own methods do on a model."""
    from tunewise.cli.views import techniques

    if peft:
        if name is not None:
            raise SettingError("--peft lists all of PEFT's methods; leave the name out")
        _survey(model, as_json)
        return
    if as_json:
        print_json(techniques.facts(name))
    else:
        console().print(techniques.tree() if name is None else techniques.page(name))


def _survey(model: str, as_json: bool) -> None:
    quiet()
    from tunewise.cli.views import techniques
    from tunewise.techniques import peft_bridge

    base = load_model(model, None, "float32", "cpu", None)
    with progress() as show:
        rows = peft_bridge.survey(base, lambda what, done, total: show(what, "trying", done, total))
    if as_json:
        print_json(rows)
    else:
        console().print(techniques.peft_table(rows, base.name))


def check(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model whose tokenizer and window the lengths are for."),
    ] = None,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Detect the data's format, validate it, and show what a model would see."""
    task = read_task(data, columns, template, metric)
    from tunewise.cli.views import data_check

    found = data_check.check(task, load_model(model, revision, "float32", "cpu", max_length) if model else None)
    if as_json:
        print_json(found)
    else:
        console().print(data_check.check_page(found))
