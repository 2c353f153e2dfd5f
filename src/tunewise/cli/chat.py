"""A conversation in the terminal, with several adaptations side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from tunewise.cli.console import console, print_text
from tunewise.data.task import Message
from tunewise.engine.decoding import Sampling
from tunewise.serve.client import Reply, ask
from tunewise.serve.scheduler import Engine

if TYPE_CHECKING:
    from rich.table import Table

HELP = "/reset starts a new conversation, /quit ends"


class Chat:
    """Puts the same questions to several adaptations, each with its own history of answers."""

    def __init__(
        self, engine: Engine, names: list[str], sampling: Sampling, max_tokens: int, system: str | None = None
    ) -> None:
        self.engine, self.names, self.sampling, self.max_tokens = engine, names, sampling, max_tokens
        self.opening = [Message("system", system)] if system else []
        self.history: dict[str, list[Message]] = {}
        self.screen = console()
        self.reset()

    def reset(self) -> None:
        """Forget the conversation up to here."""
        self.history = {name: list(self.opening) for name in self.names}

    def run(self) -> None:
        """Read questions until /quit or the end of the input."""
        print_text(f"{', '.join(self.names)}: {HELP}")
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line == "/reset":
                self.reset()
            elif line.startswith("/"):
                print_text(f'there is no command "{line}"; {HELP}')
            elif line:
                self.ask(line)

    def ask(self, question: str, *, show: bool = True) -> Mapping[str, Reply]:
        """Ask all adaptations and remember their answers; where `show` is false, the first error is raised."""
        from rich.live import Live

        conversations = {name: [*self.history[name], Message("user", question)] for name in self.names}
        replies: Mapping[str, Reply] = {}
        live = show and self.screen.is_terminal
        with Live(console=self.screen, auto_refresh=False, transient=False) if live else nullcontext() as screen:
            for replies in ask(self.engine, conversations, self.sampling, self.max_tokens):
                if screen is not None:
                    screen.update(self._columns(replies), refresh=True)
        if show and not live:
            self.screen.print(self._columns(replies))
        for name, reply in replies.items():
            if reply.error is not None and not show:
                raise reply.error
            if reply.error is None:
                self.history[name] = [*conversations[name], Message("assistant", reply.text)]
        return replies

    def _columns(self, replies: Mapping[str, Reply]) -> Table:
        """Lay answers out side by side, each with its sources below."""
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
