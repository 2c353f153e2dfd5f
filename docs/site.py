"""Hooks of the site's build: pages that are made from other files, and links that leave the documentation.

The pages of `docs/` are written for a reader of the repository. On the site, README.md is the first page, a link to a
file outside of `docs/` leads to the repository, and the atlas and the public interface have pages of their own.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    for name, text in made_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page that leave the documentation into links to the repository."""
    return with_links(markdown, page.file.src_uri, str(config.repo_url))


def made_pages() -> dict[str, str]:
    """Return the pages that no file of `docs/` holds, by their names on the site."""
    pages = {name: (ROOT / source).read_text("utf-8") for name, source in FROM_ROOT.items()}
    return pages | {"atlas.md": atlas(), "reference.md": reference()}


def with_links(markdown: str, name: str, repository: str) -> str:
    """Return a page whose links lead to pages of the site, or into the repository where there is no such page."""
    folder = "." if name in FROM_ROOT else posixpath.join("docs", posixpath.dirname(name))
    homes = {source: page for page, source in FROM_ROOT.items()}

    def target(match: re.Match[str]) -> str:
        start, path, anchor, end = match[1], match[2], match[3] or "", match[4]
        if "://" in path or path.startswith(("mailto:", "/")):
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, path))
        if place in homes:
            place = posixpath.join("docs", homes[place])
        elif not place.startswith("docs/") or place.endswith((".py", ".ipynb")):
            kind = "tree" if (ROOT / place).is_dir() else "blob"
            return f"{start}{repository}/{kind}/main/{place}{anchor}{end}"
        if place == "docs/techniques":
            place = "docs/techniques/README.md"
        own = posixpath.join("docs", posixpath.dirname(name))
        return f"{start}{posixpath.relpath(place, own)}{anchor}{end}"

    parts, last = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(target, markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*parts, _LINK.sub(target, markdown[last:])])


def atlas() -> str:
    """Return a page with every recorded comparison as a table."""
    lines = [
        "# The atlas",
        "",
        "Comparisons that tunewise has run, from which [advice](advice.md) is drawn: each technique's score with its",
        "interval, what the model forgot, and what training cost. The command of each record makes it again.",
        "",
    ]
    folder = ROOT / "src" / "tunewise" / "advice" / "atlas" / "measured"
    for path in sorted(folder.glob("*.json")):
        lines += _record(json.loads(path.read_text("utf-8")))
    return "\n".join(lines) + "\n"


def _record(record: dict) -> Iterator[str]:
    model, task, provenance = record["model"], record["task"], record["provenance"]
    yield from (f"## {record['name']}", "")
    yield f"{model['name']} ({model['parameters']:,} parameters) on {task['name']}, {task['train']} training examples,"
    yield f"scored by {task['metric']} on {task['test']} test examples; {record['budget']['steps']} steps each."
    yield from ("", "| technique | score (95 % interval) | forgetting, nats per token | parameters | training, s |")
    yield "|---|---|---|---|---|"
    for row in record["rows"]:
        score, forgetting, cost = row.get("score"), row.get("forgetting") or {}, row.get("cost") or {}
        if row["status"] != "ok" or not score:
            reason = str(row.get("reason") or "")[:120].replace("|", " ")
            yield f"| {row['technique']} | {row['status']}: {reason} | | | |"
            continue
        rise = forgetting.get("nll_rise")
        yield (
            f"| {row['technique']} | {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}] | "
            f"{'' if rise is None else f'{rise:.3f}'} | {cost.get('optimised_parameters', 0):,} | "
            f"{cost.get('train_seconds', 0):.1f} |"
        )
    yield from ("", "```text", str(provenance["command"]), "```", "")


def reference() -> str:
    """Return the page of the public interface; mkdocstrings fills it from the docstrings."""
    source = (ROOT / "src" / "tunewise" / "__init__.py").read_text("utf-8")
    homes = dict(re.findall(r'"([\w.]+)": \(((?:"\w+",? ?)+)\)', source))
    lines = ["# Reference", "", "Everything that `import tunewise` offers.", ""]
    for home, names in homes.items():
        lines += [f"::: tunewise.{home}.{name}\n" for name in re.findall(r'"(\w+)"', names)]
    return "\n".join(lines) + "\n"
