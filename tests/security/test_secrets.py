"""The user's token reaches no file, log, report or error, whether a command ends well or is stopped."""

import pytest

import figures
from fork_server import TOKEN
from stopped_commands import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.figure("S11"), pytest.mark.timeout(900)]
SECRET = TOKEN.removeprefix("hf_").encode()


def told(life, folder):
    """Where the token is found: on the terminal, or in a file."""
    places = [name for name, text in (("stdout", life.out), ("stderr", life.err)) if SECRET in text.encode()]
    return places + [str(path) for path in folder.rglob("*") if path.is_file() and SECRET in path.read_bytes()]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_tells_the_token(lives, given, tmp_path, cases, name):
    command = COMMANDS[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    life = lives.live(command.words(given, whole), whole)
    assert life.code == 0 and not told(life, whole)
    cases.passed()
    for stop in ("SIGINT", "full"):
        for event in figures.of((life.events // 2,), range(1, life.events + 1, 5)):
            work = tmp_path / f"{stop}-{event}"
            work.mkdir()
            assert not told(lives.live(command.words(given, work), work, stop, event), work)
            cases.passed()


@pytest.mark.parametrize(
    "words",
    [
        ("push", "{given}/fitted", "me/mine"),
        ("push", "{given}/fitted", "me/mine", "--dry-run"),
        ("push", "{given}/missing", "me/mine"),
        ("fit", "lora", "-m", "no-such-org/no-such-model", "-d", "{given}/labels.jsonl", "-o", "{work}/out"),
        ("check", "-m", "{given}/model", "-d", "{given}/missing.jsonl"),
        ("techniques", "--json"),
    ],
    ids=" ".join,
)
def test_no_answer_and_no_error_tells_the_token(lives, given, tmp_path, words):
    life = lives.live([word.format(given=given, work=tmp_path) for word in words], tmp_path)
    assert life.code in (0, 1, 2) and not told(life, tmp_path)
