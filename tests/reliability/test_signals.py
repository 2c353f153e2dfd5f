"""Ctrl-C and SIGTERM at any moment of a real process: the conventional exit code, one line, and no traceback."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import figures
from tunewise.adaptation.fit import fit
from tunewise.cli import main
from tunewise.engine.model import load_base
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_task

pytestmark = [pytest.mark.slow, pytest.mark.figure("R10"), pytest.mark.timeout(figures.of(600, 7200))]

MOMENTS = figures.of(1, 50)
# Before the command line is there to answer, the signal itself ends the process, as it does any other.
BY_ITSELF = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: -signal.SIGTERM}


@pytest.fixture(scope="module")
def given(tmp_path_factory, save_tiny):
    """A folder with a tiny model, data and an adaptation."""
    root = tmp_path_factory.mktemp("given")
    base = load_base(save_tiny(root / "model"))
    fit(base, tiny_task(), make("lora"), root / "fitted", settings=TrainSettings(max_steps=1))
    (root / "prompts.jsonl").write_text(
        "".join(f'{{"text": "the cat {i}", "label": "{label}"}}\n' for i, label in enumerate(["old", "small"] * 9))
    )
    return root


def started(*words, **named):
    """A process whose Ctrl-C is heard, also where the tests run in the background."""
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tunewise.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heard,
        **named,
    )


def wait_for_first_line(process):
    """Wait until the interpreter, which answers Ctrl-C with a traceback, has given way to the command line."""
    for catches in (True, False):
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            caught = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16)
            if bool(caught & (1 << (signal.SIGINT - 1))) == catches:
                break
            time.sleep(0.001)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_at_random_moments(given, tmp_path, stop, cases):
    """From the first line of the command line on, imports of libraries included."""
    lines = {
        "fit": ["fit", "lora", "-m", given / "model", "-d", given / "prompts.jsonl", "--max-steps", 500, "-o"],
        "export": ["export", given / "fitted", "--to", "merged", "-o"],
        "generate": ["generate", given / "fitted", "-d", given / "prompts.jsonl", "--max-new-tokens", 200, "-o"],
    }
    begun = time.monotonic()
    assert started(*lines["export"], tmp_path / "whole").wait() == 0
    whole, chance = time.monotonic() - begun, random.Random(int(stop))
    for moment in range(MOMENTS):
        name = list(lines)[moment % len(lines)]
        process = started(*lines[name], tmp_path / str(moment))
        wait_for_first_line(process)
        time.sleep(chance.uniform(0, whole))
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        assert process.returncode in (128 + stop, BY_ITSELF[stop], 0), (name, err)
        if process.returncode == 128 + stop:
            assert re.search(rf"^(interrupted|stopped by SIGTERM); to continue: tunewise {name} ", err, re.MULTILINE), (
                err
            )
        cases.passed()


AT_THE_END = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["tunewise", "--version"]
from tunewise.cli.__main__ import main
main()
"""


def test_a_signal_while_python_ends_just_ends_it():
    """Libraries register work for the end of the process, which an interruption would break off with a traceback."""
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True)
    assert done.returncode == BY_ITSELF[signal.SIGINT] and done.stderr == "", done.stderr
    assert done.stdout.startswith("tunewise ")


THROUGH_C = """
import ctypes
import tunewise.cli.main as command_line

def app():
    run = ctypes.pythonapi.PyRun_String
    run.restype, run.argtypes = ctypes.py_object, [ctypes.c_char_p, ctypes.c_int, ctypes.py_object, ctypes.py_object]
    run(b"import os; os.kill(os.getpid(), %d)\\nfor _ in range(1000): pass", 257, {}, {})

command_line.app = app
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_an_interruption_that_passed_through_a_library_has_its_code(stop, tmp_path):
    """Libraries run Python code from C while they are imported; Python itself would then end by SIGINT."""
    (tmp_path / "sitecustomize.py").write_text(THROUGH_C % stop)
    command = [sys.executable, "-m", "tunewise.cli", "fit", "lora"]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=heard)
    assert done.returncode == 128 + stop and "to continue: tunewise fit lora" in done.stderr, done


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_server_ends_with_success_and_says_how_to_serve_again(given, stop):
    """What it had accepted is answered, so that nothing failed; a token never reaches the line."""
    process = started("serve", f"mine={given / 'fitted'}", "--port", 0, "--token", "hush-hush")
    for line in process.stderr:
        if "/v1" in line:
            break
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    last = err.splitlines()[-1]
    assert last.startswith("stopped; to serve again: tunewise serve mine=") and "hush-hush" not in err
    assert last.endswith('--token "$TUNEWISE_TOKEN"')


@pytest.mark.parametrize("words", [["--token", "hush-hush"], ["--token=hush-hush"]], ids=["two words", "one word"])
def test_a_token_never_reaches_the_line_that_continues(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["tunewise", "serve", "a b", *words])
    monkeypatch.setattr(main, "app", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 143
    said = capsys.readouterr().err
    assert said.startswith("stopped by SIGTERM; to continue: tunewise serve 'a b' --token") and "hush" not in said


def test_a_second_signal_ends_what_does_not_listen(monkeypatch):
    """The first one unwinds; the second is the kernel's."""

    def unwinding():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "app", unwinding)
    with pytest.raises(SystemExit):
        main.main()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("turned", [ImportError("initialization failed"), RuntimeError("odd"), SystemExit(1)])
def test_whatever_an_interruption_turns_into_it_is_one(monkeypatch, capsys, turned):
    """Libraries replace errors that are raised while they are imported."""

    def app():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise turned from None

    monkeypatch.setattr(sys, "argv", ["tunewise", "fit", "lora"])
    monkeypatch.setattr(main, "app", app)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
    try:
        with pytest.raises(SystemExit) as end:
            main.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted; to continue: tunewise fit lora --resume\n"
