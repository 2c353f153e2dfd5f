"""The studio in a browser: the whole way from a file to a chat with the winner, hostile texts, and who may open it."""

import json
import re
from contextlib import contextmanager

import pytest

import chromium
import comparison_result
import studio_server
from tunewise.data.task import Task

pytestmark = [*chromium.MARKS, pytest.mark.timeout(900)]
LONG = 240_000  # milliseconds that a command may take on a busy machine
LOST = re.compile(r"ERR_CONNECTION_REFUSED|WebSocket|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|reloading because")
SIDEWAYS = "document.scrollingElement.scrollWidth > document.scrollingElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with chromium.started() as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    studio_server.stop_all()


@contextmanager
def opened(browser, studio, width=1280, scheme="light"):
    """Open the studio; whatever the page complains of, or asks of another machine, fails the test in the end."""
    trouble = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(60_000)

    def asked(request):
        if not request.url.startswith((f"http://127.0.0.1:{studio.port}/", "data:", "blob:")):
            trouble.append(request.url)

    tab.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", asked)
    tab.goto(studio.address)
    tab.trouble = trouble
    try:
        yield tab
        assert trouble == []
    finally:
        context.close()


def step(tab, name):
    """Go to a step by its link."""
    tab.get_by_role("navigation").get_by_role("link", name=name).click()
    tab.get_by_role("heading", level=1, name=name if name != "Advise" else "Advice and plan").wait_for()


def pressed(tab, name, role="button"):
    tab.get_by_role(role, name=name, exact=True).click()


