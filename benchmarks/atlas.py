"""Makes the package's atlas: the recorded comparisons that advice draws on, one record for each job.

    python benchmarks/atlas.py --work FOLDER [--list] [--limit N] [JOB ...]
    python benchmarks/atlas.py --work FOLDER --stale

FOLDER holds `models/` and `tasks/`, with the names of `TASKS`; the tasks that are missing there are made of others or
left out. Jobs are run in the order of `--list`, the most informative first, and each takes minutes to hours on a CPU.
What is done is skipped, and a job that was stopped goes on where it was: `compare` keeps its trials in FOLDER/runs/JOB.
A finished job is a file of `src/tunewise/advice/atlas/measured`, with the command, the versions and the machine.
`--stale` runs the recorded command of every record again that has rows of before a technique's defaults changed. When
records have changed, `python benchmarks/advice.py --learn` learns the variances again and writes the page's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewise.advice.atlas.from_comparison import pack
from tunewise.advice.atlas.records import SHIPPED, add, shipped
from tunewise.advice.atlas.schema import Record
from tunewise.advice.atlas.staleness import stale_rows

MODEL = "smollm2-135m"
CORE = ("base", "lora", "full", "icl", "last_layers", "prompt_tuning", "prefix_tuning", "adapter", "bitfit", "qlora")
REST = (
    *("adalora", "dylora", "krona", "p_tuning", "lst", "fish_mask", "lt_sft", "diff_pruning", "threshold_mask"),
    *("pasta", "mpt", "rag"),
)
WITH_DOCUMENTS = ("rag", "rag+lora")
SIZED = ("trec6", "e2e_nlg", "sst2")  # tasks that are asked for at several sizes of training data
SIZES = (24, 200, 2000)
SOURCES = ("emotion", "sst2", "trec6")  # other tasks, for what learns from them first


@dataclass(frozen=True)
class TaskOfAtlas:
    """One task: where its data is, and how many test examples are scored."""

    data: str
    tests: int
    documents: bool = False
    options: tuple[str, ...] = ()


TASKS = {
    "trec6": TaskOfAtlas("tasks/trec6", 200),
    "e2e_nlg": TaskOfAtlas("tasks/e2e_nlg", 60),
    "xquad": TaskOfAtlas("tasks/xquad", 100, documents=True),
    "gsm8k": TaskOfAtlas("tasks/gsm8k", 60),
    "titles": TaskOfAtlas("tasks/titles", 200),  # 48 labels: the article that a question is about
    "turns": TaskOfAtlas("tasks/turns", 40, options=("--max-length", "1024")),  # conversations of several turns
    "sst2": TaskOfAtlas("tasks/sst2", 200),
    "emotion": TaskOfAtlas("tasks/emotion", 200),
    "town": TaskOfAtlas("world:town", 100, documents=True),  # facts that no model can know
    "records": TaskOfAtlas("world:records", 60),
}


@dataclass(frozen=True)
class Job:
    """One comparison."""

    task: str
    train: int | None
    steps: int
    techniques: tuple[str, ...]
    model: str = MODEL

    @property
    def name(self) -> str:
        """MODEL.TASK-TRAIN.STEPS, which is the record's name."""
        return f"{self.model}.{self.task}{f'-{self.train}' if self.train else ''}.{self.steps}"

    @property
    def data(self) -> str:
        """The data, sampled to the number of training examples."""
        return TASKS[self.task].data + (f"#{self.train}" if self.train else "")

    def words(self, batch: int, search: int) -> list[str]:
        """The command, as it is run in the working folder."""
        task = TASKS[self.task]
        sources = [TASKS[other].data for other in SOURCES if other != self.task]
        words = ["tunewise", "compare", "--model", f"models/{self.model}", "--data", self.data, *task.options]
        words += ["--techniques", ",".join(self.techniques), "--budget-steps", str(self.steps)]
        words += ["--batch-size", str(batch), "--search", str(search), "--test-examples", str(task.tests)]
        words += [
            "--validation-examples",
            "64",
            *(["--sources", ",".join(sources)] if "mpt" in self.techniques else []),
        ]
        return [*words, "--out", f"runs/{self.name}"]


