"""Processes that the page starts, and comparisons that it finds in a folder."""

import json
import os
import time

import pytest

import comparison_result
import studio_server
from tunewise.core.errors import SettingError
from tunewise.core.lock import lock
from tunewise.results.report.charts import charts
from tunewise.studio.jobs import Jobs, lives
from tunewise.studio.runs import Runs, live_curves, with_live_curves
from tunewise.studio.workspace import Workspace


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs")


@pytest.fixture
def root(tmp_path):
    """A folder with a comparison that is over, and one whose second row was begun."""
    text = json.dumps(comparison_result.comparison(comparison_result.result()).to_json())
    for name in ("done", "begun"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "compare.json").write_text(text, "utf-8")
    (tmp_path / "runs" / "done" / "report.html").write_text("", "utf-8")
    trial = tmp_path / "runs" / "begun" / "trials" / "icl+lora-seed1-0123456789ab"
    trial.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": 3 / step}) for step in range(1, 1001)]
    (trial / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 10']), "utf-8")
    return tmp_path / "runs"


def ended(job):
    for _ in range(600):
        if not job.is_running:
            return job
        time.sleep(0.1)
    raise AssertionError("the job did not end")


def test_a_job_is_found_again_with_its_result(jobs):
    job = ended(jobs.start("techniques", ["techniques", "lora", "--json"]))
    assert job.state == "done"
    again = Jobs(jobs.folder).latest("techniques")
    assert again.state == "done" and again.record == job.record
    assert again.output() == job.output()
    assert job.result()["technique"] == "lora"


def test_a_job_that_fails_says_why(jobs):
    job = ended(jobs.start("check", ["check", "--data", "nowhere.jsonl", "--json"]))
    assert job.state == "failed" and "nowhere.jsonl" in job.problem
    assert Jobs(jobs.folder).latest("check").state == "failed"
    assert job.result() is None


def test_a_number_of_another_process_is_not_the_job(jobs):
    assert lives(os.getpid()) and not lives(os.getpid(), born=1.0)


def test_comparisons_are_found_as_they_stand(root):
    runs = Runs(root, Jobs(root / ".studio" / "jobs"))
    assert {run.name: run.state for run in runs.all()} == {"done": "finished", "begun": "stopped"}
    assert runs.find("../" + root.name) is None and runs.find("") is None and runs.find("none") is None
    first = runs.find("done").result
    assert runs.find("done").result is first, "what has not changed is not read again"
    with lock(root / "begun"):
        assert runs.find("begun").state == "running"
    assert runs.find("begun").state == "stopped"


@pytest.mark.parametrize("named", ["a live one", "-5", "0", "9" * 20, "no number"])
def test_a_process_that_a_file_names_is_not_taken_for_the_comparison_s(root, named):
    """It would be shown as running, and ended by Stop."""
    (root / "begun" / ".lock").touch()
    (root / "begun" / ".lock-holder").write_text(str(os.getpid()) if named == "a live one" else named)
    assert Runs(root, Jobs(root / ".studio" / "jobs")).find("begun").state == "stopped"


def test_the_words_of_a_file_are_shown_and_never_run(root):
    """They could name a metric of a stranger, another model, or another folder."""
    path = root / "begun" / "compare.json"
    words = ["tunewise", "compare", "--metric", "steal.py:share", "--out", "/elsewhere"]
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"command": words}), "utf-8")
    run = Runs(root, Jobs(root / ".studio" / "jobs")).find("begun")
    assert run.state == "stopped" and run.words == words[1:] and not run.may_continue


def test_one_bad_folder_is_left_out_and_one_bad_file_is_not_waited_for(root):
    bad = root / os.fsdecode(b"bad\xff")
    bad.mkdir()
    (bad / "compare.json").write_text("{}", "utf-8")
    (root / "link").symlink_to(root / "done")
    runs = Runs(root, Jobs(root / ".studio" / "jobs"))
    assert {run.name for run in runs.all()} == {"done", "begun"}
    (metrics,) = root.glob("begun/trials/*/metrics.jsonl")
    metrics.unlink()
    os.mkfifo(metrics)
    assert live_curves(runs.find("begun")) == []


def test_a_word_that_no_command_can_have_is_refused(jobs):
    with pytest.raises(SettingError, match="NUL"):
        jobs.start("check", ["check", "--data", "a\0b"])


def test_open_pages_have_choices_of_their_own(tmp_path):
    studio_server.leave_techniques(tmp_path)
    workspace = Workspace(tmp_path / "runs")
    one, other = workspace.opened(), workspace.opened()
    one.choose(data="one.jsonl")
    other.choose(techniques=("base",))
    assert one.choices.data == "one.jsonl" and other.choices.data == "world:reviews"
    assert one.jobs is other.jobs and one.runs is other.runs
    assert workspace.opened().choices.techniques == ("base",), "the newest are those of the next page"


def test_what_searches_documents_is_known_by_its_settings(tmp_path):
    assert "lora" in Workspace(tmp_path / "runs").searching(), "until they are listed, none is ruled out"
    listed = [{"technique": "lora", "settings": []}, {"technique": "rag", "settings": [{"name": "knowledge"}]}]
    studio_server.leave_job(tmp_path, "techniques", ["techniques", "--json"], listed)
    assert Workspace(tmp_path / "runs").searching() == {"rag", "rag+lora"}


def test_a_comparison_that_was_refused_is_listed_with_its_reason_and_a_removed_one_is_not(root):
    jobs = Jobs(root / ".studio" / "jobs")
    words = ["compare", "--model", "world", "--data", "nowhere.jsonl", "--out", str(root / "refused")]
    ended(jobs.start("compare", words, target=root / "refused"))
    ended(jobs.start("compare", ["compare", "--help"], target=root / "removed"))
    found = {run.name: run for run in Runs(root, jobs).all()}
    assert found["refused"].state == "failed" and "nowhere.jsonl" in found["refused"].problem
    assert found["refused"].words == words and "removed" not in found


def test_a_damaged_comparison_says_so(root):
    (root / "done" / "compare.json").write_text("{}", "utf-8")
    run = Runs(root, Jobs(root / "jobs")).find("done")
    assert run.result is None and "compare.json" in run.problem


def test_a_running_trial_is_drawn_into_the_report_s_curves(root):
    run = Runs(root, Jobs(root / "jobs")).find("begun")
    (curve,) = live_curves(run)
    assert (curve.technique, curve.seed, curve.steps[-1]) == ("icl+lora", 1, 1000) and len(curve.steps) <= 200
    before = charts(run.result)
    after = with_live_curves(before, [curve])
    assert [chart.key for chart in after] == [chart.key for chart in before]
    drawn = next(chart for chart in after if chart.key == "curves").views[0].series
    assert drawn[-1].name == "icl+lora (running)"
    assert [chart.key for chart in with_live_curves([], [curve])] == ["curves"]


def test_choices_are_kept(tmp_path):
    studio_server.leave_techniques(tmp_path)
    workspace = Workspace(tmp_path / "runs")
    assert workspace.technique_names()[:3] == ["base", "lora", "bitfit"]
    workspace.choose(data="mine.jsonl", techniques=("base",))
    again = Workspace(tmp_path / "runs")
    assert (again.choices.data, again.choices.techniques) == ("mine.jsonl", ("base",))
    (tmp_path / "runs" / ".studio" / "choices.json").write_text("[]", "utf-8")
    assert Workspace(tmp_path / "runs").choices.data == "world:reviews"
    assert workspace.new_name() == "mine"
    (tmp_path / "runs" / "mine").mkdir()
    assert workspace.new_name() == "mine-2"
