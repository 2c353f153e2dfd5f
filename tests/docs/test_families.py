"""The tables of families.md are those of the atlas's records."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_records():
    spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    page = families.PAGE.read_text("utf-8")
    assert "<!-- record " in page and families.written(page) == page
