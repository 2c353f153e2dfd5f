"""The page in a browser: it draws, sorts, filters and fits, asks the network for nothing, and runs no text of data."""

import pytest

import chromium
import comparison_result
from tunewise.results.report.page import render_html

SCORES = "[...document.querySelector('#table').tBodies[0].rows].map((row) => row.cells[1].textContent)"

pytestmark = chromium.MARKS


@pytest.fixture(scope="module")
def browser():
    with chromium.started() as started:
        yield started


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of a result; whatever the page complains of or asks for fails the test when it is over."""
    trouble, contexts = [], []

    def opened(result, width=1280, **options):
        file = tmp_path / "report.html"
        file.write_text(render_html(comparison_result.comparison(result)), "utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: trouble.append(request.url) if request.url != file.as_uri() else None)
        contexts[-1].route(lambda address: address != file.as_uri(), lambda route: route.abort())
        tab.goto(file.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert trouble == []


def test_every_chart_is_drawn(show):
    tab = show(comparison_result.result())
    for key in ("score-cost", "forgetting", "curves", "costs"):
        marks = tab.locator(f"figure[data-chart={key}] svg.main-svg :is(.trace.scatter, .trace.bars)")
        assert marks.count() >= len(comparison_result.TRAINED)
    figure = tab.locator("figure[data-chart=score-cost]")
    assert figure.locator(".errorbar").count() == len(comparison_result.FAMILIES)
    figure.locator("select").select_option(label="prompt tokens")
    tab.wait_for_function("() => document.querySelector('.xtitle').textContent === 'prompt tokens'")


def test_a_chart_is_saved_as_a_picture(show):
    tab = show(comparison_result.result())
    tab.locator("figure[data-chart=costs] .plot").hover()
    with tab.expect_download() as saved:
        tab.locator("figure[data-chart=costs] .modebar-btn").click()
    assert saved.value.suggested_filename == "costs-0.png"


def test_the_table_is_sorted_by_click_and_by_keyboard(show):
    tab = show(comparison_result.result())
    best_first = tab.evaluate(SCORES)
    assert best_first == sorted(best_first, reverse=True)
    head = tab.locator("#table thead th").nth(1)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and tab.evaluate(SCORES) == best_first[::-1]
    disk = tab.locator("#table thead th", has_text="on disk")
    disk.locator("button").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate(SCORES) == best_first and head.get_attribute("aria-sort") == "none"
    tab.keyboard.press("Space")
    assert disk.get_attribute("aria-sort") == "descending" and tab.evaluate(SCORES) == best_first[::-1]
    tab.locator("#table thead th button").first.click()
    assert tab.locator("#table tbody tr").first.inner_text().startswith("base")
    assert tab.locator("#table tbody tr").last.inner_text().startswith("mpt")


def test_the_table_is_filtered(show):
    tab = show(comparison_result.result())
    visible = tab.locator("#table tbody tr:visible")
    tab.locator("#find").fill("LAST")
    assert visible.count() == 1 and visible.inner_text().startswith("last_layers")
    tab.locator("#find").fill("")
    tab.locator("#family").select_option("additive")
    assert visible.count() == 3 and tab.locator("#counted").inner_text() == "3 of 12 rows"


@pytest.mark.parametrize("result", [comparison_result.result, comparison_result.hostile], ids=["made", "hostile"])
def test_a_phone_needs_no_sideways_scroll(show, result):
    tab = show(result(), 375)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 375
    assert tab.evaluate("(box => box.scrollWidth > box.clientWidth)(document.querySelector('.scroll'))")


def test_dark_is_dark_in_the_charts_too(show):
    tab = show(comparison_result.result(), color_scheme="light")
    ink = "getComputedStyle(document.querySelector('.xtitle')).fill"
    back = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ink), tab.evaluate(back)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(f"() => {ink} !== '{light[0]}'")
    assert tab.evaluate(back) != light[1]


def test_no_text_of_data_runs(show):
    tab = show(comparison_result.hostile())
    assert tab.evaluate("window.hit") is None
    assert tab.locator("script").count() == 4  # figures, library, ours, and Plotly, which ours adds
    assert tab.locator("svg a").count() == 0


def test_print_is_light_open_and_within_the_paper(show):
    tab = show(comparison_result.result(), color_scheme="dark")
    tab.emulate_media(media="print")
    tab.wait_for_function("() => getComputedStyle(document.querySelector('.xtitle')).fill === 'rgb(27, 31, 35)'")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("#find").is_visible()
    assert tab.evaluate("document.querySelector('.main-svg').clientWidth") == 620
    tab.pdf()
    assert tab.locator("details:not([open])").count() == 0
