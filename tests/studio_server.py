"""The studio as a user starts it, in a process of its own, and a browser that has opened its address."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import comparison_result
from tunewise.studio import commands
from tunewise.studio.commands import Choices

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=\S+")


STARTED = []


class Studio:
    """A running studio; `address` has the token."""

    def __init__(self, folder, port=0):
        STARTED.append(self)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunewise.cli", "studio", "runs", "--port", str(port)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := ADDRESS.search(line):
                self.address, self.port = found[0], int(found[1])
                break
        else:
            raise AssertionError(f"the studio did not start: {self.said}")
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End it as Ctrl-C does; it must end in order."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


def stop_all():
    """End what a test that failed has left running."""
    for studio in STARTED:
        if studio.process.poll() is None:
            studio.stop()
    STARTED.clear()


@contextmanager
def running(folder, port=0):
    studio = Studio(folder, port)
    try:
        yield studio
    finally:
        if studio.process.poll() is None:
            studio.stop()


def choose(folder, **values):
    """Leave choices as a page that was used before does."""
    own = folder / "runs" / ".studio"
    own.mkdir(parents=True, exist_ok=True)
    (own / "choices.json").write_text(json.dumps(Choices(**values).to_json()), "utf-8")


def leave_job(folder, kind, words, output):
    """Leave a job that is over and printed this, as a page that was used before does."""
    job = folder / "runs" / ".studio" / "jobs" / f"{time.time_ns()}-left"
    job.mkdir(parents=True)
    record = {"kind": kind, "words": words, "target": None, "pid": 1, "born": 1.0, "started": time.time()}
    (job / "job.json").write_text(json.dumps(record), "utf-8")
    (job / "stdout").write_text(json.dumps(output), "utf-8")
    (job / "stderr").write_text("", "utf-8")


def leave_turns(folder, run, turns, broken=""):
    """Leave the chat of a comparison as a page that was used before does, and a last line that is cut short."""
    path = folder / "runs" / ".studio" / "chats" / f"{run}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns) + broken, "utf-8")


def leave_comparisons(folder, count):
    """Leave so many comparisons, run-00 and on."""
    result = json.dumps(comparison_result.comparison(comparison_result.result()).to_json())
    for number in range(count):
        run = folder / "runs" / f"run-{number:02d}"
        run.mkdir(parents=True)
        (run / "compare.json").write_text(result, "utf-8")


def leave_techniques(folder):
    leave_job(
        folder, "techniques", ["techniques", "--json"], [{"technique": name} for name in ("base", "lora", "bitfit")]
    )


def check_words(**values):
    return commands.check(Choices(**values))
