"""The fourth step: test examples with every technique's answer, and a chat with several adaptations at once."""

from __future__ import annotations

from tunewise.core.text import show
from tunewise.results.report.tables import rows
from tunewise.results.schema import Answer, Comparison
from tunewise.studio.chat import Chat
from tunewise.studio.data_page import Pages
from tunewise.studio.parts import choice, controls, details, element, heading, paragraph
from tunewise.studio.workspace import Workspace

_PAGE = 10
_MARKS = {"right": "✓ right", "wrong": "✗ wrong", "partly": "≈"}


class AnswersPage:
    """The page of the answers of one comparison."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        heading("Answers", 1)
        names = [run.name for run in workspace.runs.all() if run.result is not None]
        value = workspace.chosen_among(names)
        if value is None:
            paragraph("No comparison has a row yet; start one under Compare.")
            return
        with controls("What is shown"):
            choice("Comparison", names, value, self._choose)
        self._place = element("div")
        self._show(value)

    def _choose(self, name: str) -> None:
        self._workspace.choose(run=name)
        self._show(name)

    def _show(self, name: str) -> None:
        run = self._workspace.runs.find(name)
        self._place.clear()
        if run is None or run.result is None:
            return
        with self._place:
            heading("Ask several at once")
            Chat(self._workspace, run)
            heading("Test examples")
            if run.result.task.kind == "classification":
                paragraph(
                    "Here each technique chooses among the labels, as it is scored; in the conversation above it "
                    "writes freely, and what is not trained to answer with a label may write something else.",
                    "small",
                )
            _examples(run.result)


def _examples(result: Comparison) -> None:
    examples, order = result.answers or (), [name for name, _ in rows(result) if name]
    if not examples:
        paragraph("No technique has answered yet.")
        return
    Pages(len(examples), lambda first: _draw(examples[first : first + _PAGE], order, first), "examples")


def _draw(examples: tuple[Answer, ...], order: list[str], first: int) -> None:
    for place, example in enumerate(examples, first):
        right = sum(answer.score >= 1 for answer in example.rows.values())
        summary = f"{place + 1}. {show(example.prompt, 90)} ({right} of {len(example.rows)} right)"
        with details(summary, opened=place == first) as section:
            section.classes("example")
            element("pre", example.prompt, tabindex="0", role="region", aria_label="Prompt")
            paragraph(f"Right answer: {example.answer}")
            with element("ul", classes="answers"):
                for name in order:
                    if name in example.rows:
                        _answer(name, example.rows[name].text, example.rows[name].score)


def _answer(name: str, text: str, score: float) -> None:
    kind = "right" if score >= 1 else "wrong" if score <= 0 else "partly"
    with element("li", classes=kind):
        with element("p"):
            element("strong", name)
            element("span", _MARKS[kind] + (f" {score:.2f}" if kind == "partly" else ""), "mark")
        element("pre", text)
