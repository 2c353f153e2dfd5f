"""Nothing that a file or a model says acts on the terminal, a page or a Markdown file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

import comparison_result
from tunewise.core.text import inert_markdown, visible
from tunewise.results.report.page import render_html
from tunewise.results.report.tables import markdown, picture

pytestmark = pytest.mark.figure("S9")

CODES = ["\x1b]0;owned\x07", "\x1b[2J", "\x9b2J", "\x08\x08", "\x7f", "\u202e", "\u2066", "\r"]
HOSTILE = "a" + "".join(CODES) + "b"


def acts(text: str) -> list[str]:
    """List the characters of a text that would act on a terminal; colours of rich are not expected here."""
    return [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028"]


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_spelled_out_and_json_stays_the_same_value(code):
    assert not acts(visible(code)) and visible("für 今天 👩‍👧\n\t") == "für 今天 👩‍👧\n\t"
    assert json.loads(visible(json.dumps(code, ensure_ascii=False))) == code


def test_the_console_filters_whatever_it_draws(capsys):
    from tunewise.cli.console import console, echo, print_text

    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE))
    console().print(table)
    console(stderr=True).print(HOSTILE, markup=False)
    print_text(HOSTILE)
    echo(HOSTILE, err=True)
    printed = capsys.readouterr()
    assert not acts(printed.out) and not acts(printed.err) and "u001b" in printed.out


def run(*words) -> str:
    done = subprocess.run([sys.executable, "-m", "tunewise.cli", *map(str, words)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_data_and_names_cannot_act(tmp_path):
    rows = [{"text": f"{HOSTILE} {index}", "label": f"{HOSTILE}{index % 2}"} for index in range(12)]
    path = tmp_path / "evil\x1b[2J.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    for words in (
        ["check", "--data", path],
        ["check", "--data", path, "--model", "world"],
        ["check", "--data", path, "--json"],
        ["check", "--data", path, "--columns", f"text={HOSTILE}"],
        ["check", "--data", tmp_path / HOSTILE],
        ["fit", HOSTILE, "--model", "world", "--data", path, "--out", tmp_path / "run"],
        ["eval", tmp_path / HOSTILE, "--data", path],
    ):
        assert not acts(run(*words)), words


def test_a_report_holds_no_code():
    result = comparison_result.result()
    text = json.dumps(result).replace("lora", "lo\\u001b[2Jra")
    hostile = comparison_result.Comparison.from_json(json.loads(text))
    for page in (markdown(hostile), render_html(hostile), picture(hostile, 80)):
        assert not acts(page)


@pytest.mark.parametrize(
    "text",
    ["[x](javascript:alert(1))", "![x](http://evil.example/p.png)", "<img src=x onerror=1>", "`rm -rf`", "a|b", "a\nb"],
)
def test_markdown_from_data_is_inert(text):
    inert = inert_markdown(text)
    assert not any(mark in inert.replace("\\|", "") for mark in ("](", "<", "`", "|", "\n"))
