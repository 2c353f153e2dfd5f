"""What a comparison takes beside its trials: its wall time over the sum of their training and evaluation.

    python benchmarks/overhead.py [--repeats 3]

The comparison is that of the demo on `reviews` (eight rows, the shipped model), whole: starting the worker, loading
model and data, scoring the base, writing the report. The sum is what the record says that the trials took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "overhead.json"


def measure() -> dict[str, float]:
    """Seconds of the process, of the comparison in it, and of its trials."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tunewise.cli", "demo", "--task", "reviews", "--out", folder, "--json"]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        process = time.perf_counter() - begun
    result = json.loads(done.stdout)
    trials = sum(row["spent"]["seconds"] for row in result["rows"])
    return {"process": process, "comparison": result["seconds"], "trials": trials}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs = [measure() for _ in range(options.repeats)]
    ratios = {what: statistics.median(run[what] / run["trials"] for run in runs) for what in ("process", "comparison")}
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.3f} times the sum of its trials")
    RESULTS.write_text(json.dumps({"runs": runs, "times_the_trials": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
