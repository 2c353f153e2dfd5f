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
from tunewise.results.report.charts import charts
from tunewise.results.report.label_placement import placed
from tunewise.results.report.page import number, render_html
from tunewise.results.report.png_charts import pngs
from tunewise.results.report.side_by_side import beside, differences


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
        for name in ("rank", "p_value", "spent", "curve"):
            row.pop(name, None)
        row["search"] = [
            {name: trial[name] for name in ("learning_rate", "validation_loss", "reason")} for trial in row["search"]
        ]
        if "score" in row:
            row["forgetting"] = {name: row["forgetting"][name] for name in ("nll_rise", "kl", "probe")}
            for name in ("tokens_per_second", "merges", "swappable", "usd_per_1000_requests"):
                del row["cost"][name]
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
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
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
    assert (tmp_path / "r.html").read_text("utf-8") == render_html(comparison())
    assert run(tmp_path / "one", tmp_path / "two") == 0
    assert "B − A" in capsys.readouterr().out
    assert run(tmp_path / "one", tmp_path / "two", "--html", tmp_path / "s.html") == 2
    assert "one comparison" in capsys.readouterr().err
    artifact_writer.write_json(tmp_path / "two" / "compare.json", {"rows": []})
    assert run(tmp_path / "one", tmp_path / "two") == 2
