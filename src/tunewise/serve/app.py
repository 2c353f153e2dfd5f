"""The HTTP server: OpenAI's routes over the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from tunewise.core.errors import RequestError
from tunewise.data.task import Message
from tunewise.serve import openai_schema
from tunewise.serve.decoding import Sampling
from tunewise.serve.metrics import Metrics
from tunewise.serve.middleware import Guard
from tunewise.serve.openai_responses import Choice, Form
from tunewise.serve.prompts import Question, TooLongError
from tunewise.serve.scheduler import Busy, Ended, Engine, Event, Failed, Job, Piece, Started, Stopping

BODY = 4 << 20  # bytes of a request at most


def application(engine: Engine, *, token: str | None = None, limit: int = BODY) -> FastAPI:
    """The server of an engine, which it starts and stops."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="tunewise", lifespan=life, docs_url=None, redoc_url=None)
    metrics = Metrics(engine)
    app.add_middleware(Guard, token=token, limit=limit, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok" if engine.alive else "stopped"}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(engine, name) for name in engine.readers]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in engine.readers:
            return _unknown(engine, name)
        return JSONResponse(_model(engine, name))

    @app.post("/v1/chat/completions")
    async def chat(asked: openai_schema.ChatRequest, request: Request) -> Response:
        turns = tuple(Message("system" if t.role == "developer" else t.role, t.text) for t in asked.messages)
        return await _answer(engine, metrics, asked, [Question(turns)], request)

    @app.post("/v1/completions")
    async def completions(asked: openai_schema.TextRequest, request: Request) -> Response:
        questions = [Question((Message("user", text),), raw=True) for text in asked.prompts]
        return await _answer(engine, metrics, asked, questions, request)

    return app


@dataclass
class _Exchange:
    """One request while it is answered: its jobs, their events as they come, and what is known of each answer."""

    asked: openai_schema.ChatRequest | openai_schema.TextRequest
    jobs: list[Job]
    events: asyncio.Queue[tuple[int, Event]]
    choices: list[Choice]
    form: Form

    def cancel(self) -> None:
        """Stop what is still being written."""
        for job in self.jobs:
            job.cancelled = True

    async def progress(self) -> AsyncIterator[tuple[int, Event]]:
        """Events until every answer is whole; the answers are kept up to date.

        Raises:
            Exception: that of an answer that failed.
        """
        while any(choice.reason is None for choice in self.choices):
            index, event = await self.events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Started):
                choice.prompt_tokens, choice.sources = event.prompt_tokens, event.sources
            elif isinstance(event, Piece):
                choice.text += event.text
                choice.tokens.append(event.token)
            else:
                choice.reason, choice.completion_tokens = event.reason, event.completion_tokens
            yield index, event


def _begin(
    engine: Engine, asked: openai_schema.ChatRequest | openai_schema.TextRequest, questions: Sequence[Question]
) -> _Exchange:
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
    jobs: list[Job] = []
    for question in questions:
        for number in range(asked.n):
            index = len(jobs)
            seed = None if asked.seed is None else (asked.seed + number) % 2**63

            def tell(event: Event, index: int = index) -> None:
                with suppress(RuntimeError):  # the loop is gone: nobody listens any more
                    loop.call_soon_threadsafe(events.put_nowait, (index, event))

            how = Sampling(temperature=asked.temperature, top_p=asked.top_p, seed=seed, logprobs=asked.alternatives)
            jobs.append(Job(asked.model, question, how, tell, asked.room, asked.stops))
    reader = engine.readers[asked.model]
    form = Form(isinstance(asked, openai_schema.ChatRequest), asked.model, lambda token: reader.spell(token))
    engine.submit(jobs)
    return _Exchange(asked, jobs, events, [Choice() for _ in jobs], form)


