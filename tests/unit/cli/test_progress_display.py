"""What is shown while work runs: plain lines on a fake clock, and bars that fit a terminal."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

import comparison_result
from comparison_result import comparison
from fake_clock import Clock
from tunewise.cli.progress_display import LiveDisplay, PlainDisplay
from tunewise.cli.time_left import Tracker
from tunewise.core.progress import SCORING, TRAINING, RowStart, training_report
from tunewise.results.estimate import Estimate, RowEstimate


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def plain(clock, lines):
    return PlainDisplay(Tracker(clock), lines.append)


def wait(display, clock, seconds):
    """Let time pass as the display's own thread sees it."""
    for _ in range(round(2 * seconds)):
        clock.seconds += 0.5
        display.refresh()


def test_short_stages_have_no_line_and_long_ones_one_a_minute(plain, clock, lines):
    plain("world", "loading", 0, 0)
    wait(plain, clock, 1.5)
    assert not lines
    plain("world", "reading", 0, 0)
    wait(plain, clock, 150)
    assert lines == ["[00:00:03] world: reading", "[00:01:03] world: reading", "[00:02:03] world: reading"]


def test_a_stage_says_how_far_it_is(plain, clock, lines):
    plain("lora", TRAINING, 0, 100)
    for step in range(1, 41):
        clock.seconds += 3.0
        plain("lora", training_report(1.2341), step, 100)
    assert lines[0] == "[00:00:03] lora: training, step 1 of 100, loss 1.234; about 5 min left of this stage"
    assert lines[1] == "[00:01:03] lora: training, step 21 of 100, loss 1.234; about 4 min left of this stage"
    plain("lora", "trying 4 examples on validation", 2, 0)
    wait(plain, clock, 3)
    assert lines[-1] == "[00:02:02] lora: trying 4 examples on validation, 2"


def test_each_row_has_a_line_at_its_start_and_its_end(plain, clock, lines):
    result = comparison_result.result()
    names = [row["technique"] for row in result["rows"]]
    every = [
        RowEstimate(technique=name, preparing=0, training=60, scoring=30, forgetting=30, peak_memory_bytes=1)
        for name in names
    ]
    plain.expect(Estimate(startup=0.0, rows=tuple(every)))
    plain.row_starts(RowStart("base", 1, len(names), 1))
    plain("base", SCORING, 0, 100)
    clock.seconds += 1.0
    plain.rows(comparison({**result, "rows": result["rows"][:1]}))
    plain.row_starts(RowStart("icl", 2, len(names), 1))
    plain("icl", SCORING, 0, 100)
    clock.seconds += 190.0
    plain.rows(comparison({**result, "rows": [*result["rows"][:2], *result["rows"][-1:]]}))
    assert lines == [
        "[00:00:00] row 1 of 12, base: begins; about 24 min left",
        "[00:00:01] row 1 of 12, base: exact_match 0.900 [.84, .95] in 1.0 s",
        "[00:00:01] row 2 of 12, icl: begins; about 22 min left",
        "[00:03:11] row 2 of 12, icl: exact_match 0.830 [.77, .88] in 3 min 10 s",
        "[00:03:11] mpt: skipped: it needs data of related tasks; give them with --sources",
    ]


def test_rows_by_advice_are_counted_without_a_total(plain, lines):
    plain.row_starts(RowStart("lora", 3, None, 1))
    assert lines == ["[00:00:00] row 3, lora: begins"]


def test_a_line_holds_no_control_characters(plain, clock, lines):
    plain("a\x1b[31m\rb\n", "loading", 0, 0)
    wait(plain, clock, 3)
    assert len(lines) == 1 and lines[0].isprintable()


def test_nothing_is_written_once_it_is_closed(plain, clock, lines):
    with plain:
        plain("world", "loading", 0, 0)
    wait(plain, clock, 100)
    assert not lines


@pytest.mark.parametrize("height", [12, 24, 60])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_bars_and_table_fit_the_terminal(clock, width, height):
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    display = LiveDisplay(Tracker(clock), console)
    display.row_starts(RowStart("lora", 3, 12, 1))
    display.rows(comparison())
    display.row_starts(RowStart("full", 4, 12, 1))
    display("full", training_report(1.234), 1, 100)
    clock.seconds += 70.0
    display("full", training_report(1.234), 41, 100)
    console.print(display.drawn())
    text = console.file.getvalue()
    lines = text.splitlines()
    assert len(lines) <= height and max(map(cell_len, lines)) <= width and "…" not in text
    assert "row 4 of 12" in text and "1 min 10 s" in text
    assert "training, step 41 of 100, loss 1.234" in " ".join(text.split())
    assert "base" in text and ("further lines follow" in text) == (height <= 12 or (height == 24 and width == 60))
