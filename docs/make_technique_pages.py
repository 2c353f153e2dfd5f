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
    contents = {ROOT / "README.md": _between_marks(ROOT / "README.md", _families(all_techniques()))}
    for page in sorted(SOURCE.glob("*/README.md")):
        contents[page] = _between_marks(page, _files(page.parent))
    return contents


def _between_marks(path: Path, lines: list[str]) -> str:
    before, begin, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: has no list to fill in; put the lines {BEGIN!r} and {END!r} where it belongs")
    return "\n".join([before + begin, "", *lines, "", end + after])


def _families(classes: dict[str, type[Technique]]) -> list[str]:
    """The table of the README: a row for each family, and every technique linked to its page."""
    lines = ["| family | what it does | techniques |", "|---|---|---|"]
    for family in FAMILIES:
        links = [f"[`{name}`](docs/techniques/{name}.md)" for name, cls in classes.items() if cls.family == family]
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
    classes = all_techniques()
    return {"README.md": _list(classes)} | {f"{name}.md": _page(cls) for name, cls in classes.items()}


def _list(classes: dict[str, type[Technique]]) -> str:
    lines = [NOTE, "", "# Techniques", ""]
    for family in FAMILIES:
        members = [cls for cls in classes.values() if cls.family == family]
        if members:
            lines += [f"## {family.capitalize()}", ""]
            lines += [f"- [{cls.name}]({cls.name}.md): {cls.summary}" for cls in members] + [""]
    return "\n".join(lines)


def _page(cls: type[Technique]) -> str:
    traits = facts(cls.name)
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    lines = [NOTE, "", f"# {cls.name}", "", text, "", "## Facts", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in _facts(traits).items()]
    lines += ["", "## Settings", ""]
    if not traits["settings"]:
        return "\n".join([*lines, "None.", ""])
    lines += ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for item in traits["settings"]:
        cells = (f"`{item['name']}`", _format_value(item["default"]), _format_range(item), item["help"])
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    example = traits["settings"][0]
    value = example["default"] or example.get("low") or "..."
    value = ",".join(value) if isinstance(value, tuple) else value
    return "\n".join([*lines, "", f"Given as `--set {cls.name}.{example['name']}={value}`.", ""])


def _facts(traits: dict[str, Any]) -> dict[str, str]:
    rows = {"family": traits["family"], "equation": f"`{traits['equation']}`"}
    if cite := traits["citation"]:
        where = f", {cite['equation']}" if cite["equation"] else ""
        rows["paper"] = f"{cite['authors']} {cite['year']}, [{cite['title']}]({cite['url']}){where}"
    if traits["differs"]:
        rows["name in a comparison"] = f"{traits['technique']} ({traits['differs']})"
    rows |= {
        "needs": traits["needs"] or "nothing special",
        "changes": ", ".join(traits["sides"]) or "nothing",
        "merges into the base": "yes" if traits["mergeable"] else "no",
        "equals the base before training": "yes" if traits["identity_at_start"] else "no",
    }
    if rate := traits["learning_rate"]:
        power = rate["width_exponent"]
        scaled = f" × (4096 / width)^{power:g}" if power else ""
        grid = ", ".join(f"{value:.3g}" for value in rate["search_grid"])
        rows["default learning rate"] = f"{rate['at_width_4096']:g}{scaled}"
        rows["a search multiplies it by"] = grid
    return rows


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _format_range(item: dict[str, Any]) -> str:
    limits = f"{item['low']:g} to {item['high']:g}" if "low" in item else ""
    limits = ", ".join(item["choices"]) if "choices" in item else limits
    return f"{limits}; a search tries {', '.join(map(_format_value, item['search']))}" if "search" in item else limits


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the pages and lists, and remove the pages of techniques that are gone."""
    FOLDER.mkdir(exist_ok=True)
    page_texts = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in page_texts:
            path.unlink()
    for path, text in ({FOLDER / name: text for name, text in page_texts.items()} | lists()).items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
