"""The HTTP server: OpenAI's routes over the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tunewise.core.errors import RequestError
from tunewise.data.task import Message
from tunewise.engine.decoding import Sampling
from tunewise.serve import openai_schema
from tunewise.serve.metrics import Metrics
from tunewise.serve.middleware import Guard
from tunewise.serve.openai_responses import Choice, CompletionResponse, Form
from tunewise.serve.prompts import Question, TooLongError
from tunewise.serve.scheduler import Busy, Ended, Engine, Event, Failed, Job, Piece, Started, Stopping

BODY = 4 << 20  # bytes of a request at most

_Body: TypeAlias = openai_schema.ChatRequest | openai_schema.TextRequest


class _ModelEntry(TypedDict):
    """An entry of /v1/models; OpenAI's fields, the technique, and whether it leaves the base's own weights alone."""

    id: str
    object: str
    created: int
    owned_by: str
    technique: str
    swappable: bool


def application(
    engine: Engine, *, token: str | None = None, limit: int = BODY, hosts: Collection[str] | None = None
) -> FastAPI:
    """Build the server of an engine, which it starts and stops.

    Args:
        engine: the engine, not yet started.
        token: what clients must send as their API key; None: nothing.
        limit: bytes of a request's body at most.
        hosts: names by which the server may be addressed, and from whose pages a browser may ask; None: any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="tunewise", lifespan=lifespan, docs_url=None, redoc_url=None)
    metrics = Metrics(engine)
    app.add_middleware(Guard, token=token, limit=limit, metrics=metrics, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok" if engine.alive else "stopped"}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [_model(engine, name) for name in engine.readers]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in engine.readers:
            return _unknown(engine, name)
        return JSONResponse(_model(engine, name))

    @app.post("/v1/chat/completions")
    async def chat(body: openai_schema.ChatRequest, request: Request) -> Response:
        messages = tuple(
            Message("system" if turn.role == "developer" else turn.role, turn.text, fields=turn.fields)
            for turn in body.messages
        )
        question = Question(messages, tools=body.offered, template_kwargs=body.template_kwargs)
        return await _answer(engine, metrics, body, [question], request)

    @app.post("/v1/completions")
    async def completions(body: openai_schema.TextRequest, request: Request) -> Response:
        questions = [Question((Message("user", text),), raw=True) for text in body.prompts]
        return await _answer(engine, metrics, body, questions, request)

    return app


@dataclass
class _Exchange:
    """One request while it is answered: its jobs, their events as they come, and each answer as far as it has got."""

    body: _Body
    jobs: list[Job]
    events: asyncio.Queue[tuple[int, Event]]
    choices: list[Choice]
    form: Form

    def cancel(self) -> None:
        """Stop the jobs that still run."""
        for job in self.jobs:
            job.cancelled = True

    async def progress(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events of all answers until each is complete, and update `choices` by them.

        Raises:
            Exception: the error of an answer that failed.
        """
        while any(choice.reason is None for choice in self.choices):
            index, event = await self.events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Started):
                choice.prompt_tokens, choice.citations = event.prompt_tokens, event.citations
            elif isinstance(event, Piece):
                choice.text += event.text
                choice.tokens.append(event.token)
            else:
                choice.reason, choice.completion_tokens = event.reason, event.completion_tokens
            yield index, event


def _begin(engine: Engine, body: _Body, questions: Sequence[Question]) -> _Exchange:
    """Submit a job for each of the `n` answers to each question."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
    jobs: list[Job] = []
    for question in questions:
        for number in range(body.n):
            index = len(jobs)
            seed = None if body.seed is None else (body.seed + number) % 2**63

            def tell(event: Event, index: int = index) -> None:
                with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
                    loop.call_soon_threadsafe(events.put_nowait, (index, event))

            sampling = Sampling(temperature=body.temperature, top_p=body.top_p, seed=seed, logprobs=body.alternatives)
            jobs.append(Job(body.model, question, sampling, tell, body.room, body.stops))
    reader = engine.readers[body.model]
    is_chat = isinstance(body, openai_schema.ChatRequest)
    calls = isinstance(body, openai_schema.ChatRequest) and bool(body.offered)
    form = Form(is_chat, body.model, lambda token: reader.spell(token), calls=calls, passages=body.return_passages)
    engine.submit(jobs)
    return _Exchange(body, jobs, events, [Choice() for _ in jobs], form)


async def _answer(
    engine: Engine, metrics: Metrics, body: _Body, questions: Sequence[Question], request: Request
) -> Response:
    if body.model not in engine.readers:
        return _unknown(engine, body.model)
    wanted = len(questions) * body.n
    if wanted > engine.queue:
        message = f"the request asks for {wanted} answers, and at most {engine.queue} can wait here; ask for fewer"
        return JSONResponse(openai_schema.error(message, "invalid_request_error", None, "n"), 400)
    try:
        exchange = _begin(engine, body, questions)
    except (Busy, Stopping) as error:
        return _failed(error)
    if body.stream:
        try:
            opening = await _opening(exchange)
        except Exception as error:
            exchange.cancel()
            return _failed(error)
        return StreamingResponse(_stream(exchange, opening, metrics), media_type="text/event-stream")
    disconnect = asyncio.create_task(_disconnect(request))
    whole = asyncio.create_task(_whole(exchange))
    try:
        await asyncio.wait({disconnect, whole}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(whole.result())
    except Exception as error:
        return _failed(error)
    finally:
        exchange.cancel()
        _count(exchange, metrics)
        disconnect.cancel()
        whole.cancel()


async def _disconnect(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(exchange: _Exchange) -> CompletionResponse:
    async for _ in exchange.progress():
        pass
    return exchange.form.whole(exchange.choices, exchange.body.n, exchange.body.alternatives is not None)


async def _opening(exchange: _Exchange) -> tuple[AsyncIterator[tuple[int, Event]], tuple[int, Event]]:
    """Wait for the first event of a stream, so that a refusal can still set the response's status."""
    events = exchange.progress()
    return events, await anext(events)


async def _stream(
    exchange: _Exchange, opening: tuple[AsyncIterator[tuple[int, Event]], tuple[int, Event]], metrics: Metrics
) -> AsyncIterator[str]:
    events, first = opening
    try:
        for chunk in _chunks(exchange, *first):
            yield openai_schema.event(chunk)
        async for index, event in events:
            for chunk in _chunks(exchange, index, event):
                yield openai_schema.event(chunk)
        if exchange.body.tells_usage:
            yield openai_schema.event(exchange.form.numbers(exchange.choices, exchange.body.n))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status has been sent already, so the stream itself must say it
        yield openai_schema.event(openai_schema.error(str(error), "server_error"))
    finally:
        exchange.cancel()
        _count(exchange, metrics)


def _chunks(exchange: _Exchange, index: int, event: Event) -> list[CompletionResponse]:
    form, choice = exchange.form, exchange.choices[index]
    if isinstance(event, Started):
        return [form.first(index, choice)]
    if isinstance(event, Ended):
        return form.last(index, choice)
    if not isinstance(event, Piece) or not (event.text or exchange.body.alternatives is not None):
        return []
    if form.calls:  # the whole answer says whether it is a call
        return []
    offset = len(choice.text) - len(event.text)
    logprobs = form.logprobs([event.token], offset) if exchange.body.alternatives is not None else None
    return [form.piece(index, event.text, logprobs)]


def _count(exchange: _Exchange, metrics: Metrics) -> None:
    for choice in exchange.choices:
        metrics.tokens(exchange.body.model, choice.prompt_tokens, len(choice.tokens))


def _model(engine: Engine, name: str) -> _ModelEntry:
    attachment = engine.pool.slots[name].adaptation.attachment
    return {
        "id": name,
        "object": "model",
        "created": engine.created,
        "owned_by": "tunewise",
        "technique": attachment.recipe.name,
        "swappable": attachment.swappable,
    }


# Errors.


def _failed(error: Exception) -> JSONResponse:
    """Build the response to a request that could not be answered."""
    if isinstance(error, Busy):
        return JSONResponse(
            openai_schema.error(str(error), "rate_limit_error", "queue_full"), 429, {"Retry-After": "1"}
        )
    if isinstance(error, Stopping):
        return JSONResponse(openai_schema.error(str(error), "server_error", "stopping"), 503, {"Retry-After": "5"})
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if isinstance(error, TooLongError) else None
        return JSONResponse(openai_schema.error(str(error), "invalid_request_error", code), 400)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return JSONResponse(openai_schema.error(f"the answer failed: {reason}", "server_error"), 500)


def _unknown(engine: Engine, name: str) -> JSONResponse:
    message = f'there is no model "{name[:100]}" here; there are {", ".join(engine.readers)}'
    return JSONResponse(openai_schema.error(message, "invalid_request_error", "model_not_found", "model"), 404)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    problem = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    where = ".".join(str(part) for part in problem["loc"][1:])
    message = f"{where}: {problem['msg']}" if where else f"the request's body is invalid: {problem['msg']}"
    return JSONResponse(openai_schema.error(message, "invalid_request_error", None, where or None), 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = str(error.detail) if isinstance(error, HTTPException) else "failed"
    return JSONResponse(openai_schema.error(f"{request.url.path[:100]}: {reason}", "invalid_request_error"), status)