def jobs() -> Iterator[Job]:
    """Every job, the most informative first.

    At 60 steps first each kind of task with the techniques that are most often chosen, and the smallest and largest
    data; then 300 steps; then the other techniques, which are added to the comparisons of 60 steps.
    """
    few, some, many = SIZES
    first = [("e2e_nlg", many), ("trec6", few), ("xquad", None), ("gsm8k", many), ("titles", None), ("trec6", many)]
    first += [("e2e_nlg", few), ("turns", None), ("sst2", many), ("sst2", few), ("emotion", many), ("town", None)]
    first += [("records", None), *((task, some) for task in SIZED)]
    for steps in (60, 300):
        for task, train in first:
            yield Job(task, train, steps, _core(task))
    for task, train in first:
        extra = [name for name in REST if name not in WITH_DOCUMENTS or not TASKS[task].documents]
        yield Job(task, train, 60, (*_core(task), *extra))


def _core(task: str) -> tuple[str, ...]:
    return (*CORE, *(WITH_DOCUMENTS if TASKS[task].documents else ()))


def is_done(job: Job) -> bool:
    """Whether the package has a record of a job, with all of its techniques."""
    record = shipped().get(job.name)
    return record is not None and set(job.techniques) <= {row.technique for row in record.rows}


def make_tasks(work: Path) -> None:
    """Make the tasks that are made of others: `titles` of xquad, and `turns` of conversations in FOLDER/formats."""
    folder, xquad = work / "tasks" / "titles", work / "tasks" / "xquad"
    if xquad.is_dir() and not folder.exists():
        folder.mkdir()
        for split in ("train", "validation", "test"):
            rows = [json.loads(line) for line in (xquad / f"{split}.jsonl").read_text("utf-8").splitlines()]
            lines = [json.dumps({"text": row["question"], "label": row["title"]}) for row in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    folder, conversations = work / "tasks" / "turns", work / "formats" / "glaive_toolcall_en_demo.json"
    if conversations.is_file() and not folder.exists():
        folder.mkdir()
        rows = json.loads(conversations.read_text("utf-8"))
        (folder / "train.json").write_text(json.dumps(rows), "utf-8")


def has_inputs(job: Job, work: Path) -> bool:
    """Whether the model and the data of a job are at hand."""
    data = TASKS[job.task].data
    return (work / "models" / job.model).exists() and (data.startswith("world:") or (work / data).exists())


def run(words: list[str], name: str, work: Path) -> None:
    """Run a comparison, and make its record."""
    print(shlex.join(words), file=sys.stderr, flush=True)
    tool = [sys.executable, "-m", "tunewise.cli", *words[1:]]
    done = subprocess.run(tool, cwd=work, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, check=False)
    if done.returncode:
        sys.exit(f"{name}: tunewise ended with exit code {done.returncode}")
    print(add(pack((work / "runs" / name).absolute(), work=work, name=name), SHIPPED), flush=True)


def again(record: Record) -> list[str]:
    """The recorded command of a record, into a folder of its name."""
    words = shlex.split(record.provenance.command)
    words[words.index("--out") + 1] = f"runs/{record.name}"
    return words


def main() -> None:
    """Run what is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="JOB", help="jobs by name; default: all")
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--list", action="store_true", help="list the jobs and whether they are done")
    parser.add_argument("--limit", type=int, help="stop after so many jobs")
    parser.add_argument("--stale", action="store_true", help="make stale records anew")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--search", type=int, default=1, help="trainings that the search of each technique may cost")
    parser.add_argument("--model", default=MODEL, help="a folder of WORK/models")
    parser.add_argument("--steps", type=int, help="steps in place of 60 and 300, for trying it out")
    parser.add_argument("--techniques", help="techniques in place of the jobs' own, for trying it out")
    options = parser.parse_args()
    make_tasks(options.work)
    wanted = list[tuple[str, list[str]]]()
    if options.stale:
        stale = [record for record in shipped().values() if stale_rows(record)]
        wanted = [(record.name, again(record)) for record in stale if not options.names or record.name in options.names]
    else:
        for job in jobs():
            chosen = tuple(options.techniques.split(",")) if options.techniques else job.techniques
            job = Job(job.task, job.train, options.steps or job.steps, chosen, options.model)
            state = "done" if is_done(job) else "to do" if has_inputs(job, options.work) else "without its inputs"
            if options.list:
                print(f"{state:20}{job.name:40}{len(job.techniques)} techniques")
            if state == "to do" and (not options.names or job.name in options.names):
                wanted.append((job.name, job.words(options.batch_size, options.search)))
    if options.list:
        for name, words in wanted if options.stale else ():
            print(f"{name}: {shlex.join(words)}")
        return
    for name, words in wanted[: options.limit]:
        run(words, name, options.work)


if __name__ == "__main__":
    main()
