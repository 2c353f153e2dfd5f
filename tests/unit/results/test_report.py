"""The page of a comparison: what it holds, what it leaves out, and that text from data stays text."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from markupsafe import escape

import comparison_result
from comparison_result import comparison
from tunewise.cli.console import console
from tunewise.core import artifact_writer
from tunewise.core.errors import SettingError
from tunewise.results.diagnostics import Confusion
from tunewise.results.report.answer_tables import label_tables
from tunewise.results.report.charts import charts
from tunewise.results.report.label_placement import placed
from tunewise.results.report.next_steps import next_steps
from tunewise.results.report.page import number, render_html
from tunewise.results.report.png_charts import pngs
from tunewise.results.report.side_by_side import beside, differences
from tunewise.results.report.tables import heading, markdown, next_lines, notes, rows, terminal


class Reader(HTMLParser):
    """Collects tags, and the text of headings and scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag if tag in ("h2", "h3", "script", "td", "th", "p") else self.open

    def handle_data(self, data):
        self.texts.setdefault(self.open, []).append(data)


def old(result):
    """As the first version wrote it."""
    for name in ("answers", "command"):
        del result[name]
    for name in ("summary", "needed_examples", "break_even"):
        del result["verdict"][name]
    for row in result["rows"]:
        for name in ("rank", "p_value", "spent", "curve", "lengths", "export_format"):
            row.pop(name, None)
        row["search"] = [
            {name: trial[name] for name in ("learning_rate", "validation_loss", "reason")} for trial in row["search"]
        ]
        if "score" in row:
            row["forgetting"] = {name: row["forgetting"][name] for name in ("nll_rise", "kl", "probe")}
            for name in ("tokens_per_second", "merges", "swappable", "usd_per_1000_requests"):
                del row["cost"][name]
            row["training"].pop("preparing_tokens", None)
    return result


def test_the_page_holds_everything_in_order():
    text = render_html(comparison())
    headings = [item.strip() for item in Reader(text).texts["h2"] if item.strip()]
    titles = ["Results", "Charts", "Answers to 10 test examples", "Hyperparameter search", "How to reproduce it"]
    assert [item for item in headings if item in titles] == titles
    assert text.index("Use icl") < text.index("<h2")
    for said in ("About 2,400 test examples", "icl costs less than lora up to 1,200 requests.", "diverged", "≈ 0.40"):
        assert said in text
    assert "<b>failed</b>: the loss stopped being finite" in text and "<b>skipped</b>: it needs data" in text
    assert escape("tunewise compare --model world --data 'my data.jsonl' --out runs/x -t lora") in text
    assert "a1" * 32 in text and "e9" * 32 in text


def test_it_loads_nothing_and_says_so_to_the_browser():
    tags = Reader(render_html(comparison())).tags
    links = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "srcset", "action")]
    assert links == ["data:,"]
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy and "eval" not in policy
    assert render_html(comparison()).count('id="library"') == 1


def test_hostile_text_stays_text():
    clean, text = Reader(render_html(comparison())), render_html(comparison(comparison_result.hostile()))
    found = Reader(text)
    tags = [tag for tag, _ in clean.tags]
    assert [tag for tag, _ in found.tags if tag == "script"] == [tag for tag in tags if tag == "script"]
    assert not any(tag == "img" or any(name.startswith("on") for name in attrs) for tag, attrs in found.tags)
    assert "{{7*7}}" in text and "\0" not in text
    text.encode("utf-8")
    figures = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1]
    assert not set(figures) & set("<>&\u2028\u2029")
    names = [trace["text"][0] for trace in json.loads(figures)["score-cost"][0]["data"] if "text" in trace]
    assert names and all("<" not in name and "&lt;/script" in name for name in names)


def test_a_file_of_the_first_version_still_has_its_page():
    text = render_html(comparison(old(comparison_result.result())))
    assert "Recommended: icl." in text
    for part in ("test examples</h2>", "Commands for single rows", "Further figures", 'data-chart="curves"'):
        assert part not in text
    assert 'data-chart="score-cost"' in text and "nothing searched" in text


def test_a_result_without_a_score_is_a_page_without_charts():
    result = comparison_result.result()
    result["rows"] = [row for row in result["rows"] if "score" not in row]
    result["verdict"] = {"best": None, "ties": [], "recommended": None, "reasons": ["no technique finished"]}
    result["answers"] = []
    text = render_html(comparison(result))
    assert "No verdict" in text and "Charts" not in text and "library" not in re.sub(r"(?s)<script>.*", "", text)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0.123", 0.123),
        ("+0.120", 0.12),
        ("-1.5", -1.5),
        ("0.840–0.950", 0.84),
        ("900 B", 900),
        ("24.3 kB", 24300),
        ("1.97 MB", 1.97e6),
        ("3.1 GB", 3.1e9),
        ("812", 812),
        ("350k", 350e3),
        ("3.05M", 3.05e6),
        ("1.5B", 1.5e9),
        ("lora", None),
        ("", None),
    ],
)
def test_cells_are_sorted_by_their_numbers(cell, value):
    assert number(cell) == pytest.approx(value)


