"""Times how soon the studio answers a click, with 1,000 rows of data and 20 comparisons.

    uv run --group dev python benchmarks/studio.py RUN [--repeats 9]

RUN is the folder of a comparison; its `compare.json` is listed 20 times. A time is taken in the browser, from the click
to the frame in which what was asked for stands on the page; printed are the medians, and the longest.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROWS, RUNS = 1000, 20
CLICK = """([find, done]) => new Promise((answered) => {
  const button = eval(find), began = performance.now();
  const look = () => eval(done) ? answered(performance.now() - began) : requestAnimationFrame(look);
  button.click();
  look();
})"""
NAMED = "[...document.querySelectorAll('{}')].find((each) => each.textContent.trim() === '{}')"
HEAD = "document.querySelector('h1')?.textContent === '{}'"


def clicks(number: int) -> dict[str, tuple[str, str, str]]:
    """What is clicked in turn, each with the page that it is on, and what must then be true."""
    first = "document.querySelector('.examples .small')?.textContent.startsWith('row ')"
    where = "[...document.querySelectorAll('span[role=status]')].some((each) => each.textContent.startsWith('{}'))"
    shown = f"run-{(number * 7 + 3) % RUNS:02d}"
    return {
        "the next ten of 1,000 examples": (
            "/",
            "document.querySelector('[aria-label=\"next examples\"]')",
            f"{first} && {where.format(f'{10 * number + 11} to')}",
        ),
        "from Data to Compare": ("/", NAMED.format("nav a", "3. Compare"), HEAD.format("Compare")),
        "another of 20 comparisons": (
            "/compare",
            NAMED.format(".runs button", shown),
            f"[...document.querySelectorAll('h2')].some((each) => each.textContent === '{shown}')",
        ),
        "from Compare to Answers": ("/compare", NAMED.format("nav a", "4. Answers"), HEAD.format("Answers")),
        "from Answers to Data": ("/answers", NAMED.format("nav a", "1. Data"), HEAD.format("Data")),
    }


def prepare(folder: Path, run: Path) -> None:
    """Write the data and the comparisons."""
    rows = ({"text": f"row {number} of the town", "label": "ab"[number % 2]} for number in range(ROWS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for number in range(RUNS):
        target = folder / "runs" / f"run-{number:02d}"
        target.mkdir(parents=True)
        shutil.copy(run / "compare.json", target / "compare.json")


def measure(page: Page, repeats: int) -> dict[str, list[float]]:
    """Click everything in turn, as often as there are repeats."""
    page.get_by_label("Data", exact=True).fill("rows.jsonl")
    page.get_by_role("button", name="Check the data").click()
    page.locator(".examples li").first.wait_for(timeout=300_000)
    times: dict[str, list[float]] = {}
    for number in range(repeats):
        for name, (place, find, done) in clicks(number).items():
            if name != "the next ten of 1,000 examples" or number == 0:
                page.wait_for_timeout(400)
            if name == "the next ten of 1,000 examples":
                for _ in range(number):  # to where it is in this repeat, as a page begins at the first
                    page.evaluate(CLICK, [find, "true"])
                    page.wait_for_timeout(300)
            if not page.url.endswith(place):
                raise SystemExit(f"{page.url} is not {place}")
            times.setdefault(name, []).append(page.evaluate(CLICK, [find, done]))
            page.wait_for_timeout(600)
    return times


def main() -> None:
    """Start the studio, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.run.resolve())
        words = [sys.executable, "-m", "tunewise.cli", "studio", "runs", "--port", "0"]
        server = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            said = server.stderr.readline() if server.stderr is not None else ""
            address = re.search(r"http\S+", said)
            if address is None:
                sys.exit(f"the studio did not start: {said}")
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(address[0])
                page.wait_for_selector("h1")
                for what, milliseconds in measure(page, options.repeats).items():
                    print(f"{what}: {statistics.median(milliseconds):.0f} ms, at most {max(milliseconds):.0f} ms")
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