async def _answer(
    engine: Engine,
    metrics: Metrics,
    asked: openai_schema.ChatRequest | openai_schema.TextRequest,
    questions: Sequence[Question],
    request: Request,
) -> Response:
    if asked.model not in engine.readers:
        return _unknown(engine, asked.model)
    try:
        exchange = _begin(engine, asked, questions)
    except (Busy, Stopping) as error:
        return _failed(error)
    if asked.stream:
        try:
            opening = await _opening(exchange)
        except Exception as error:
            exchange.cancel()
            return _failed(error)
        return StreamingResponse(_stream(exchange, opening, metrics), media_type="text/event-stream")
    leaving = asyncio.create_task(_left(request))
    whole = asyncio.create_task(_whole(exchange))
    try:
        await asyncio.wait({leaving, whole}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(whole.result())
    except Exception as error:
        return _failed(error)
    finally:
        exchange.cancel()
        _count(exchange, metrics)
        leaving.cancel()
        whole.cancel()


async def _left(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(exchange: _Exchange) -> dict[str, Any]:
    async for _ in exchange.progress():
        pass
    return exchange.form.whole(exchange.choices, exchange.asked.n, exchange.asked.alternatives is not None)


async def _opening(exchange: _Exchange) -> tuple[AsyncIterator[tuple[int, Event]], tuple[int, Event]]:
    """The events of a stream, of which the first one is waited for: a refusal still has its status."""
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
        if exchange.asked.tells_usage:
            yield openai_schema.event(exchange.form.numbers(exchange.choices, exchange.asked.n))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already; the stream itself must say it
        yield openai_schema.event(openai_schema.error(str(error), "server_error"))
    finally:
        exchange.cancel()
        _count(exchange, metrics)


def _chunks(exchange: _Exchange, index: int, event: Event) -> list[dict[str, Any]]:
    form, choice = exchange.form, exchange.choices[index]
    if isinstance(event, Started):
        return [form.first(index, choice)]
    if isinstance(event, Ended):
        return [form.last(index, event.reason)]
    if not isinstance(event, Piece) or not (event.text or exchange.asked.alternatives is not None):
        return []
    before = len(choice.text) - len(event.text)
    told = form.logprobs([event.token], before) if exchange.asked.alternatives is not None else None
    return [form.piece(index, event.text, told)]


def _count(exchange: _Exchange, metrics: Metrics) -> None:
    for choice in exchange.choices:
        metrics.tokens(exchange.asked.model, choice.prompt_tokens, len(choice.tokens))


def _model(engine: Engine, name: str) -> dict[str, Any]:
    outfit = engine.wardrobe.outfits[name]
    attachment = outfit.adaptation.attachment
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
    """The response to a request that could not be answered."""
    if isinstance(error, Busy):
        return JSONResponse(
            openai_schema.error(str(error), "rate_limit_error", "queue_full"), 429, {"Retry-After": "1"}
        )
    if isinstance(error, Stopping):
        return JSONResponse(openai_schema.error(str(error), "server_error", "stopping"), 503, {"Retry-After": "5"})
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if isinstance(error, TooLongError) else None
        return JSONResponse(openai_schema.error(str(error), "invalid_request_error", code), 400)
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return JSONResponse(openai_schema.error(f"the answer failed: {said}", "server_error"), 500)


def _unknown(engine: Engine, name: str) -> JSONResponse:
    said = f'there is no model "{name[:100]}" here; there are {", ".join(engine.readers)}'
    return JSONResponse(openai_schema.error(said, "invalid_request_error", "model_not_found", "model"), 404)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    found = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    where = ".".join(str(part) for part in found["loc"][1:])
    said = f"{where}: {found['msg']}" if where else f"the request is not as it should be: {found['msg']}"
    return JSONResponse(openai_schema.error(said, "invalid_request_error", None, where or None), 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = str(error.detail) if isinstance(error, HTTPException) else "failed"
    return JSONResponse(openai_schema.error(f"{request.url.path[:100]}: {said}", "invalid_request_error"), status)