def test_the_front_is_what_no_other_row_beats():
    view = charts(comparison())[0].views[0]
    front = next(series for series in view.series if series.style == "front")
    assert (front.x, front.y) == ([0.0, 23.5], [0.9, 0.9])
    result = comparison_result.result()
    result["rows"][0]["score"]["mean"] = 0.3
    front = charts(comparison(result))[0].views[0].series[0]
    assert front.x == [0.0, 1.0, 23.5] and front.y == pytest.approx([0.3, 0.83, 0.83])


def test_charts_show_trials_and_leave_out_what_is_empty():
    found = {chart.key: chart for chart in charts(comparison())}
    assert list(found) == ["score-cost", "forgetting", "curves", "costs"]
    assert [view.name for view in found["forgetting"].views] == ["validation loss", "score"]
    trails = [series for series in found["forgetting"].views[0].series if series.style == "trail"]
    assert len(trails) == len(comparison_result.TRAINED) and all(len(series.x) == 3 for series in trails)
    result = comparison_result.result()
    result["rows"] = [row for row in result["rows"] if row["family"] == "nonparametric"]
    assert [chart.key for chart in charts(comparison(result))] == ["score-cost", "costs"]


def test_labels_do_not_cover_each_other():
    view = charts(comparison())[0].views[0]
    assert len(placed(view, 900, 330)) == len(comparison_result.FAMILIES)
    assert set(placed(view, 40, 20)) == set()
    starred = [series.labels for series in view.series if series.taken]
    assert starred == [["★ icl"]] and next(iter(placed(view, 900, 330))) == "icl"


