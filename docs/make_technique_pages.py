"""Writes what the documentation takes from the code: pages and lists of techniques, and lists of each package's files.

Run it after a technique has changed, or a module has been added or renamed: python docs/make_technique_pages.py

    docs/techniques/*.md          one page for each technique, and the list of them
    README.md                     the table of techniques, between its marks
    src/tunewise/*/README.md      the list of the package's files, between its marks
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from tunewise.cli.views.techniques import facts
from tunewise.contract.technique import FAMILIES, Technique
from tunewise.techniques.registry import all_techniques

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tunewise"
FOLDER = ROOT / "docs" / "techniques"
NOTE = "<!-- Made by docs/make_technique_pages.py from the technique's file; change that. -->"
BEGIN = "<!-- Made by docs/make_technique_pages.py; run it instead of editing here. -->"
END = "<!-- end -->"
WAYS = {
    "nonparametric": "trains nothing; what the model reads changes",
    "full": "trains the whole model",
    "partial": "trains a part of the model's own parameters",
    "additive": "adds parameters to a frozen model",
    "reparametrized": "trains a low-rank or structured change of frozen weights",
}


def lists() -> dict[Path, str]:
    """Path to content of every file that holds a list between the marks."""
    filled = {ROOT / "README.md": _between_marks(ROOT / "README.md", _families(all_techniques()))}
    for page in sorted(SOURCE.glob("*/README.md")):
        filled[page] = _between_marks(page, _files(page.parent))
    return filled


def _between_marks(path: Path, lines: list[str]) -> str:
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: has no list to fill in; put the lines {BEGIN!r} and {END!r} where it belongs")
    return "\n".join([before + begin, "", *lines, "", end + after])


def _families(known: dict[str, type[Technique]]) -> list[str]:
    """The table of the README: a row for each family, and every technique linked to its page."""
    lines = ["| family | what it does | techniques |", "|---|---|---|"]
    for family in FAMILIES:
        links = [f"[`{name}`](docs/techniques/{name}.md)" for name, cls in known.items() if cls.family == family]
        lines.append(f"| {family} | {WAYS[family]} | {', '.join(links)} |")
    return lines


def _files(package: Path) -> list[str]:
    """The modules of a package with the first sentence of each; techniques have pages of their own."""
    lines = []
    for path in sorted(package.rglob("*.py"), key=lambda path: (len(path.relative_to(package).parts), path)):
        name = path.relative_to(package)
        if name.stem == "__init__" or (package.name == "techniques" and name.parts[0] in (*FAMILIES, "full.py")):
            continue
        lines.append(f"- [`{name}`]({name}): {_first_sentence(path)}")
    return lines


def _first_sentence(path: Path) -> str:
    head = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
    return re.split(r"(?<=[.?!])(?<!et al\.)\s", " ".join(head.split()))[0]


def pages() -> dict[str, str]:
    """File name to content of every page."""
    known = all_techniques()
    return {"README.md": _list(known)} | {f"{name}.md": _page(cls) for name, cls in known.items()}


def _list(known: dict[str, type[Technique]]) -> str:
    lines = [NOTE, "", "# Techniques", ""]
    for family in FAMILIES:
        members = [cls for cls in known.values() if cls.family == family]
        if members:
            lines += [f"## {family.capitalize()}", ""]
            lines += [f"- [{cls.name}]({cls.name}.md): {cls.summary}" for cls in members] + [""]
    return "\n".join(lines)


def _page(cls: type[Technique]) -> str:
    said = facts(cls.name)
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    lines = [NOTE, "", f"# {cls.name}", "", text, "", "## Facts", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in _facts(said).items()]
    lines += ["", "## Settings", ""]
    if not said["settings"]:
        return "\n".join([*lines, "None.", ""])
    lines += ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for item in said["settings"]:
        cells = (f"`{item['name']}`", _shown(item["default"]), _range(item), item["help"])
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    example = said["settings"][0]
    value = example["default"] or example.get("low") or "..."
    value = ",".join(value) if isinstance(value, tuple) else value
    return "\n".join([*lines, "", f"Given as `--set {cls.name}.{example['name']}={value}`.", ""])


def _facts(said: dict[str, Any]) -> dict[str, str]:
    found = {"family": said["family"], "equation": f"`{said['equation']}`"}
    if cite := said["citation"]:
        where = f", {cite['equation']}" if cite["equation"] else ""
        found["paper"] = f"{cite['authors']} {cite['year']}, [{cite['title']}]({cite['url']}){where}"
    found |= {
        "needs": said["needs"] or "nothing special",
        "changes": ", ".join(said["sides"]) or "nothing",
        "merges into the base": "yes" if said["mergeable"] else "no",
        "equals the base before training": "yes" if said["identity_at_start"] else "no",
    }
    if rate := said["learning_rate"]:
        power = rate["width_exponent"]
        scaled = f" × (4096 / width)^{power:g}" if power else ""
        grid = ", ".join(f"{value:.3g}" for value in rate["search_grid"])
        found["default learning rate"] = f"{rate['at_width_4096']:g}{scaled}"
        found["a search multiplies it by"] = grid
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _range(item: dict[str, Any]) -> str:
    found = f"{item['low']:g} to {item['high']:g}" if "low" in item else ""
    found = ", ".join(item["choices"]) if "choices" in item else found
    return f"{found}; a search tries {', '.join(map(_shown, item['search']))}" if "search" in item else found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the pages and lists, and remove the pages of techniques that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for path, text in ({FOLDER / name: text for name, text in made.items()} | lists()).items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
