"""Commands that serve adaptations, chat with them, and answer a file of prompts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.console import command_again, echo, print_json
from tunewise.cli.options import BaseLocation, Data, Device, Json, grouped_options, only
from tunewise.cli.progress_display import progress_display
from tunewise.contract.places import Places
from tunewise.core.errors import SettingError
from tunewise.core.extras import require
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row
from tunewise.resolve import DataOptions, pairs

if TYPE_CHECKING:
    from tunewise.serve.scheduler import Engine

Adaptations = Annotated[
    list[str], typer.Argument(help="Folders of adaptations or PEFT adapters of one base; NAME=FOLDER sets a name.")
]
NewTokens = Annotated[int, typer.Option(help="Maximum number of tokens per answer.", min=1)]


@dataclass(frozen=True, kw_only=True)
class ServedPlaces:
    """What several adaptations use besides their base."""

    knowledge: Annotated[
        list[str] | None, typer.Option(help="Index that rag searches; NAME=PLACE gives it to one adaptation.")
    ] = None
    embedder: Annotated[
        list[str] | None, typer.Option(help="Embedder that rag or icl searches by; NAME=MODEL gives it to one.")
    ] = None
    reranker: Annotated[
        list[str] | None, typer.Option(help="Cross-encoder that orders what rag found; NAME=MODEL gives it to one.")
    ] = None

    def by_name(self, names: Iterable[str]) -> dict[str, Places]:
        """Return the places of each adaptation."""
        from tunewise.serve.loading import places_by_name

        return places_by_name([*names], {name: values or [] for name, values in asdict(self).items()})


@grouped_options
def serve(
    adaptations: Adaptations,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs a token.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="TUNEWISE_TOKEN", help="API key that clients must send.")] = None,
    model: BaseLocation = None,
    device: Device = None,
    engine: Annotated[str, typer.Option(help="Engine: tunewise, or vllm where that is installed.")] = "tunewise",
    rows: Annotated[int, typer.Option("--max-batch", help="Answers generated at a time.", min=1)] = 32,
    queue: Annotated[
        int, typer.Option("--max-waiting", help="Answers that may wait; further requests get status 429.", min=1)
    ] = 256,
    drain: Annotated[int, typer.Option(help="Seconds that running answers have to finish after SIGTERM.", min=0)] = 30,
    *,
    used: ServedPlaces,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and print what would be served.")] = False,
) -> None:
    """Serve adaptations of one base with OpenAI's API; a request chooses its adaptation by the field `model`."""
    if engine not in ("tunewise", "vllm"):
        raise SettingError(f'engine is "{engine}" but must be tunewise or vllm')
    if token is not None and not token.strip():
        raise SettingError("the token is empty; give a long random one, or none")
    quiet()
    _require_serving()
    from tunewise.serve.loading import adaptation_folders
    from tunewise.serve.server import loopback

    if token is None and not loopback(host):
        raise SettingError(
            f"{host} can be reached from other machines; give a token (--token, or TUNEWISE_TOKEN), or use 127.0.0.1"
        )
    folders = adaptation_folders(adaptations)
    if engine == "vllm":
        _run_vllm(folders, model, host, port, token, dry_run)
        return
    from tunewise.serve.app import application
    from tunewise.serve.loading import load_pool
    from tunewise.serve.scheduler import Engine
    from tunewise.serve.server import LOOPBACK_NAMES, listening, run

    listener = listening(host, port)
    with progress_display() as display:
        pool = load_pool(folders, model, device, for_row(display, "serve"), used.by_name(folders))
    names = ", ".join(pool.slots)
    if dry_run:
        listener.close()
        echo(f"would serve {names}")
        return
    url_host = f"[{host}]" if ":" in host else host
    address = f"http://{url_host}:{listener.getsockname()[1]}/v1"
    hosts = {*LOOPBACK_NAMES, host} if loopback(host) else None
    served = application(Engine(pool, queue=queue, rows=rows), token=token, hosts=hosts)
    run(served, listener, drain, ready=lambda: echo(f"serving {names} at {address}", err=True))
    echo(f"stopped; to serve again: {command_again()}", err=True)


