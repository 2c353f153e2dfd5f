"""The command lines that the page runs and shows: they parse, and nothing that is typed becomes an option."""

import shlex
from pathlib import Path

import pytest
import typer

from tunewise.cli.main import app
from tunewise.core.errors import SettingError
from tunewise.studio import commands
from tunewise.studio.commands import Choices

FULL = Choices(
    data="--data.jsonl",
    columns="text=q,label=a",
    skip_bad_rows=True,
    memory="8GB",
    time="1h",
    artifact="50MB",
    tenants=3,
    retain=True,
    forget_nothing=True,
    knowledge="docs",
    techniques=("base", "lora"),
    budget_kind="epochs",
    budget=1.5,
    test_examples=30,
    seeds=2,
    long=True,
)
BUILT = [
    commands.check(FULL),
    commands.advise(FULL),
    commands.plan(FULL),
    commands.compare(FULL, Path("runs/first"), {"rag"}),
    commands.serve({"lora": Path("runs/a/trials/lora")}, 0),
    commands.export(Path("-runs/a"), "merged", Path("out"), ["--data", FULL.data]),
    commands.push(Path("runs/a"), "me/mine", private=True, card_only=True),
]


@pytest.mark.parametrize("words", BUILT, ids=lambda words: words[0])
def test_every_command_is_one_of_the_command_line(words):
    command = typer.main.get_command(app)
    context = command.commands[words[0]].make_context(words[0], list(words[1:]), resilient_parsing=False)
    if "--data" in words:
        assert context.params["data"] == FULL.data


def test_what_is_shown_is_what_runs(tmp_path):
    words = commands.compare(FULL, tmp_path / "a b", ())
    assert shlex.split(commands.shown(words)) == ["tunewise", *words]
    assert "--json" not in commands.shown(commands.check(FULL))


def test_defaults_stay_unsaid():
    words = commands.compare(Choices(techniques=("base",)), Path("runs/x"), ())
    assert words == [
        "compare",
        "--model",
        "world",
        "--data",
        "world:reviews",
        "--out",
        "runs/x",
        "--techniques",
        "base",
    ]


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "-o", ".hidden", "a\n", "x" * 100, "<b>"])
def test_a_folder_s_name_stays_in_the_folder(name):
    with pytest.raises(SettingError, match="the name is"):
        commands.folder_name(name)


@pytest.mark.parametrize("repository", ["", "mine", "--private", "a/b/c", "a b/c", "me/-x"])
def test_a_repository_is_owner_and_name(repository):
    with pytest.raises(SettingError, match="owner/name"):
        commands.push(Path("x"), repository, private=False, card_only=False)


def test_nothing_chosen_is_said():
    with pytest.raises(SettingError, match="choose a model first"):
        commands.check(Choices(model=" "))
    with pytest.raises(SettingError, match="choose at least one technique"):
        commands.compare(Choices(techniques=()), Path("x"), ())


@pytest.mark.parametrize(
    ("techniques", "advised", "given"),
    [(("base", "lora"), False, False), (("base", "rag+lora"), False, True), ((), True, True)],
)
def test_documents_are_given_to_what_searches_them_alone(techniques, advised, given):
    choices = Choices(techniques=techniques, advised=advised, knowledge="docs")
    words = commands.compare(choices, Path("x"), {"rag", "rag+lora"})
    assert ("--knowledge" in words) is given
