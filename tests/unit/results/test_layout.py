"""Tables at the widths of terminals: nothing is cut off, every row is there, and what is left out is named."""

import pytest
from rich.cells import cell_len

import comparison_result
from comparison_result import comparison
from terminal_widths import WIDTHS, printed
from tunewise.results.report.layout import Column, FittedTable, TableRow, with_interval
from tunewise.results.report.side_by_side import beside
from tunewise.results.report.tables import COLUMNS, curve_table, table, terminal

LABELS = ("rag (training examples as documents)", "peft:vera", "lora+prompt_tuning")


def check_fits(text, width, names):
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    firsts = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        assert name.split()[0] in firsts, f"the row {name} is missing"
        assert all(word in text for word in name.split()), f"the name {name} is cut"


def with_long_names():
    result = comparison_result.result()
    for row, label in zip(result["rows"][2:5], LABELS, strict=True):
        row["label"] = label
        row["cost"]["train_seconds"] = 4812.0
    return result


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits(width, wide):
    result = comparison(with_long_names())
    text = printed(terminal(result, wide=wide), width)
    check_fits(text, width, [row.label for row in result.rows])
    assert all(f"{row.score.mean:.3f} [" in text for row in result.scored)
    assert "forgot" in text and "1 h 20 min" in text
    left_out = " ".join(text.split()).partition("Further columns: ")[2].partition(": --wide")[0].split(", ")
    heads = {word for line in text.splitlines() if line.startswith("technique ") for word in COLUMNS if word in line}
    assert heads | set(filter(None, left_out)) == {*COLUMNS} - {"95 %"}
    assert ("Further columns" in text) == (width < 200 and not wide)


def test_the_figures_that_decide_come_first():
    narrow = printed(table(comparison()), 60)
    assert all(f"{name}:" in narrow for name in ("score", "forgot", "train"))
    assert "nll:" not in narrow and "nll" in narrow
    at_80 = printed(table(comparison()), 80)
    assert all(f"{name}:" in at_80 for name in ("score", "forgot", "train", "memory", "on disk"))


@pytest.mark.parametrize("width", WIDTHS)
def test_two_comparisons_fit(width):
    one, two = comparison(with_long_names()), comparison()
    text = printed(beside(one, two), width)
    check_fits(text, width, [row.technique for row in one.rows])
    assert "B − A" in text


def test_a_curve_fits():
    point = {"alpha": 0.25, "score": 0.5, "nll": 1.0, "nll_rise": 0.1, "kl": 0.2}
    text = printed(curve_table([point, {**point, "alpha": 1.0}], "sentence_bleu"), 60)
    check_fits(text, 60, ["0.25", "1"])
    assert "sentence_bleu" in text and "Further" not in text


@pytest.mark.parametrize("width", [20, 30, 60, 200])
def test_prose_is_a_column_where_there_is_room_and_follows_below_otherwise(width):
    columns = (Column("technique", kind="words"), Column("gain"), Column("why", kind="prose"))
    why = "it has the highest score in four of the five recorded comparisons that resemble this one"
    text = printed(FittedTable(columns, [TableRow(["lora", "0.51", why])]), width)
    check_fits(text, width, ["lora"])
    assert set(why.split()) <= set(text.split())
    assert ("lora: it has" in text) == (width < 60)


def test_a_name_longer_than_the_terminal_is_folded_and_kept():
    name = "icl+" + "prompt_tuning+" * 4 + "lora"
    text = printed(FittedTable((Column("technique", kind="words"), Column("score")), [TableRow([name, "0.5"])]), 30)
    assert max(map(cell_len, text.splitlines())) <= 30 and "…" not in text
    assert "".join(text.replace("technique", "").replace("score", "").replace("0.5", "").split()) == name


def test_an_interval_is_short():
    assert with_interval(0.562, 0.49, 0.63) == "0.562 [.49, .63]"
    assert with_interval(0.056, 0.049, 0.064, 3) == "0.056 [.049, .064]"
    assert with_interval(1.0, 0.978, 1.0) == "1.000 [.98, 1.00]"
    assert with_interval(-0.02, -0.05, 10.0) == "-0.020 [-.05, 10.00]"
