"""A conversation in the terminal, with several adaptations side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tunewise.cli.console import console
from tunewise.data.task import Message
from tunewise.serve.client import Reply, ask
from tunewise.serve.decoding import Sampling
from tunewise.serve.scheduler import Engine

HELP = "/reset begins again, /quit ends"


class Talk:
    """The same questions to several adaptations, each with its own history of answers."""

    def __init__(
        self, engine: Engine, names: list[str], sampling: Sampling, max_tokens: int, system: str | None = None
    ) -> None:
        self.engine, self.names, self.sampling, self.max_tokens = engine, names, sampling, max_tokens
        self.begin = [Message("system", system)] if system else []
        self.history: dict[str, list[Message]] = {}
        self.screen = console()
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.history = {name: list(self.begin) for name in self.names}

    def run(self) -> None:
        """Read questions until /quit or the end of the input."""
        self.screen.print(f"{', '.join(self.names)}: {HELP}", markup=False, highlight=False)
        while True:
            try:
                said = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if said == "/quit":
                return
            if said == "/reset":
                self.reset()
            elif said.startswith("/"):
                self.screen.print(f'there is no command "{said}"; {HELP}', markup=False, highlight=False)
            elif said:
                self.ask(said)

    def ask(self, said: str, *, show: bool = True) -> Mapping[str, Reply]:
        """Ask all of them; answers are remembered. Where only one is asked, its error is raised."""
        from rich.live import Live

        talks = {name: [*self.history[name], Message("user", said)] for name in self.names}
        replies: Mapping[str, Reply] = {}
        live = show and self.screen.is_terminal
        with Live(console=self.screen, auto_refresh=False, transient=False) if live else _Nothing() as screen:
            for replies in ask(self.engine, talks, self.sampling, self.max_tokens):
                if live:
                    screen.update(self._columns(replies), refresh=True)
        if show and not live:
            self.screen.print(self._columns(replies))
        for name, reply in replies.items():
            if reply.error is not None and not show:
                raise reply.error
            if reply.error is None:
                self.history[name] = [*talks[name], Message("assistant", reply.text)]
        return replies

    def _columns(self, replies: Mapping[str, Reply]) -> Any:
        """Answers side by side, with what they cite below."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, expand=self.screen.is_terminal)
        cells = []
        for name, reply in replies.items():
            table.add_column(Text(name), ratio=1, overflow="fold")
            body = Text(f"failed: {reply.error}" if reply.error else reply.text)
            if reply.sources:
                body.append("\n\n" + "\n".join(f"[{source}]" for source in reply.sources), style="dim")
            cells.append(body)
        table.add_row(*cells)
        return table


class _Nothing:
    """Stands where nothing is shown."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        return None
