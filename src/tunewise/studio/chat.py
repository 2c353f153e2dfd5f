"""A chat with several adaptations: `tunewise serve` loads them, and their answers stream side by side."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from pathlib import Path

from nicegui import ui

from tunewise.core import artifact_reader
from tunewise.core.errors import ArtifactError
from tunewise.studio import commands
from tunewise.studio.conversation import Answer, Conversation, Turn
from tunewise.studio.jobs import Job
from tunewise.studio.parts import (
    TextElement,
    alert,
    button,
    command,
    controls,
    details,
    element,
    job_line,
    paragraph,
    status,
)
from tunewise.studio.runs import Run
from tunewise.studio.server_address import address_of, models_of
from tunewise.studio.workspace import Workspace

_TICK = 0.5
_ROOM = 256  # tokens of an answer at most
_SECRET = "secret"
_SECONDS = 600  # that an answer may take


class Chat:
    """The chat with the adaptations of a comparison."""

    def __init__(self, workspace: Workspace, run: Run) -> None:
        self._workspace, self._run = workspace, run
        self._turns = Conversation(workspace, run)
        self._drawn: tuple[object, ...] = ()
        self._is_asking = False
        folders = {name: path for name, path in run.adaptations().items() if name != "base"}
        if not folders:
            paragraph("No adaptation has been saved yet.")
            return
        self._folders = folders
        chosen = [_first_asked(run, folders)]
        with controls("Adaptations to ask"):
            self._choice = ui.select(
                list(folders), label="Adaptations; the base answers too", value=chosen, multiple=True
            )
            self._choice.props("outlined dense use-chips").classes("wide")
            self._load = button("Load them", self._start, main=True)
            self._unload = button("Unload", self._stop)
        self._status = status()
        self._problem = element("div")
        self._command = element("div")
        self._conversation = element("div", classes="conversation", role="log", aria_label="Conversation")
        self._form = element("div", classes="controls ask", role="group", aria_label="Ask")
        with self._form:
            self._question = ui.input("Question").props("outlined dense").classes("wide").on("keydown.enter", self._ask)
            self._send = button("Ask", self._ask, main=True)
            button("New conversation", self._begin_anew)
        self._shown: tuple[int, int] | None = None  # the stamp of the turns that are shown
        self._choice.on_value_change(self._show_command)
        self._show_command()
        self._tick()
        ui.timer(_TICK, self._tick)

    @property
    def _job(self) -> Job | None:
        return self._workspace.jobs.latest("chat", self._run.folder)

    def _chosen(self) -> dict[str, Path]:
        return {name: self._folders[name] for name in self._choice.value or () if name in self._folders}

    def _show_command(self) -> None:
        self._command.clear()
        with self._command:
            if chosen := self._chosen():
                words = ["chat", *(f"{name}={folder}" for name, folder in chosen.items()), "--base"]
                command(words, "The same chat in a terminal")

    def _start(self) -> None:
        chosen = self._chosen()
        self._problem.clear()
        if not chosen:
            with self._problem:
                alert("choose at least one adaptation")
            return
        self._workspace.jobs.end(lambda job: job.record.kind == "chat")  # also of other comparisons: each holds a model
        token = secrets.token_urlsafe(24)
        job = self._workspace.jobs.start(
            "chat", commands.serve(chosen, 0), target=self._run.folder, environment={"TUNEWISE_TOKEN": token}
        )
        path = job.folder / _SECRET  # in a folder that only this user reads
        path.touch(mode=0o600)
        path.write_text(token)

    def _stop(self) -> None:
        if self._job is not None:
            self._job.stop()

    def _tick(self) -> None:
        if not self._is_asking and self._turns.stamp != self._shown:
            self._show_turns()
        job = self._job
        state = job.state if job is not None else "none"
        address = address_of(job) if job is not None and state == "running" else None
        ready = address is not None
        line = "ready" if ready else "its server has ended; load it again" if state in ("stopped", "done") else ""
        if job is not None and state == "running" and not ready:
            line = f"loading … {job.progress}"
        problem = job_line(job) if state == "failed" else ""
        drawn = (job.folder if job is not None else None, state, line, problem)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        self._status.set_text(line)
        self._form.set_visibility(ready)
        self._load.set_visibility(state != "running")
        self._unload.set_visibility(state == "running")
        if problem:
            self._problem.clear()
            with self._problem:
                alert(problem)

    async def _ask(self) -> None:
        job, text = self._job, str(self._question.value or "").strip()
        address = address_of(job) if job is not None else None
        if job is None or address is None or not text or self._is_asking:
            return
        self._is_asking = True
        self._question.set_value("")
        self._send.disable()
        try:
            headers = {"Authorization": f"Bearer {_secret(job)}"}
            names = await models_of(address, headers)
            asked = self._turns.messages(names, text)
            with self._conversation:
                element("p", text, "question")
                with element("ul", classes="answers"):
                    places = [_AnswerPlace(name) for name in names]
            answers = await asyncio.gather(
                *(place.answer(address, headers, messages) for place, messages in zip(places, asked, strict=True))
            )
            found = {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}
            if found:  # kept also where the page was closed meanwhile
                self._turns.add(Turn(question=text, answers=found))
                self._shown = self._turns.stamp
        except Exception as error:
            with self._conversation:
                alert(f"no answer: {error}")
        finally:
            self._is_asking = False
            self._send.enable()

    def _show_turns(self) -> None:
        """Show the turns of before, and those that another tab has added."""
        self._shown = self._turns.stamp
        self._conversation.clear()
        with self._conversation:
            for turn in self._turns.turns():
                element("p", turn.question, "question")
                with element("ul", classes="answers"):
                    for name, answer in turn.answers.items():
                        _AnswerPlace(name).show(answer)

    def _begin_anew(self) -> None:
        if not self._is_asking:
            self._turns.clear()
            self._show_turns()


class _AnswerPlace:
    """Where the answer of one adaptation is shown, also while it streams."""

    def __init__(self, name: str) -> None:
        self._name = name
        with element("li"):
            element("strong", name)
            self._text = TextElement("pre", "…")
            self._sources = element("div", classes="sources")

    def show(self, answer: Answer) -> None:
        """Show a whole answer; each of its sources can be opened."""
        if self._sources.is_deleted:  # the page was closed
            return
        self._text.set_text(answer.text or "(nothing)")
        with self._sources:
            for source, passage in answer.cited:
                with details(f"Source: {source}"):
                    element("pre", passage, tabindex="0", role="region", aria_label=f"What {source} says")

    async def answer(self, address: str, headers: dict[str, str], messages: list[dict[str, str]]) -> Answer | None:
        """Ask, and show what comes; None where the answer did not end."""
        body = {"model": self._name, "messages": messages, "stream": True, "max_tokens": _ROOM, "temperature": 0}
        text, sources, passages = "", tuple[str, ...](), tuple[str, ...]()
        try:
            async for choice in _choices(f"{address}/chat/completions", headers, {**body, "return_passages": True}):
                text += str(choice.get("delta", {}).get("content") or "")
                sources = tuple(map(str, choice.get("sources") or sources))
                passages = tuple(map(str, choice.get("passages") or passages))
                self._text.set_text(text or "…")
        except Exception as error:
            self._text.set_text(f"{text}\n(no answer: {error})")
            return None
        answer = Answer(text=text, sources=sources, passages=passages)
        self.show(answer)
        return answer


async def _choices(url: str, headers: dict[str, str], body: dict[str, object]) -> AsyncIterator[dict]:
    """Yield the choices of a stream of OpenAI's chunks.

    Raises:
        RuntimeError: the server refused the request, or failed; the message is its own.
    """
    import httpx

    async with (
        httpx.AsyncClient(timeout=_SECONDS, trust_env=False) as client,
        client.stream("POST", url, headers=headers, json=body) as response,
    ):
        if response.status_code != 200:
            await response.aread()
            raise RuntimeError(_message(response.text))
        async for line in response.aiter_lines():
            content = line.removeprefix("data: ").strip()
            if not content or content == "[DONE]" or not line.startswith("data: "):
                continue
            value = json.loads(content)
            if "error" in value:
                raise RuntimeError(_message(content))
            for choice in value.get("choices", []):
                yield choice


def _first_asked(run: Run, folders: Collection[str]) -> str:
    """Return the adaptation that is asked unless others are chosen: the recommended one, else the best one."""
    if run.result is None:
        return next(iter(folders))
    if run.result.recommended in folders:
        return str(run.result.recommended)
    return max((row for row in run.result.scored if row.technique in folders), key=lambda row: row.score.mean).technique


def _message(text: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return text[:300]


def _secret(job: Job) -> str:
    with suppress(ArtifactError):
        return artifact_reader.read_plain_file(job.folder / _SECRET, 4096).decode("ascii", "replace").strip()
    return ""
