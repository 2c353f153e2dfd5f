"""Several adaptations over one base: each answers as it does alone, through OpenAI's own client too."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import openai
import pytest
import uvicorn

from tunewise.adaptation.artifact import load, save
from tunewise.data.task import Message
from tunewise.engine.decoding import Cohort, Sampling
from tunewise.serve.adaptation_pool import AdaptationPool
from tunewise.serve.app import application
from tunewise.serve.detokenizer import Text
from tunewise.serve.loading import unadapted
from tunewise.serve.prompts import Question
from tunewise.serve.scheduler import Busy, Ended, Engine, Failed, Job, Piece
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, example_settings, fingerprint, fit, tiny_base, tiny_task

TASK = tiny_task("generation")
PROMPTS = [example.prompt for example in TASK.test]
NAMES = [name for name in all_techniques() if name != "base"] + ["peft:ia3", "icl+lora"]
SETTINGS = {**example_settings(), "rag": {"k": 1}}
NEW = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every technique saved, what each says alone, and all of them over one base: (engine, answers, bare bits)."""
    base, folder, alone = tiny_base("llama"), tmp_path_factory.mktemp("served"), {}
    for name in NAMES:
        attachment = attach(make(name, SETTINGS), base, TASK)
        fit(attachment, steps=4, task=TASK)
        save(attachment, TASK, folder / name)
        base.release()
        adaptation = load(folder / name, base=base)
        alone[name] = [adaptation.generate(prompt, NEW) for prompt in PROMPTS]
        base.release()
    bits, pool = fingerprint(base), AdaptationPool(base)
    pool.add("tiny", unadapted)
    for name in NAMES:
        pool.add(name, lambda base, name=name: load(folder / name, base=base))
        assert fingerprint(base) == bits, name
    return pool, alone, bits


@pytest.fixture(scope="module")
def server(world):
    """The address of a server that a thread of this process runs."""
    app = application(Engine(world[0], queue=400, rows=16), token="secret", limit=20_000)
    place = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{place.getsockname()[1]}"
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    assert fingerprint(world[0].base) == world[2]


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="secret", max_retries=0)


def talk(prompt):
    return [{"role": "user", "content": prompt}]


def say(client, model, prompt, **more):
    return client.chat.completions.create(
        model=model, messages=talk(prompt), **{"max_tokens": NEW, "temperature": 0, **more}
    )


def test_interleaved_requests_answer_as_each_alone(client, world):
    """All techniques, 32 requests at once, in an order that changes the adaptation at every one."""
    requests = [(name, i) for i in range(len(PROMPTS)) for name in NAMES]
    with ThreadPoolExecutor(32) as threads:
        responses = list(threads.map(lambda pair: say(client, pair[0], PROMPTS[pair[1]]), requests))
    texts = [response.choices[0].message.content for response in responses]
    wrong = [pair for pair, text in zip(requests, texts, strict=True) if text != world[1][pair[0]][pair[1]]]
    assert not wrong
    assert len({tuple(world[1][name]) for name in NAMES}) > 5, "the adaptations all say the same"


def test_swappable_is_what_leaves_the_base_alone(world):
    for name in NAMES:
        slot = world[0].slots[name]
        assert slot.adaptation.attachment.swappable == (not slot.swapped_tensors), name
    assert world[0].slots["full"].swapped_tensors and not world[0].slots["lora"].swapped_tensors


@pytest.mark.parametrize("architecture", ["mistral", "gpt2"])
def test_joining_rows_change_nothing(architecture):
    """Rows of other lengths that join between steps, a sliding window or not."""
    base = tiny_base(architecture)
    prompts = ["a", "the cat sat on a mat and the dog ran to town while small birds sing in old trees by day", "dog"]
    adaptation = unadapted(base)
    alone = [adaptation.generate(prompt, 12) for prompt in prompts]
    base.release()
    pool = AdaptationPool(base)
    pool.add("tiny", unadapted)
    engine, events = Engine(pool), [[] for _ in prompts]

    def tell(index):
        def hear(event):
            events[index].append(event)
            if isinstance(event, Piece) and len(events[index]) == 4 and index + 1 < len(prompts):
                engine.submit([job(index + 1)])

        return hear

    def job(index):
        return Job("tiny", Question((Message("user", prompts[index]),)), Sampling(), tell(index), 12)

    engine.start()
    engine.submit([job(0)])
    deadline = time.monotonic() + 20
    while engine.counts.steps < 12 or engine.counts.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    engine.stop(10)
    assert ["".join(e.text for e in answer if isinstance(e, Piece)) for answer in events] == alone