def test_pngs_of_a_hostile_result(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    result = comparison(comparison_result.hostile())
    written = pngs(result, tmp_path / "pictures")
    assert [path.name for path in written] == ["score-cost.png", "forgetting.png", "curves.png", "costs.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingError, match=r"tunewise\[plots\]"):
        pngs(result, tmp_path)


def shown(one, two, capsys):
    console().print(beside(comparison(one), comparison(two)))
    return capsys.readouterr().out


def test_beside_shows_differences_with_their_sign(capsys):
    one, two = comparison_result.result(), comparison_result.result()
    two["rows"][3]["score"]["mean"] += 0.1
    two["rows"] = [row for row in two["rows"] if row["technique"] != "krona"]
    assert differences(comparison(one), comparison(two)) == []
    text = shown(one, two, capsys)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "+0.100" in lines["full"] and "+0.000" in lines["lora"] and "–" in lines["krona"]
    assert "failed" in lines["adapter"]


def test_beside_says_first_what_cannot_be_compared(capsys):
    one, two = comparison_result.result(), comparison_result.result()
    two["model"] |= {"fingerprint": "0", "name": "[bold]other"}
    two["task"] |= {"fingerprint": "0", "metric": "f1"}
    two["budget"]["steps"], two["machine"]["cores"] = 300, 64
    lines = shown(one, two, capsys).splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["model", "task", "metric", "budget", "machine"]
    assert "[bold]other" in lines[0] and "steps: 100, 300" in lines[3] and "times and memory" in lines[4]


def test_the_command_line_writes_them(tmp_path, monkeypatch, capsys):
    from tunewise.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tunewise", "report", *map(str, words)])
        try:
            main.main()
        except SystemExit as end:
            return end.code
        return 0

    for name in ("one", "two"):
        artifact_writer.write_json(tmp_path / name / "compare.json", comparison_result.result())
    assert run(tmp_path / "one", "--html", tmp_path / "r.html", "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    assert (tmp_path / "r.html").read_text("utf-8") == render_html(comparison(), tmp_path / "one")
    assert run(tmp_path / "one", tmp_path / "two") == 0
    assert "B − A" in capsys.readouterr().out
    assert run(tmp_path / "one", tmp_path / "two", "--html", tmp_path / "s.html") == 2
    assert "one comparison" in capsys.readouterr().err
    artifact_writer.write_json(tmp_path / "two" / "compare.json", {"rows": []})
    assert run(tmp_path / "one", tmp_path / "two") == 2


def printed(result, capsys):
    console().print(terminal(result))
    return capsys.readouterr().out


def test_the_majority_row_stands_among_the_others_by_its_score(capsys):
    result = comparison(comparison_result.classification())
    names = [cells[0] for _, cells in rows(result)]
    place = names.index('majority (always "joy")')
    scores = [float(cells[1]) for _, cells in rows(result) if len(cells) > 3]
    assert scores == sorted(scores, reverse=True) and 0 < place < len(scores) - 1
    table = printed(result, capsys)
    assert all(word in table for word in ("majority", '(always "joy")', "[.40, .50]"))
    for text in (markdown(result), render_html(result).replace("&#34;", '"')):
        assert 'majority (always "joy")' in text and "0.400–0.500" in text
    assert "majority (" not in markdown(comparison())


def test_one_class_is_said_and_labels_have_their_tables(capsys):
    result = comparison(comparison_result.classification())
    note = 'krona: predicts "joy" for all test examples (in 1 of 2 seeds).'
    page = Reader(render_html(result))
    assert note in printed(result, capsys) and note in notes(result)
    cells = [text for kind in ("td", "th") for text in page.texts[kind]]
    assert "sad|ness" in cells and "0.988" in cells  # the F1 of sad|ness in full
    assert any('krona predicts "joy" for all' in text for text in page.texts["p"])
    text = markdown(result)
    assert "| anger | 0.968 | 0.750 | 0.845 | 80 |" in text and "| anger | 60 | 20 | 0 |" in text
    assert "| sad\\|ness | 2 | 0 | 80 |" in text


def test_many_labels_are_shown_by_their_most_confused_pairs():
    labels = [f"label {number}" for number in range(77)]
    answers = labels[1:] + labels[:1]
    confusion = Confusion.of(labels + labels[:1], [*answers, answers[0]])
    tables = label_tables("lora", [confusion], labels)
    assert len(tables.classes.rows) == 77 and len(tables.confusion.rows) == 15
    assert tables.confusion.rows[0] == ("label 0", "label 1", "2")
    assert "15 of 77 pairs" in tables.confusion.caption


def test_answers_that_never_ended_are_counted(capsys):
    result = comparison()
    note = "lora: 12 of 322 answers never ended (cut at 12 tokens)."
    assert note in notes(result) and note in printed(result, capsys)
    assert "| lora | 3.2 | 9 | 2.5 | 12 of 322 |" in markdown(result)
    assert "12 of 322" in render_html(result) and "Lengths of answers" in render_html(result)
    clean = comparison_result.classification()
    assert "Lengths of answers" not in render_html(comparison(clean))


def test_a_long_path_of_a_model_is_shown_by_its_last_part():
    value = comparison_result.result()
    value["model"]["name"] = "/home/someone/models/stories-3m/"
    result = comparison(value)
    assert heading(result).startswith("stories-3m (3.05M) on town")
    page = render_html(result)
    assert page.count("/home/someone") == 1  # the facts
    value["model"] |= {"name": "org/stories-3m", "revision": "abc"}
    assert heading(comparison(value)).startswith("org/stories-3m (3.05M)")


def commands(technique, folder="runs/my run", **row):
    value = comparison_result.result()
    value["verdict"]["recommended"] = technique
    next(each for each in value["rows"] if each["technique"] == technique).update(row)
    return [step.command for step in next_steps(comparison(value), folder)]


def test_the_next_steps_are_commands_for_the_recommended_row(capsys):
    found = commands("lora")
    folder = "'runs/my run/trials/lora-seed0-0123456789ab/adaptation'"
    assert found == [
        f"tunewise chat {folder}",
        f"tunewise serve {folder}",
        f"tunewise export {folder} --to merged --out 'runs/my run/exports/lora-merged'",
        f"tunewise push {folder} YOUR-NAME/world-town-lora",
    ]
    assert [line.split()[1] for line in commands("base")] == ["chat", "serve"]
    assert [line.split()[1] for line in commands("icl")] == ["chat", "serve", "push"]
    assert "--to peft" in commands("peft:ia3", export_format="peft")[2]
    assert "exports/peft-ia3-peft" in commands("peft:ia3", export_format="peft")[2]
    assert commands("lora", folder="-x")[0].startswith("tunewise chat ./-x/trials")
    assert commands("lora", folder="lr=3")[0].startswith("tunewise chat lora=lr=3/trials")
    assert commands("lora", adaptation="trials/../../x/adaptation") == []
    for text in (markdown(comparison(), "runs/x"), render_html(comparison(), "runs/x")):
        assert "tunewise chat runs/x/trials/icl-seed0-0123456789ab/adaptation" in text
    assert "tunewise chat" not in markdown(comparison()) + render_html(comparison())
    assert next_lines(comparison(), "runs/x")[0] == "Use icl:"


def test_older_files_export_to_merged_where_the_row_merges():
    value = comparison_result.result()
    value["verdict"]["recommended"] = "lora"
    for row in value["rows"]:
        row.pop("export_format", None)
    assert "--to merged" in next_steps(comparison(value), "x")[2].command


def test_hostile_labels_stay_text(capsys):
    value, evil = comparison_result.classification(), "\x1b[31m[bold]" + comparison_result.HOSTILE
    value["task"]["labels"][1] = value["majority"]["label"] = evil
    for row in value["rows"]:
        for part in row.get("confusions", ()):
            part["counts"] = {
                label.replace("joy", evil): {answer.replace("joy", evil): number for answer, number in counts.items()}
                for label, counts in part["counts"].items()
            }
    page = render_html(comparison(value))
    clean = Reader(render_html(comparison(comparison_result.classification())))
    assert [tag for tag, _ in Reader(page).tags] == [tag for tag, _ in clean.tags]
    shown_text = printed(comparison(value), capsys)
    assert "\x1b[31m" not in shown_text + page + markdown(comparison(value)) and "[bold]" in shown_text
