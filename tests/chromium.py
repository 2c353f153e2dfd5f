"""Chromium for the tests of pages: where it is, how it is started quietly, and the marks of such tests."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("TUNEWISE_CHROMIUM") or shutil.which("chromium") or ""
QUIET = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync"]
MARKS = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason="no Chromium (set TUNEWISE_CHROMIUM)"),
]


@contextmanager
def started():
    """Start the browser; a test is skipped where the driver is missing."""
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with driver.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{word}" for word in QUIET])