@pytest.fixture
def looked_at(request, tmp_path_factory):
    """Look at a page at both widths and in both themes: nothing stands out sideways, and axe finds nothing serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    folder = tmp_path_factory.mktemp("screenshots")

    def look(tab, name):
        for width, scheme in ((375, "dark"), (375, "light"), (1280, "dark"), (1280, "light")):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            tab.wait_for_function(f"() => document.body.classList.contains('body--{scheme}')")
            assert not tab.evaluate(SIDEWAYS), f"{name} needs a sideways scroll at {width} pixels"
            if (width, scheme) in ((375, "dark"), (1280, "light")):
                found = axe.run(tab).response["violations"]
                serious = [each for each in found if each["impact"] in ("serious", "critical")]
                assert not serious, json.dumps([(each["id"], each["nodes"][0]["html"]) for each in serious], indent=1)
            tab.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)

    return look


def reviews(path):
    """Write reviews of the shipped world to a file, one of them twice and one with two labels."""
    task = Task.read("world:reviews")
    rows = [{"text": each.prompt, "label": each.answer} for each in (*task.train, *task.validation, *task.test)]
    other = {"praise": "complaint", "complaint": "praise"}
    rows += [rows[3], {"text": rows[5]["text"], "label": other[rows[5]["label"]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_the_whole_way_from_a_file_to_a_chat_with_the_winner(browser, tmp_path, looked_at):
    reviews(tmp_path / "reviews.jsonl")
    studio = studio_server.Studio(tmp_path)
    with opened(browser, studio) as tab:
        assert "token" not in tab.url
        choose_data(tab)
        looked_at(tab, "data")
        take_advice(tab)
        looked_at(tab, "advice")
        studio = compare(tab, studio, tmp_path)
        looked_at(tab, "compare")
        ask(tab)
        looked_at(tab, "answers")
        ship(tab, tmp_path)
        looked_at(tab, "ship")
    assert studio.stop() == 0


def choose_data(tab):
    pressed(tab, "Browse …")
    pressed(tab, "reviews.jsonl")
    pressed(tab, "Check the data")
    tab.get_by_role("heading", name="As the model sees it").wait_for(timeout=LONG)
    text = tab.locator("#content").inner_text()
    assert "classification" in text and "the same as row 4" in text and "another label than row 6" in text
    assert tab.locator("mark").first.inner_text().strip() in ("praise</s>", "complaint</s>")
    assert tab.locator("pre", has_text="tunewise check").inner_text().endswith("--model world --data reviews.jsonl")
    first = tab.locator(".examples pre").first.inner_text()
    pressed(tab, "next examples")
    tab.wait_for_function("(text) => document.querySelector('.examples pre').innerText !== text", arg=first)


def take_advice(tab):
    step(tab, "Advise")
    tab.get_by_label("Largest adaptation, e.g. 50MB").fill("50MB")
    pressed(tab, "Must not forget", "checkbox")
    tab.locator("pre", has_text="--need retain --need 'artifact<50MB'").wait_for()
    pressed(tab, "Must not forget", "checkbox")
    pressed(tab, "Advise")
    tab.get_by_role("heading", name="What would change it").wait_for(timeout=LONG)
    pressed(tab, "Must not forget", "checkbox")
    tab.get_by_text("found for other choices").wait_for()
    pressed(tab, "Must not forget", "checkbox")
    tab.get_by_text("found for other choices").wait_for(state="hidden")
    assert tab.locator("tr.recommended", has_text="advised").count() == 1
    assert re.search(r"\d\.\d\d–\d\.\d\d", tab.get_by_role("table").first.inner_text())
    assert "share" in tab.get_by_role("table").last.inner_text()


def compare(tab, studio, folder):
    """Compare, stop, continue, and kill the server in the middle; return the server that was started again."""
    step(tab, "Compare")
    pressed(tab, "None")
    tab.get_by_text("choose at least one technique").wait_for()
    for name in ("base", "lora"):
        pressed(tab, name, "checkbox")
    tab.get_by_label("Training of each technique").click()
    pressed(tab, "steps", "option")
    tab.get_by_label("Number", exact=True).fill("60")
    tab.get_by_label("Test examples (0: the default)").fill("30")
    tab.get_by_label("Name of its folder").fill("first")
    tab.wait_for_function("() => document.querySelector('#content').innerText.includes('--out runs/first')")
    tab.get_by_role("button", name="Start the comparison").dblclick()  # as many do; it starts one
    tab.locator("tr.waiting", has_text="lora").wait_for(timeout=LONG)
    assert tab.locator(".runs li").count() == 1
    tab.locator("tr", has_text="base").locator("td").nth(2).wait_for(timeout=LONG)  # its row has figures
    pressed(tab, "Stop")
    pressed(tab, "Continue")
    tab.get_by_role("button", name="Stop", exact=True).wait_for()
    studio.kill()
    again = studio_server.Studio(folder, studio.port)
    tab.locator("tr.recommended", has_text="lora").wait_for(timeout=LONG)  # page and comparison have gone on
    tab.get_by_text("finished", exact=True).first.wait_for(timeout=LONG)
    tab.trouble[:] = [text for text in tab.trouble if not LOST.search(text)]
    tab.locator("figure[data-chart=curves] .trace").first.wait_for()
    assert tab.locator("figure").count() == 4
    (folder / "runs" / "second").mkdir()
    (folder / "runs" / "second" / "compare.json").write_bytes((folder / "runs" / "first" / "compare.json").read_bytes())
    tab.get_by_role("button", name="second", exact=True).wait_for()
    tab.get_by_label("Side by side with").click()
    pressed(tab, "second", "option")
    tab.get_by_role("heading", name="first beside second").wait_for()
    return again


def ask(tab):
    step(tab, "Answers")
    pressed(tab, "Load them")
    question = tab.get_by_label("Question", exact=True)
    question.wait_for(timeout=LONG)
    question.fill("the soup was cold and nobody came")
    question.press("Enter")
    answer = tab.locator(".conversation li", has_text="lora").locator("pre")
    answer.filter(has_text=re.compile("complaint|praise")).wait_for(timeout=LONG)
    assert tab.locator(".conversation li").count() == 2
    assert tab.locator(".example").count() == 10
    tab.reload()
    tab.locator(".conversation .question", has_text="the soup was cold").wait_for()  # it is still there
    assert tab.locator(".conversation li").count() == 2
    pressed(tab, "New conversation")
    tab.locator(".conversation li").first.wait_for(state="detached")
    pressed(tab, "Unload")
    tab.get_by_role("button", name="Load them").wait_for()


def ship(tab, folder):
    step(tab, "Ship")
    pressed(tab, "Export and compare")
    tab.locator(".parity.good").first.wait_for(timeout=LONG)
    assert "--data reviews.jsonl" in tab.locator("pre", has_text="tunewise export").inner_text()
    assert json.loads((folder / "runs/first/exports/lora-merged/parity.json").read_text("utf-8"))["same"] is True
    tab.get_by_label("Port (0: a free one)").fill("0")
    pressed(tab, "Serve it")
    tab.get_by_text(re.compile("^serving lora at http://127")).wait_for(timeout=LONG)
    pressed(tab, "Stop serving")
    tab.get_by_label("Repository, owner/name").fill("me/mine")
    copy = tab.get_by_role("button", name="copy: The push on the command line")
    tab.wait_for_function("() => document.querySelector('#content').innerText.includes('me/mine')")
    copy.click()
    assert tab.evaluate("navigator.clipboard.readText()").startswith("tunewise push runs/first/trials/lora")
    pressed(tab, "Show the card")
    tab.get_by_label("Model card").wait_for(timeout=LONG)


FOCUSED = """() => {
  const at = document.activeElement, shown = getComputedStyle(at), field = at.closest('.q-field__control');
  const ring = (style) => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
  const marked = ring(shown) || (field && field.closest('.q-field').classList.contains('q-field--focused'));
  const label = at.getAttribute('aria-label') || (at.labels && [...at.labels].map((l) => l.textContent).join(' '));
  return [(label || at.textContent || '').trim().replace(/\\s+/g, ' '), Boolean(marked), at.tagName];
}"""


def reach(tab, name):
    """Press Tab until what has this name has the focus, which can be seen wherever it is."""
    passed = []
    for _ in range(120):
        tab.keyboard.press("Tab")
        found, is_marked, tag = tab.evaluate(FOCUSED)
        if tag == "BODY":
            continue
        assert is_marked, f"nothing shows that {tag} {found!r} has the focus"
        passed.append(found)
        if found == name or found.startswith(f"{name} "):
            return
    raise AssertionError(f"{name!r} is not reached by Tab, only {passed}")


def test_the_way_by_keys_alone(browser, tmp_path):
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        reach(tab, "To the content")
        tab.keyboard.press("Enter")
        reach(tab, "Data")
        tab.keyboard.press("Control+A")
        tab.keyboard.type("world:reviews")
        reach(tab, "Browse …")
        tab.keyboard.press("Enter")
        tab.get_by_role("dialog").wait_for()
        tab.keyboard.press("Escape")
        tab.get_by_role("dialog").wait_for(state="hidden")
        assert tab.evaluate(FOCUSED)[0] == "Browse …", "the focus is back where it was"
        reach(tab, "Check the data")
        tab.keyboard.press("Enter")
        tab.get_by_role("heading", name="As the model sees it").wait_for(timeout=LONG)
        reach(tab, "next examples")
        tab.keyboard.press("Enter")
        tab.get_by_text("11 to 20 of").first.wait_for()
        tab.reload()
        reach(tab, "3. Compare")
        tab.keyboard.press("Enter")
        tab.get_by_role("heading", level=1, name="Compare").wait_for()
        reach(tab, "None")
        tab.keyboard.press("Space")
        reach(tab, "base")
        tab.keyboard.press("Space")
        reach(tab, "Training of each technique")
        tab.keyboard.press("ArrowDown")
        tab.get_by_role("option", name="steps", exact=True).wait_for()
        tab.wait_for_timeout(500)  # the list takes keys once it has opened wholly
        tab.keyboard.press("ArrowDown")
        tab.wait_for_timeout(500)
        tab.keyboard.press("Enter")
        tab.locator("pre", has_text="--budget-steps").wait_for()
        reach(tab, "Number")
        tab.keyboard.press("Control+A")
        tab.keyboard.type("2")
        reach(tab, "Test examples (0: the default)")
        tab.keyboard.press("Control+A")
        tab.keyboard.type("10")
        tab.locator("pre", has_text="--techniques base --budget-steps 2").wait_for()
        reach(tab, "Start the comparison")
        tab.keyboard.press("Enter")
        tab.get_by_text("finished", exact=True).first.wait_for(timeout=LONG)
        assert tab.locator("tr", has_text="base").count() == 1


def test_a_source_can_be_opened_and_what_it_says_is_inert(browser, tmp_path):
    """Two turns of before: one with sources, and a line that a crash cut short."""
    attack = "<img src=x onerror='window.hit=1'>"
    studio_server.leave_comparisons(tmp_path, 1)
    adaptation = json.loads((tmp_path / "runs/run-00/compare.json").read_text("utf-8"))["rows"][1]["adaptation"]
    (tmp_path / "runs/run-00" / adaptation).mkdir(parents=True)
    answer = {"text": attack, "sources": [f"{attack}.md:0-9", "oil.md:0-40"], "passages": [attack, "Change the oil."]}
    studio_server.leave_turns(tmp_path, "run-00", [{"question": attack, "answers": {"rag": answer}}], broken='{"ques')
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        step(tab, "Answers")
        tab.locator(".conversation .question").wait_for()
        assert tab.locator(".conversation .question").count() == 1
        passage = tab.get_by_role("region", name="What oil.md:0-40 says")
        passage.wait_for(state="hidden")
        tab.get_by_text("Source: oil.md:0-40").click()
        passage.wait_for(state="visible")
        assert passage.inner_text() == "Change the oil."
        assert tab.evaluate("window.hit") is None and tab.locator("#content img").count() == 0


def test_what_one_tab_shows_another_does_not_change(browser, tmp_path):
    studio_server.leave_techniques(tmp_path)
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        step(tab, "Compare")
        shown = tab.locator("pre", has_text="tunewise compare")
        before = shown.inner_text()
        assert "--data world:reviews" in before
        other = tab.context.new_page()
        other.goto(f"http://127.0.0.1:{studio.port}/")
        other.get_by_label("Data", exact=True).fill("world:town")
        other.locator("pre", has_text="--data world:town").wait_for()
        pressed(tab, "None")
        pressed(tab, "base", "checkbox")
        tab.locator("pre", has_text="--techniques base").wait_for()
        assert "--data world:reviews" in shown.inner_text()
        other.reload()
        other.locator("pre", has_text="--data world:reviews").wait_for()  # a page that is opened later begins there
        other.close()


def test_many_comparisons_are_listed_when_they_are_asked_for(browser, tmp_path):
    studio_server.leave_comparisons(tmp_path, 60)
    studio_server.leave_techniques(tmp_path)
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        step(tab, "Compare")
        tab.locator(".runs li").nth(29).wait_for()
        assert tab.locator(".runs li").count() == 30
        pressed(tab, "Show 30 older ones")
        tab.locator(".runs li").nth(59).wait_for()


def test_a_number_that_is_not_taken_says_so(browser, tmp_path):
    studio_server.leave_techniques(tmp_path)
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        step(tab, "Compare")
        tab.get_by_label("Seeds").fill("0")
        tab.get_by_text("a whole number of at least 1; the last one is kept").wait_for()
        tab.get_by_label("Seeds").fill("2")
        tab.locator("pre", has_text="--seeds 2").wait_for()


def test_a_second_browser_is_refused(browser, tmp_path):
    studio_server.leave_techniques(tmp_path)
    with studio_server.running(tmp_path) as studio:
        with opened(browser, studio) as tab:
            cookie = tab.context.cookies()[0]
            assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        other = browser.new_context()
        response = other.new_page().goto(f"http://127.0.0.1:{studio.port}/")
        assert response.status == 401 and "token" in response.text()
        other.close()


def test_hostile_names_and_texts_are_inert(browser, tmp_path):
    attack = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    run = tmp_path / "runs" / "<img src=x onerror=hit()>"
    run.mkdir(parents=True)
    result = comparison_result.comparison(comparison_result.hostile())
    (run / "compare.json").write_text(json.dumps(result.to_json()), "utf-8")
    (tmp_path / f"{attack.replace('/', '')}.csv").write_text("text,label\n", "utf-8")
    studio_server.leave_techniques(tmp_path)
    studio_server.choose(tmp_path, data=attack)
    facts = {
        "name": attack,
        "kind": attack,
        "format": attack,
        "metric": attack,
        "counts": {attack: 1},
        "notes": [attack],
    }
    facts |= {"labels": {attack: {attack: 1}}, "problems": [dict.fromkeys(("split", "row", "problem", "text"), attack)]}
    facts |= {"examples": [{"row": 1, "tokens": 2, "stretches": [[attack, False], [attack, True]]}]}
    studio_server.leave_job(tmp_path, "check", studio_server.check_words(data=attack), facts)
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        tab.locator("mark").first.wait_for()
        assert tab.locator("mark").first.inner_text().startswith(attack[:20])
        pressed(tab, "Browse …")
        tab.get_by_role("dialog").get_by_text("window.hit").wait_for()
        pressed(tab, "Close")
        for name in ("Advise", "Compare", "Answers"):
            step(tab, name)
            tab.wait_for_timeout(500)
        assert tab.evaluate("window.hit") is None
        assert tab.locator("#content img").count() == 0 and tab.locator("#content script").count() == 0


def test_many_rows_and_runs_are_paged_and_listed(browser, tmp_path):
    studio_server.leave_comparisons(tmp_path, 20)
    studio_server.leave_techniques(tmp_path)
    facts = {"name": "many", "kind": "generation", "format": "prompt-completion", "metric": "f1", "notes": []}
    facts |= {"counts": {"train": 1000}, "labels": {}}
    facts["problems"] = [{"split": "train", "row": row, "problem": "the same", "text": "x"} for row in range(1, 1001)]
    facts["examples"] = [
        {"row": row, "tokens": 9, "stretches": [["ask ", False], [f"no. {row}", True]]} for row in range(1, 1001)
    ]
    studio_server.leave_job(tmp_path, "check", studio_server.check_words(), facts)
    with studio_server.running(tmp_path) as studio, opened(browser, studio) as tab:
        tab.locator("mark", has_text="no. 1").first.wait_for()
        assert tab.locator(".examples li").count() == 10
        pressed(tab, "next examples")
        tab.locator("mark", has_text="no. 11").wait_for()
        pressed(tab, "next problems")
        tab.get_by_text("11 to 20 of 1,000").first.wait_for()
        step(tab, "Compare")
        tab.get_by_role("button", name="run-19").click()
        tab.get_by_role("heading", name="run-19").wait_for()
        assert tab.locator(".runs li").count() == 20
