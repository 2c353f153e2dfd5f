"""More rows than lists of them would leave room for: reading, checking and encoding in bounded memory."""

import json
import subprocess
import sys

import pytest

import figures

ROWS = figures.of(40_000, 1_000_000)
COLUMNS = {"text": "string", "label": "string"}
A_ROW = 320  # bytes of each: its hashes, and where it is; a row of 120 characters is one kilobyte as objects
# For each command the bytes of what it holds at a time, whatever the number of rows, and of its process at most.
CHUNK = {"check": 12_000_000, "check with a model": 30_000_000, "encode": 30_000_000}
MOST = {"check": 450_000_000, "check with a model": 900_000_000, "encode": 900_000_000}
# Peak memory of this process and of those that it starts, in bytes, behind the result.
MEASURED = """
import json, resource, sys
from pathlib import Path
from tunewise.data import example_collection
example_collection.MOST_IN_MEMORY = 5_000

def peak():
    # Not ru_maxrss of the process itself: it starts with what the process was forked from had.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return [own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]

def check(path):
    from tunewise.cli.views.data_check import check
    from tunewise.resolve import read_task
    return check(read_task(path)).to_json()["counts"]

def check_with_model(path):
    from tunewise.cli.views.data_check import check
    from tunewise.engine.configuration import read_unloaded
    from tunewise.resolve import read_task
    return check(read_task(path), read_unloaded("world")).to_json()["counts"]

def encode(path):
    from tunewise.core.seeds import generator
    from tunewise.engine import row_file
    from tunewise.fitting.encoded_rows import encoded_rows
    from tunewise.resolve import load_model, read_task
    from tunewise.techniques.registry import make
    row_file.MOST_IN_MEMORY = 5_000
    base = load_model("world")
    attachment = make("lora").resolved(base).attach(base, generator(0, "attach"))
    rows = encoded_rows(attachment, read_task(path), Path(path).with_suffix(".rows"))
    return {"rows": len(rows), "kind": type(rows).__name__, "last": rows[-1].prompt > 0}

commands = {"check": check, "check with a model": check_with_model, "encode": encode}
result = commands[sys.argv[1]](sys.argv[2])
print(json.dumps([result, *peak()]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of few rows and one of many, in each form; no two rows are alike."""
    import pyarrow
    import pyarrow.parquet

    made = {}
    for count in (1_000, ROWS):
        folder = tmp_path_factory.mktemp("rows")
        for ending in ("jsonl", "csv", "parquet"):
            made[count, ending] = folder / f"{count}.{ending}"
        with (
            made[count, "jsonl"].open("w") as lines,
            made[count, "csv"].open("w") as cells,
            pyarrow.parquet.ParquetWriter(made[count, "parquet"], pyarrow.schema(COLUMNS)) as parquet,
        ):
            cells.write("text,label\n")
            for start in range(0, count, 1_000):
                rows = [row_of(number) for number in range(start, start + 1_000)]
                lines.writelines(json.dumps(row) + "\n" for row in rows)
                cells.writelines(f'"{row["text"]}",{row["label"]}\n' for row in rows)
                parquet.write_table(pyarrow.Table.from_pylist(rows), row_group_size=1_000)
    return made


def row_of(number):
    how = "cold" if number % 3 else "warm"
    text = f"review {number} of the soup by the river: it was {how}, and the road to town is long"
    return {"text": text, "label": ["good", "bad", "fair"][number % 3]}


def measured(what, path):
    out = subprocess.run([sys.executable, "-c", MEASURED, what, path], capture_output=True, text=True, check=True)
    result, own, helpers = json.loads(out.stdout.splitlines()[-1])
    return result, own, helpers


@pytest.mark.slow
@pytest.mark.figure("R8")
@pytest.mark.timeout(figures.of(300, 7200))
@pytest.mark.parametrize(
    ("what", "ending"),
    [("check", "jsonl"), ("check", "csv"), ("check", "parquet"), ("check with a model", "jsonl"), ("encode", "jsonl")],
)
def test_memory_grows_by_the_hashes_of_a_row_and_little_more(files, what, ending):
    _, few, _ = measured(what, files[1_000, ending])
    result, many, helpers = measured(what, files[ROWS, ending])
    assert many - few < A_ROW * ROWS + CHUNK[what] and many < MOST[what] and helpers < MOST[what]
    if what == "encode":
        assert result == {"rows": ROWS * 8 // 10, "kind": "RowFile", "last": True}
    else:
        assert sum(result.values()) == ROWS
