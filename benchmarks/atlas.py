"""All techniques on every task of the atlas, one after another: the comparisons that advice draws on.

    python benchmarks/atlas.py [NAME ...] [--work FOLDER] [--seeds 3] [--steps 60]

NAME is MODEL.TASK, such as world.town or stories-3m.emotion; without one, all are run that WORK has data for. Models
other than the shipped one are looked for in WORK/models, tasks outside the shipped world in WORK/tasks. A comparison
that was stopped goes on where it was. What is kept of each, in results/atlas/NAME: compare.json and report.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tunewise.data import world

RESULTS = Path(__file__).parent / "results" / "atlas"
WORLD = ("town", "reviews", "skill", "records", "letters")
REAL = ("emotion", "trec6", "sst2")
NAMES = [*(f"world.{task}" for task in WORLD), *(f"stories-3m.{task}" for task in REAL)]


def words(name: str, out: Path, steps: int, seeds: int) -> list[str]:
    """The command of one comparison, as it is run in the working folder."""
    model, _, task = name.partition(".")
    arguments = ["tunewise", "compare", "--model", "world" if model == "world" else f"models/{model}"]
    arguments += ["--data", f"world:{task}" if task in WORLD else f"tasks/{task}", "--techniques", "all"]
    others = [f"tasks/{other}" for other in REAL if other != task]
    if model == "world":
        arguments += ["--retention", "world:text", "--probe", "world:memory"]
        others = [kind.source for kind in world.sources().values()]
    arguments += ["--sources", ",".join(others)]
    arguments += ["--budget-steps", str(steps), "--batch-size", "16", "--seeds", str(seeds), "--test-examples", "200"]
    return [*arguments, "--out", str(out)]


def inputs_exist(name: str, work: Path) -> bool:
    """Whether the model and the data of a comparison are at hand."""
    model, _, task = name.partition(".")
    return (model == "world" or (work / "models" / model).exists()) and (
        task in WORLD or (work / "tasks" / task).exists()
    )


def main() -> None:
    """Run, then keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    for name in options.names or [name for name in NAMES if inputs_exist(name, options.work)]:
        out = Path("runs") / name
        command = words(name, out, options.steps, options.seeds)
        print(shlex.join(command), file=sys.stderr, flush=True)
        tool = [sys.executable, "-m", "tunewise.cli", *command[1:]]
        done = subprocess.run(tool, cwd=options.work, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, check=False)
        if done.returncode:
            sys.exit(f"{name}: tunewise ended with exit code {done.returncode}")
        target = RESULTS / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("compare.json", "report.md"):
            shutil.copy(options.work / out / file, target / file)


if __name__ == "__main__":
    main()
