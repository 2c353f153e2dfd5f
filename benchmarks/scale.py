"""Times the same comparison with one worker and with several, each on the same cores.

    uv run python benchmarks/scale.py                       # eight rows on the shipped world, one and two workers
    uv run python benchmarks/scale.py --model MODEL --data DATA --workers 1,4 --steps 200

Run it on an idle machine. With one worker the trials have all cores; with N, each has its share of them, so that both
use the same hardware. Wall seconds are those of the whole command, start and timing alone included. Both must give the
same scores where OMP_NUM_THREADS is set; without it the number of threads differs, and scores may differ in rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = "base,icl,lora,full,bitfit,last_layers,prompt_tuning,adapter"
RESULTS = Path(__file__).parent / "results" / "scale.json"


def timed(arguments: argparse.Namespace, workers: int, folder: Path) -> dict[str, object]:
    """Run the comparison with so many workers; return what it took and what it found."""
    words = ["compare", "--model", arguments.model, "--data", arguments.data, "--out", folder / f"workers-{workers}"]
    words += ["--techniques", arguments.techniques, "--budget-steps", arguments.steps, "--yes", "--json"]
    words += ["--workers", workers] if workers > 1 else []
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "tunewise.cli", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - started
    result = json.loads(process.stdout)
    return {
        "workers": workers,
        "seconds": round(seconds, 1),
        "threads": result["machine"]["threads"],
        "scores": {row["technique"]: row["score"]["mean"] for row in result["rows"] if row["status"] == "ok"},
    }


def main() -> None:
    """Time one and several workers in turn, and write both to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="world")
    parser.add_argument("--data", default="world:reviews")
    parser.add_argument("--techniques", default=ROWS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, the first of which is compared with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [timed(arguments, int(count), Path(folder)) for count in arguments.workers.split(",")]
    first = float(str(runs[0]["seconds"]))
    for run in runs:
        share = float(str(run["seconds"])) / first
        print(f"{run['workers']} workers: {run['seconds']} s, {share:.2f} of the first ({run['threads']} threads each)")
    found = {
        "command": " ".join(["benchmarks/scale.py", *sys.argv[1:]]),
        "machine": {"platform": platform.platform(terse=True), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
