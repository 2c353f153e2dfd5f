"""Makes the package's atlas of finished comparisons.

    python benchmarks/atlas_pack.py --work FOLDER [RUNS ...]

RUNS are folders whose sub-folders hold compare.json, by default results/atlas; FOLDER is where the comparisons were
run, with the models and tasks that their commands name. A record that is there already is made again only when its
comparison is newer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tunewise.advice.atlas.from_comparison import pack
from tunewise.advice.atlas.records import SHIPPED, add, comparison
from tunewise.advice.atlas.schema import read
from tunewise.core.errors import TunewiseError

RESULTS = Path(__file__).parent / "results" / "atlas"


def main() -> None:
    """Pack what is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, default=[RESULTS], metavar="RUNS")
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--suffix", default="", help="added to the names, for a second comparison of the same two")
    options = parser.parse_args()
    failed = 0
    for folder in sorted(path.parent for runs in options.runs for path in runs.glob("*/compare.json")):
        name = folder.name + options.suffix
        record_path = SHIPPED / f"{name}.json"
        try:
            if record_path.is_file() and read(record_path).provenance.created == comparison(folder).created:
                continue
            print(add(pack(folder.absolute(), work=options.work, name=name), SHIPPED), flush=True)
        except TunewiseError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