def _run_vllm(
    folders: dict[str, Path], model: str | None, host: str, port: int, token: str | None, dry_run: bool
) -> None:
    from shutil import which

    from tunewise.serve.vllm import vllm_command

    command = vllm_command(folders, model, host, port)
    if dry_run:
        echo(shlex.join(command))
        return
    program = which("vllm")
    if program is None:
        raise SettingError("vllm is not installed; install vllm here, or leave --engine out")
    echo(shlex.join(command), err=True)
    # The token goes through the environment: a command line can be read by every user of the machine.
    os.execve(program, command, {**os.environ, **({"VLLM_API_KEY": token} if token else {})})  # noqa: S606


def _require_serving() -> None:
    require("a server", "fastapi", "pydantic", "uvicorn", "prometheus_client")


@grouped_options
def chat(
    adaptations: Adaptations,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message of the conversation.")] = None,
    model: BaseLocation = None,
    device: Device = None,
    max_new_tokens: NewTokens = 256,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0: always the most likely token.", min=0.0, max=2.0)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens that have this share of the probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Random seed of sampling.")] = None,
    with_base: Annotated[bool, typer.Option("--base", help="Show the base's answers too.")] = False,
    *,
    used: ServedPlaces,
    as_json: Json = False,
) -> None:
    """Chat with one adaptation, or with several side by side."""
    if as_json and prompt is None:
        raise SettingError("--json is for one question; give it with --prompt")
    if not 0 < top_p <= 1:
        raise SettingError(f"top_p is {top_p} but must be more than 0 and at most 1")
    quiet()
    from tunewise.cli.chat import Chat
    from tunewise.engine.decoding import Sampling
    from tunewise.serve.loading import adaptation_folders, load_pool
    from tunewise.serve.scheduler import Engine

    folders = adaptation_folders(adaptations)
    with progress_display() as display:
        pool = load_pool(folders, model, device, for_row(display, "chat"), used.by_name(folders))
    names = [name for name in pool.slots if with_base or name in folders]
    with _started(Engine(pool)) as engine:
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        conversation = Chat(engine, names, sampling, max_new_tokens, system)
        if prompt is None:
            conversation.run()
            return
        replies = conversation.ask(prompt, show=not as_json)
        if as_json:
            answers = {name: {"text": reply.text, "sources": reply.sources} for name, reply in replies.items()}
            print_json({"prompt": prompt, "answers": answers})


@contextmanager
def _started(engine: Engine) -> Iterator[Engine]:
    """Start an engine's thread, and stop it in the end."""
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(timeout=10)


@grouped_options
def generate(
    adaptation: Annotated[str, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file for the answers; an existing one is continued.")],
    model: BaseLocation = None,
    device: Device = None,
    *,
    reading: Annotated[DataOptions, only("columns")],
    places: Places,
    max_new_tokens: NewTokens = 128,
    batch_size: Annotated[int, typer.Option(help="Answers generated at a time.", min=1)] = 16,
    as_json: Json = False,
) -> None:
    """Answer every prompt of a file; run again after an interruption, it continues where it stopped."""
    from tunewise.serve.answer_file import AnswerFile
    from tunewise.serve.prompt_file import read_prompts

    questions = read_prompts(data, pairs(reading.columns))
    quiet()
    from tunewise.serve.loading import adaptation_folders, load_pool

    folders = adaptation_folders([adaptation])
    name = next(iter(folders))
    with AnswerFile.held(out, questions, name) as file:
        unanswered = file.left()
        if unanswered:
            from tunewise.serve.client import answer_all
            from tunewise.serve.scheduler import Engine

            with progress_display() as display:
                pool = load_pool(folders, model, device, for_row(display, name), {name: places})
                with _started(Engine(pool, queue=2 * batch_size, rows=batch_size)) as engine:
                    before = len(questions) - len(unanswered)
                    open_questions = {number: questions[number] for number in unanswered}
                    # Closed at once where an answer cannot be kept: what is being written then is given up.
                    with closing(answer_all(engine, name, open_questions, batch_size, max_new_tokens)) as replies:
                        for done, (number, reply) in enumerate(replies, before + 1):
                            file.add(number, reply)
                            display(name, "answering", done, len(questions))
        file.put_in_order()
    result = {"adaptation": name, "out": str(out), "answers": len(questions), "new": len(unanswered)}
    if as_json:
        print_json(result)
    else:
        echo(f"{len(questions)} answers in {out}, {len(unanswered)} of them new")
