"""More rows than lists of them would leave room for: reading, checking and encoding in bounded memory."""

import json
import subprocess
import sys

import pytest

import figures

ROWS = figures.of(40_000, 1_000_000)
MOST = 1_500_000_000  # bytes of a process, with a million rows of 120 characters
A_ROW, A_CHUNK = 1_250, 30_000_000  # bytes of each, and of those that are encoded at a time
# Peak memory of this process and of those that it starts, in bytes, behind the result.
MEASURED = """
import json, resource, sys
from pathlib import Path
from tunewise.engine import row_file
row_file.MOST_IN_MEMORY = 5_000

def peak():
    # Not ru_maxrss of the process itself: it starts with what the process was forked from had.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return [own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]

def check(path):
    from tunewise.cli.views.data_check import check
    from tunewise.engine.configuration import read_unloaded
    from tunewise.resolve import read_task
    return check(read_task(path), read_unloaded("world")).to_json()["counts"]

def encode(path):
    from tunewise.core.seeds import generator
    from tunewise.fitting.encoded_rows import encoded_rows
    from tunewise.resolve import load_model, read_task
    from tunewise.techniques.registry import make
    base = load_model("world")
    attachment = make("lora").resolved(base).attach(base, generator(0, "attach"))
    rows = encoded_rows(attachment, read_task(path), Path(path).with_suffix(".rows"))
    return {"rows": len(rows), "kind": type(rows).__name__, "last": rows[-1].prompt > 0}

result = {"check": check, "encode": encode}[sys.argv[1]](sys.argv[2])
print(json.dumps([result, *peak()]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of few rows and one of many; no two rows are alike."""
    made = {}
    for count in (1_000, ROWS):
        made[count] = tmp_path_factory.mktemp("rows") / f"{count}.jsonl"
        with made[count].open("w") as file:
            for row in range(count):
                how = "cold" if row % 3 else "warm"
                text = f"review {row} of the soup by the river: it was {how}, and the road to town is long"
                file.write(json.dumps({"text": text, "label": ["good", "bad", "fair"][row % 3]}) + "\n")
    return made


def measured(what, path):
    out = subprocess.run([sys.executable, "-c", MEASURED, what, path], capture_output=True, text=True, check=True)
    result, own, helpers = json.loads(out.stdout.splitlines()[-1])
    return result, own, helpers


@pytest.mark.slow
@pytest.mark.figure("R8")
@pytest.mark.timeout(figures.of(300, 7200))
@pytest.mark.parametrize("what", ["check", "encode"])
def test_memory_grows_by_the_text_of_a_row_and_little_more(files, what):
    _, few, _ = measured(what, files[1_000])
    result, many, helpers = measured(what, files[ROWS])
    assert many - few < A_ROW * ROWS + A_CHUNK and many < MOST and helpers < MOST
    if what == "check":
        assert sum(result.values()) == ROWS
    else:
        assert result == {"rows": ROWS * 8 // 10, "kind": "RowFile", "last": True}
