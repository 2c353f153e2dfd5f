"""Measures what several processes gain and cost, and the memory that a million rows take.

    uv run python benchmarks/scale.py                       # all three, on the shipped world
    uv run python benchmarks/scale.py workers --model MODEL --data DATA --workers 1,4 --steps 200
    uv run python benchmarks/scale.py ranks --model MODEL --data DATA --technique lora
    uv run python benchmarks/scale.py rows --rows 1000000

Run it on an idle machine.

workers: the wall seconds of the same comparison with one worker and with several, start and timing alone included. With
one, the trials have all cores; with N, each has its share of them, so that both use the same hardware. Both must give
the same scores where OMP_NUM_THREADS is set; without it the number of threads differs, and scores may in rounding.

ranks: the CPU seconds of a training step on two devices (processes of one thread) and on one. What starting costs is
taken away by a second, shorter run of each.

rows: the peak of memory of `check` and of a `fit` of four steps, and their CPU seconds: of the largest process, and of
all together, looked at twice a second (proportional set sizes, which divide pages among those that share them).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TECHNIQUES = "base,icl,lora,full,bitfit,last_layers,prompt_tuning,adapter"
RESULTS = Path(__file__).parent / "results" / "scale.json"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "by",
    "the",
    "old",
    "town",
    "and",
    "ran",
    "home",
    "again",
    "to",
    "sleep",
    "in",
    "warm",
    "sun",
]


WATCH = """
import json, resource, subprocess, sys, threading
from pathlib import Path
import psutil

process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
over, together = threading.Event(), [0]

def watch():
    root = psutil.Process(process.pid)
    while not over.wait(0.5):
        size = 0
        try:
            for each in (root, *root.children(recursive=True)):
                lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
                size += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, psutil.Error):  # one of them has just ended
            continue
        together[0] = max(together[0], size)

thread = threading.Thread(target=watch)
thread.start()
out = process.communicate()[0]
over.set()
thread.join()
if process.returncode:
    sys.exit(process.returncode)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([out, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0, together[0]]))
"""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and what it took: wall and CPU seconds, and bytes of its largest process and of all."""

    out: str
    seconds: float
    cpu: float
    peak: float
    together: float


def run(*words: object, **environment: str) -> Ended:
    """Run a command of tunewise in a process whose children are counted alone."""
    command = [sys.executable, "-m", "tunewise.cli", *map(str, words)]
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    out, cpu, peak, together = json.loads(process.stdout)
    return Ended(out, round(time.perf_counter() - started, 1), round(cpu, 1), peak, together)


def workers(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Run the comparison with each number of workers."""
    found = list[dict[str, object]]()
    for count in map(int, arguments.workers.split(",")):
        words = ["compare", "--model", arguments.model, "--data", arguments.data, "--out", folder / f"workers-{count}"]
        words += ["--techniques", arguments.techniques, "--budget-steps", arguments.steps, "--yes", "--json"]
        ended = run(*words, *(["--workers", count] if count > 1 else []))
        result = json.loads(ended.out)
        scores = {row["technique"]: row["score"]["mean"] for row in result["rows"] if row["status"] == "ok"}
        threads = result["machine"]["threads"]
        found.append({"workers": count, "seconds": ended.seconds, "threads": threads, "scores": scores})
        share = ended.seconds / float(str(found[0]["seconds"]))
        print(f"{count} workers: {ended.seconds} s, {share:.2f} of the first ({threads} threads each)")
    return found


def ranks(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Train on one device and on two, each twice as long again."""
    found = list[dict[str, object]]()
    for devices in (1, 2):
        cpu = list[float]()
        for steps in (arguments.steps, 3 * arguments.steps):
            words = ["fit", arguments.technique, "--model", arguments.model, "--data", arguments.data, "--json"]
            words += ["--max-steps", steps, "--devices", devices, "--out", folder / f"ranks-{devices}-{steps}"]
            cpu.append(run(*words, OMP_NUM_THREADS="1").cpu)
        step = (cpu[1] - cpu[0]) / (2 * arguments.steps)
        found.append({"devices": devices, "technique": arguments.technique, "cpu_seconds_per_step": round(step, 4)})
        share = step / float(str(found[0]["cpu_seconds_per_step"]))
        print(f"{devices} devices, {arguments.technique}: {step:.4f} CPU seconds a step, {share:.2f} of the first")
    return found


def rows(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Check and train on many rows of 120 characters."""
    data, rng = folder / "rows.jsonl", random.Random(0)
    with data.open("w", encoding="utf-8") as file:
        for number in range(arguments.rows):
            text = f"row {number} {' '.join(rng.choices(WORDS, k=22))}"
            file.write(json.dumps({"text": text, "label": "abc"[number % 3]}) + "\n")
    commands = {
        "check": ("check", "--data", data, "--json"),
        "fit": ("fit", "lora", "--model", "world", "--data", data, "--max-steps", 4, "--out", folder / "fit", "--json"),
    }
    found = list[dict[str, object]]()
    for name, words in commands.items():
        ended = run(*words, OMP_NUM_THREADS="1")
        found.append({"command": name, "rows": arguments.rows, "peak_bytes": ended.peak, "cpu_seconds": ended.cpu})
        found[-1] |= {"together_bytes": ended.together, "seconds": ended.seconds}
        print(
            f"{name} of {arguments.rows:,} rows: {ended.peak / 1e6:.0f} MB in its largest process, "
            f"{ended.together / 1e6:.0f} in all together, {ended.cpu} CPU s, {ended.seconds} s"
        )
    return found


MEASURED = {"workers": workers, "ranks": ranks, "rows": rows}


def main() -> None:
    """Measure what is asked for, and write it beside what the results have of the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="workers|ranks|rows", default=[*MEASURED], help="default: all")
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", default="world:reviews")
    parser.add_argument("--techniques", default=TECHNIQUES, help="of the comparison")
    parser.add_argument("--technique", default="lora", help="that is trained on several devices")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, the first of which is compared with")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - {*MEASURED}:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(MEASURED)}")
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    machine = {"platform": platform.platform(), "cores": os.cpu_count()}
    for what in arguments.what:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            runs = MEASURED[what](arguments, Path(folder))
        command = " ".join(["benchmarks/scale.py", *sys.argv[1:]])
        name = what if arguments.model == "world" else f"{what}, {Path(arguments.model).name}"
        results[name] = {"command": command, "machine": {**machine, "load_before": round(load, 1)}, "runs": runs}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