def test_stream_usage_and_stop(client):
    whole = say(client, "lora", PROMPTS[0])
    chunks = list(say(client, "lora", PROMPTS[0], stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 3
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens <= NEW
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    stop = text[2:4]
    assert (
        stop
        and say(client, "lora", PROMPTS[0], stop=[stop]).choices[0].message.content == text[: text.index(stop)].strip()
    )


def test_logprobs_seeds_and_choices(client):
    tokens = say(client, "tiny", PROMPTS[0], logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(tokens) <= NEW and all(t.logprob == t.top_logprobs[0].logprob <= 0 for t in tokens)
    drawn = [say(client, "tiny", "the", temperature=1.5, seed=seed, n=2).choices for seed in (1, 1, 2)]
    texts = [[choice.message.content for choice in choices] for choices in drawn]
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]
    assert [c.message.content for c in say(client, "tiny", "the", temperature=1, top_p=1e-9, n=2).choices] == [
        say(client, "tiny", "the").choices[0].message.content
    ] * 2


def test_completions(client):
    completion = client.completions.create(model="tiny", prompt=PROMPTS[:2], max_tokens=4, temperature=0, logprobs=2)
    assert len(completion.choices) == 2 and completion.usage.completion_tokens <= 8
    assert all(len(choice.logprobs.tokens) <= 4 for choice in completion.choices)


def test_sources_are_cited(client):
    asked = {"return_passages": True}
    cited = say(client, "rag", PROMPTS[0], extra_body=asked).choices[0].model_extra
    assert cited["sources"] and all(source.startswith("train/") for source in cited["sources"])
    assert len(cited["passages"]) == len(cited["sources"]) and all(cited["passages"])
    streamed = [chunk.choices[0].model_extra for chunk in say(client, "rag", PROMPTS[0], stream=True, extra_body=asked)]
    assert streamed[0] == cited and not any("sources" in each for each in streamed[1:])
    assert "passages" not in say(client, "rag", PROMPTS[0]).choices[0].model_extra
    assert not say(client, "lora", PROMPTS[0], extra_body=asked).choices[0].model_extra


def test_errors_are_openais(client, server):
    assert [model.id for model in client.models.list()] == ["tiny", *NAMES]
    for error, wrong in (
        (openai.NotFoundError, {"model": "nobody"}),
        (openai.BadRequestError, {"max_tokens": 10_000}),
        (openai.BadRequestError, {"temperature": 9}),
        (openai.BadRequestError, {"presence_penalty": 1}),
        (openai.BadRequestError, {"response_format": {"type": "json_object"}}),
    ):
        with pytest.raises(error) as caught:
            say(client, **{"model": "tiny", "prompt": "the", **wrong})
        assert caught.value.body["message"]
    with pytest.raises(openai.AuthenticationError):
        say(openai.OpenAI(base_url=f"{server}/v1", api_key="guess"), "tiny", "the")
    with pytest.raises(openai.APIStatusError) as caught:
        say(client, "tiny", "x" * 30_000)
    assert caught.value.status_code == 413
    assert httpx.get(f"{server}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server}/metrics").status_code == 401


def test_clients_that_leave(client, server, world):
    """Their answers end, the queue goes on, nothing is left running."""
    headers = {"Authorization": "Bearer secret"}
    body = {"model": "lora", "messages": talk("the"), "max_tokens": 200, "temperature": 1}
    for index in range(24):
        sent = {**body, "stream": index % 2 == 0}
        with suppress(httpx.TimeoutException):
            httpx.post(f"{server}/v1/chat/completions", json=sent, headers=headers, timeout=0.02)
    assert say(client, "lora", PROMPTS[0]).choices[0].message.content == world[1]["lora"][0]
    deadline = time.monotonic() + 20
    while True:
        numbers = httpx.get(f"{server}/metrics", headers=headers).text
        if "tunewise_running 0.0" in numbers and "tunewise_waiting 0.0" in numbers:
            break
        assert time.monotonic() < deadline, numbers
        time.sleep(0.05)
    assert "tunewise_cancelled_total" in numbers


def test_a_full_queue_is_refused():
    pool = AdaptationPool(tiny_base("llama"))
    pool.add("tiny", unadapted)
    engine, events = Engine(pool, queue=1), []
    engine._thread.is_alive = lambda: True  # nothing takes from the queue
    job = Job("tiny", Question((Message("user", "a"),)), Sampling(), events.append, 2)
    engine.submit([job])
    with pytest.raises(Busy):
        engine.submit([job])


def test_a_failed_question_costs_itself_alone():
    pool = AdaptationPool(tiny_base("llama"))
    pool.add("tiny", unadapted)
    engine, events = Engine(pool), []
    jobs = [
        Job("tiny", Question((Message("user", text),)), Sampling(), events.append, 4) for text in ("a " * 5000, "the")
    ]
    engine.start()
    engine.submit(jobs)
    engine.stop(10)
    assert sum(isinstance(event, Failed) for event in events) == 1 and any(isinstance(e, Piece) for e in events)


@pytest.mark.parametrize("where", ["_forward", "draw", "step"])
def test_whatever_fails_while_decoding_costs_its_rows_alone(monkeypatch, where):
    """Not only what torch raises: the client is told, and the next question is answered."""
    pool = AdaptationPool(tiny_base("llama"))
    pool.add("tiny", unadapted)
    engine, events = Engine(pool), []

    def ask():
        engine.submit([Job("tiny", Question((Message("user", "the"),)), Sampling(), events.append, 4)])
        deadline = time.monotonic() + 10
        while not events or not isinstance(events[-1], (Failed, Ended)):
            assert time.monotonic() < deadline, events
            time.sleep(0.01)
        return events.pop()

    def fail(*_):
        raise ValueError("a hook failed")

    engine.start()
    with monkeypatch.context() as broken:
        broken.setattr(Cohort, where, fail)
        assert isinstance(ask(), Failed) and engine.alive
    assert isinstance(ask(), Ended)
    engine.stop(10)


def test_text_tells_only_what_is_certain():
    letters = "  the é end STOP more"
    raw = letters.encode()
    for strip in (True, False):
        text = Text(lambda ids: bytes(ids).decode(errors="replace"), ["STOP"], strip)
        pieces = []
        for byte in raw:
            pieces.append(text.push(byte))
            if text.stopped:
                break
        whole = letters.partition("STOP")[0]
        assert "".join(pieces) == (whole.strip() if strip else whole) and text.stopped
