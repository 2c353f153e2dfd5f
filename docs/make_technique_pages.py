"""Writes docs/techniques: one page for each technique, made from its file, and the list of them.

Run it after a technique's file has changed: python docs/make_technique_pages.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from tunewise.cli.views.techniques import facts
from tunewise.contract.technique import FAMILIES, Technique
from tunewise.techniques.registry import all_techniques

FOLDER = Path(__file__).parent / "techniques"
NOTE = "<!-- Made by docs/make_technique_pages.py from the technique's file; change that. -->"


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
    """Write the pages and remove those of techniques that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
