"""Advice, the atlas and comparisons that follow advice, on the command line."""

import json
import shutil

import pytest

from tunewise.advice.atlas import records
from tunewise.techniques.registry import all_techniques


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(records.HOME, str(tmp_path / "home"))
    return tmp_path / "home" / "atlas"


@pytest.fixture
def bare_words(model, labels):
    return ["advise", "--model", model, "--data", labels]


@pytest.fixture
def advise_words(bare_words, tmp_path):
    """With a plan from a file, because making one takes long."""
    rows = [
        {"technique": name, "verdict": "fits", "artifact_bytes": 1000 + place, "request": {"prompt_tokens": 20.0}}
        for place, name in enumerate(all_techniques())
    ]
    plan = tmp_path / "every.json"
    plan.write_text(json.dumps({"rows": rows}))
    return [*bare_words, "--plan", plan]


def test_advice_is_shown_and_is_the_same_in_json(run, advise_words):
    page, advice = run(*advise_words), run(*advise_words, "--json").json()
    assert page.code == 0
    assert advice["summary"][0]["text"] in page.out
    assert all(change["sentence"]["text"] in page.out for change in advice["changes"])
    assert advice["rows"][0]["technique"] == advice["advised"] and advice["rows"][0]["verdict"] == "advised"
    assert advice["features"]["train"] == 42 and advice["features"]["labels"] == 2
    assert advice["features"]["base_loss"] > 0
    out = {row["technique"]: row["why"][0]["text"] for row in advice["rows"] if row["verdict"] == "out"}
    assert "source tasks" in out["mpt"]
    assert len(advice["rows"]) == 21


def test_needs_and_tenants_are_heard(run, advise_words):
    advice = run(*advise_words, "--json", "--need", "mergeable", "--tenants", 1000).json()
    out = {row["technique"] for row in advice["rows"] if row["verdict"] == "out"}
    assert {"full", "icl", "prompt_tuning"} <= out and advice["advised"] not in out


def test_documents_that_change_are_for_rag(run, advise_words, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "one.txt").write_text("the old cat is small")
    advice = run(*advise_words, "--json", "--knowledge", tmp_path / "documents", "--documents-change").json()
    assert advice["advised"] in ("rag", "rag+lora")
    assert {row["technique"] for row in advice["rows"] if row["verdict"] != "out"} == {"rag", "rag+lora"}
    assert advice["features"]["in_documents"] == 1.0


@pytest.mark.slow
def test_advice_plans_every_technique(run, bare_words):
    advice = run(*bare_words, "--json").json()
    planned = [row for row in advice["rows"] if row["verdict"] != "out"]
    assert all(row["artifact_bytes"] > 0 and row["prompt_tokens"] > 0 for row in planned)
    assert {row["technique"] for row in advice["plan"]} == {*all_techniques()}
    page = run(*bare_words, "--memory", "1GB", "--time", "1d")
    assert "memory" in page.out and page.code == 0


def test_a_plan_from_a_file_decides_what_fits(run, bare_words, refused, tmp_path):
    advise_words, plan = bare_words, tmp_path / "plan.json"
    rows = [
        {"technique": "full", "verdict": "does not fit", "reason": "it takes 12 GB", "memory": {"peak": 12e9}},
        {"technique": "lora", "verdict": "fits", "reason": None, "memory": {"peak": 3e9}, "time": {"seconds": 60.0}},
    ]
    plan.write_text(json.dumps({"rows": rows}))
    advice = run(*advise_words, "--json", "--plan", plan, "--memory", "8GB", "--time", "2h").json()
    why = {row["technique"]: " ".join(sentence["text"] for sentence in row["why"]) for row in advice["rows"]}
    assert "it takes 12 GB" in why["full"] and "3 GB of memory" in why["lora"] and "60 s" in why["lora"]
    plan.write_text('{"rows": [{"technique": 3}]}')
    assert "is no plan" in refused(*advise_words, "--plan", plan)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "24 apples"], "--memory"),
        (["--time", "soon"], "--time"),
        (["--need", "pretty"], "--need"),
        (["--need", "latency<5ms"], "cannot be predicted"),
        (["--tenants", "0"], "tenants"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--data", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_wrong_requests_are_one_line(refused, advise_words, words, message):
    assert message in refused(*advise_words, *words)


def test_the_atlas_is_listed_and_shown(run, refused):
    listed = run("atlas", "--json").json()
    assert {record["name"] for record in listed} == set(records.shipped())
    assert all(record["name"] in run("atlas").out for record in listed)
    shown = run("atlas", "show", listed[0]["name"])
    assert shown.code == 0 and listed[0]["best"] in shown.out
    assert run("atlas", "show", listed[0]["name"], "--json").json()["schema"] == 1
    assert "no record" in refused("atlas", "show", "none")


def test_published_results_are_listed_with_their_sources(run):
    listed = run("atlas", "--published", "--json").json()
    shown = run("atlas", "--published", "--wide").out
    for publication in listed:
        assert publication["url"] in shown
        assert all(table["id"] in shown for table in publication["tables"])
    assert {"technique", "model", "score"} <= {*listed[0]["tables"], *listed[1]["tables"][0]["rows"][0]}


def test_a_finished_comparison_is_added_and_counts(run, refused, compared, advise_words, home, model, tmp_path):
    out, _, result = compared
    before = run(*advise_words, "--json").json()["atlas"]["records"]
    record = run("atlas", "add", out, "--name", "mine", "--json").json()
    assert record["name"] == "mine" and (home / "mine.json").is_file()
    record = records.find("mine")
    assert {row.technique for row in record.rows} == {row["technique"] for row in result["rows"]}
    assert record.features.train == 42 and record.features.base_loss == result["rows"][0]["validation_loss"]
    assert record.features.examples == result["budget"]["steps"] * 8
    assert run(*advise_words, "--json").json()["atlas"]["records"] == before + 1
    assert "holds no comparison" in refused("atlas", "add", tmp_path)
    assert "not the model" in refused("atlas", "add", out, "--model", "world")
    (home / "mine.json").write_text('{"schema": 1}')
    assert "is no record" in refused(*advise_words)


def test_what_a_comparison_names_is_neither_run_nor_downloaded(run, refused, compared, home, tmp_path):
    result = compared[2]
    code, trace = tmp_path / "metric.py", tmp_path / "was-run"
    code.write_text(f"open({str(trace)!r}, 'w')\ndef share(prediction, references): return 1.0\n")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "report.md").write_text("")

    def theirs(**changes):
        (folder / "compare.json").write_text(json.dumps({**result, **changes}))
        return "atlas", "add", folder, "--name", "theirs", "--json"

    run(*theirs(command=[*result["command"], "--metric", f"{code}:share"]))
    assert not trace.exists()
    assert "no such model" in refused(*theirs(model={**result["model"], "name": "attacker/model"}))
    assert "not downloaded" in refused(*theirs(task={**result["task"], "source": "attacker/data"}))


