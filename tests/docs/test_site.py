"""The site: every page has a place, links out of the documentation lead somewhere, and made pages are complete.

`scripts/build_site` builds it in CI, and a warning fails the build.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

import tunewise

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/repository"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which has no tags."""


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings():
    return yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)


def pages(entry):
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def test_every_page_has_a_place_in_the_navigation(site, settings):
    placed = pages(settings["nav"])
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    alone = {page for page in docs if page.startswith("techniques/") and page != "techniques/README.md"}
    assert sorted(placed) == sorted((docs - alone) | set(site.made_pages()))
    listed = (ROOT / "docs" / "techniques" / "README.md").read_text("utf-8")
    assert not [page for page in alone if f"]({page.removeprefix('techniques/')}" not in listed]


def test_the_build_is_strict_and_part_of_ci(settings):
    assert settings["strict"] is True and settings["docs_dir"] == "docs"
    assert "mkdocs build --strict" in (ROOT / "scripts" / "build_site").read_text("utf-8")
    assert "scripts/build_site" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "link", "expected"),
    [
        ("index.md", "docs/data.md#files", "data.md#files"),
        ("index.md", "CONTRIBUTING.md#style", "contributing.md#style"),
        ("index.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("index.md", "#try-it", "#try-it"),
        ("index.md", "docs/comparison.svg", "comparison.svg"),
        ("architecture.md", "../src/tunewise/core/README.md", f"{REPOSITORY}/blob/main/src/tunewise/core/README.md"),
        ("architecture.md", "../README.md", "index.md"),
        ("data.md", "https://example.com/x", "https://example.com/x"),
        ("tutorials/serving.md", "../export.md", "../export.md"),
        ("tutorials/adding-a-technique.md", "../../CONTRIBUTING.md#adding", "../contributing.md#adding"),
        ("contributing.md", "docs/techniques/", "techniques/README.md"),
        ("world.md", "../benchmarks", f"{REPOSITORY}/tree/main/benchmarks"),
    ],
)
def test_links_lead_to_the_site_or_to_the_repository(site, name, link, expected):
    assert site.with_links(f"see [it]({link}) there", name, REPOSITORY) == f"see [it]({expected}) there"


def test_code_is_left_as_it_is(site):
    text = "```\nsee [it](docs/data.md)\n```\n"
    assert site.with_links(text, "index.md", REPOSITORY) == text


def test_the_atlas_is_a_table_of_every_record(site):
    text = site.atlas()
    records = sorted((ROOT / "src/tunewise/advice/atlas/measured").glob("*.json"))
    assert len(records) > 10
    for path in records:
        record = json.loads(path.read_text("utf-8"))
        section = text.partition(f"## {record['name']}\n")[2].partition("\n## ")[0]
        assert record["provenance"]["command"] in section
        rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == len(record["rows"]), record["name"]
        lora = next(row for row in record["rows"] if row["technique"] == "lora")
        assert f"| lora | {lora['score']['mean']:.3f} [" in section


def test_the_reference_lists_the_public_names(site):
    listed = re.findall(r"^::: tunewise\.[\w.]+\.(\w+)$", site.reference(), re.MULTILINE)
    assert sorted(listed) == sorted(tunewise.__all__)


def test_llms_txt_lists_every_page():
    text = (ROOT / "llms.txt").read_text("utf-8")
    listed = set(re.findall(r"\]\((docs/[\w./-]+\.md)\)", text))
    docs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == {page for page in docs if "/techniques/" not in page or page.endswith("techniques/README.md")}
    assert text.startswith("# tunewise\n\n> ")


def test_the_guide_for_agents_names_what_is_there():
    text = (ROOT / "AGENTS.md").read_text("utf-8")
    for name in re.findall(r"`((?:scripts|docs|src|\.)[\w./-]+)[` ]", text):
        assert (ROOT / name).exists(), name
