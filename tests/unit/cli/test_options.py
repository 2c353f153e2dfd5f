"""Groups of options as a command's signature, and back."""

from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tunewise.cli.options import Json, Model, grouped_options, only
from tunewise.resolve import DataOptions, ModelOptions


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Annotated[int, typer.Option(help="How deep.")] = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    before: Annotated[str, typer.Option(help="First.")] = "x"
    inner: Inner = field(default_factory=Inner)
    after: Annotated[list[str] | None, typer.Option(help="Last.")] = None


@pytest.fixture
def called():
    """A command with groups, and the list of what it was called with."""
    calls = []

    @grouped_options
    def command(
        model: Model,
        outer: Outer,
        *,
        loading: Annotated[ModelOptions, only("max_length", "revision")],
        device: Annotated[str, typer.Option(help="The command's own.")] = "here",
        reading: DataOptions,
        as_json: Json = False,
    ) -> None:
        """Do nothing."""
        calls.append((model, outer, loading, device, reading, as_json))

    return command, calls


def invoke(command, *words):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_groups_stand_where_their_parameters_stood(called):
    names = [*signature(called[0]).parameters]
    assert names == [
        *("model", "before", "depth", "after", "max_length", "revision", "device"),
        *("columns", "template", "kind", "skip_bad_rows", "label_list", "metric", "judge_url", "judge_model"),
        *("as_json", "config"),
    ]
    assert called[0].__doc__ == "Do nothing."


def test_values_come_back_in_groups(called):
    command, calls = called
    words = ("-m", "m", "--depth", 5, "--after", "a", "--after", "b", "--max-length", 7, "--device", "mine")
    result = invoke(command, *words, "--metric", "f1", "--json")
    assert result.exit_code == 0, result.output
    model, outer, loading, device, reading, as_json = calls[0]
    assert (model, device, as_json) == ("m", "mine", True)
    assert outer == Outer(inner=Inner(depth=5), after=["a", "b"])
    assert loading == ModelOptions(max_length=7), "the command's own --device is none of the group"
    assert reading == DataOptions(metric="f1")


def test_defaults_are_those_of_the_groups(called):
    command, calls = called
    assert invoke(command, "-m", "m").exit_code == 0
    assert calls[0][1:3] == (Outer(after=calls[0][1].after), ModelOptions())
    assert not calls[0][1].after


def test_a_file_sets_options_inside_groups(called, tmp_path):
    command, calls = called
    (tmp_path / "run.yaml").write_text("model: m\ndepth: 4\ncolumns:\n  prompt: q\n")
    result = invoke(command, "--config", tmp_path / "run.yaml", "--depth", 6)
    assert result.exit_code == 0, result.output
    assert calls[0][1].inner.depth == 6 and calls[0][4].columns == "prompt=q"


def test_wrong_groups_are_found_when_a_command_is_declared():
    def unknown(loading: Annotated[ModelOptions, only("bogus")]) -> None: ...

    with pytest.raises(TypeError, match="ModelOptions has no option bogus"):
        grouped_options(unknown)

    @dataclass
    class Undescribed:
        nowhere: Path = Path()

    def undescribed(group) -> None: ...

    undescribed.__annotations__["group"] = Undescribed
    with pytest.raises(KeyError, match="nowhere"):
        grouped_options(undescribed)