def test_a_comparison_that_is_none_or_not_finished_is_refused(refused, tmp_path):
    (tmp_path / "compare.json").write_text('{"schema": 1, "rows": []}')
    assert "is not finished" in refused("atlas", "add", tmp_path)
    (tmp_path / "report.md").write_text("")
    assert "not as tunewise writes it" in refused("atlas", "add", tmp_path)


@pytest.fixture
def words(model, labels, tmp_path):
    arguments = ["compare", "--model", model, "--data", labels, "--out", tmp_path / "out", "--budget-steps", 2]
    return [*arguments, "--advised", "--techniques", "lora,full,icl,mpt,icl+lora"]


def test_an_advised_comparison_leaves_out_with_reasons(run, words, tmp_path):
    result = run(*words, "--json").json()
    rows = {row["technique"]: row for row in result["rows"]}
    assert list(rows) == ["base", "lora", "full", "icl", "mpt", "icl+lora"]
    assert rows["base"]["status"] == "ok"
    assert rows["mpt"]["status"] == "skipped" and "source tasks" in rows["mpt"]["reason"]
    ran = [name for name, row in rows.items() if row["status"] == "ok"]
    order = result["advice"]["order"]
    assert order[0] == "base" and sorted(order) == sorted(ran)
    assert all(row["reason"].startswith("not advised") for row in rows.values() if row["status"] == "skipped")
    stopped = len(ran) < 5
    assert (result["advice"]["chance"] <= 0.05) == stopped
    assert set(result["advice"]["expected"]) == set(rows) - {"base"}

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").glob("*/trial.json")}
    again = run(*words, "--json").json()
    assert again["rows"] == result["rows"] and again["advice"] == result["advice"]
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").glob("*/trial.json")}
    assert "skipped" in run("report", tmp_path / "out").out


@pytest.mark.slow
def test_one_that_was_stopped_takes_the_same_course(run, words, tmp_path):
    whole = run(*words, "--json").json()
    last = whole["advice"]["order"][-1]
    for trial in (tmp_path / "out" / "trials").glob(f"{last}-seed*"):
        shutil.rmtree(trial)
    (tmp_path / "out" / "compare.json").unlink()
    again = run(*words, "--json").json()
    assert again["advice"] == whole["advice"]
    scores = [[(row["technique"], row["status"], row.get("score")) for row in each["rows"]] for each in (whole, again)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_it_goes_on_as_it_began_whatever_the_atlas_learns_meanwhile(run, words, compared, tmp_path, caplog):
    first = run(*words, "--json").json()
    assert run("atlas", "add", compared[0], "--name", "mine").code == 0
    assert run(*words, "--json").json()["advice"] == first["advice"]
    advice = tmp_path / "out" / "advice.json"
    stored = json.loads(advice.read_text("utf-8"))
    advice.write_text(json.dumps({**stored, "mean": "all"}))
    again = run(*words, "--json")
    assert "advice.json was altered" in caplog.text and "what to expect is worked out again" in caplog.text
    assert again.code == 0 and len(again.json()["rows"]) == len(first["rows"])


def test_a_need_that_is_certain_is_not_run_for(run, words):
    result = run(*words, "--json", "--need", "mergeable").json()
    rows = {row["technique"]: row for row in result["rows"]}
    assert rows["icl"]["status"] == "skipped" and "not mergeable" in rows["icl"]["reason"]
