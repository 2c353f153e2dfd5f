"""What surrounds every page: the title, the steps, and the style that the report has too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nicegui import ui

from tunewise.results import report
from tunewise.studio.advice_page import AdvicePage
from tunewise.studio.answers_page import AnswersPage
from tunewise.studio.comparison_page import ComparisonPage
from tunewise.studio.data_page import DataPage
from tunewise.studio.parts import element
from tunewise.studio.shipping_page import ShippingPage
from tunewise.studio.workspace import Workspace

# What draws charts takes a third of a second to load; the first page to show one should not wait for it.
_LOAD_AHEAD = "(window.requestIdleCallback ?? setTimeout)(() => import('nicegui-plotly'))"
_STEPS = (
    ("/", "Data", DataPage),
    ("/advise", "Advise", AdvicePage),
    ("/compare", "Compare", ComparisonPage),
    ("/answers", "Answers", AnswersPage),
    ("/ship", "Ship", ShippingPage),
)


def style() -> str:
    """Return the report's style and what the page adds to it."""
    own = Path(__file__).parent / "studio.css"
    return (Path(str(report.__file__)).parent / "page.css").read_text("utf-8") + own.read_text("utf-8")


def frame(workspace: Workspace) -> None:
    """Show the steps, and below them the page of the address."""
    ui.add_css(style())
    ui.run_javascript(_LOAD_AHEAD)
    ui.colors(primary="#0b5cad", negative="#b02a3b", positive="#12734f")
    element("a", "To the content", "skip", href="#content")
    with element("header"):
        element("span", "tunewise studio", "title")
        with element("nav", aria_label="Steps"):
            links = {path: ui.link(f"{place}. {name}", path) for place, (path, name, _) in enumerate(_STEPS, 1)}
    with element("div", id_="content", tabindex="-1"):
        ui.sub_pages({path: partial(_show, page, workspace) for path, _, page in _STEPS})

    def mark(path: str) -> None:
        here = "/" + path.partition("?")[0].partition("#")[0].strip("/")
        ui.page_title(
            next((f"{name} – tunewise studio" for place, name, _ in _STEPS if place == here), "tunewise studio")
        )
        for target, link in links.items():
            if target == here:
                link.props["aria-current"] = "page"
            else:
                link.props.pop("aria-current", None)
            link.update()

    router = ui.context.client.sub_pages_router
    router.on_path_changed(mark)
    mark(router.current_path)


def _show(page: Callable[[Workspace], object], workspace: Workspace) -> None:
    page(workspace)
