"""Commands on finished adaptations: serve them, talk to them, have them answer a file of prompts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.console import print_json, progress
from tunewise.cli.options import Columns, Config, Data, Device, Json
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.resolve import pairs

Adaptations = Annotated[
    list[str], typer.Argument(help="Folders of adaptations or PEFT adapters of one base; NAME=FOLDER names one.")
]
Where = Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")]
NewTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)]


def serve(
    adaptations: Adaptations,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="TUNEWISE_TOKEN", help="What clients must send as their API key.")
    ] = None,
    model: Where = None,
    device: Device = None,
    engine: Annotated[str, typer.Option(help="tunewise, or vllm where that is installed.")] = "tunewise",
    rows: Annotated[int, typer.Option("--max-batch", help="Answers written at a time.", min=1)] = 32,
    queue: Annotated[int, typer.Option("--max-waiting", help="Answers that may wait; more get 429.", min=1)] = 256,
    drain: Annotated[int, typer.Option(help="Seconds that running answers have after SIGTERM.", min=0)] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be served, only.")] = False,
    config: Config = None,
) -> None:
    """Serve adaptations of one base with OpenAI's API; the model of a request chooses the adaptation."""
    if engine not in ("tunewise", "vllm"):
        raise SettingError(f'engine is "{engine}" but must be tunewise or vllm')
    if token is not None and not token.strip():
        raise SettingError("the token is empty; give a long random one, or none")
    quiet()
    _need_serving()
    from tunewise.serve.loading import named
    from tunewise.serve.server import loopback

    if token is None and not loopback(host):
        raise SettingError(
            f"{host} can be reached from other machines; give a token (--token, or TUNEWISE_TOKEN), or use 127.0.0.1"
        )
    folders = named(adaptations)
    if engine == "vllm":
        _vllm(folders, model, host, port, token, dry_run)
        return
    from tunewise.serve.app import application
    from tunewise.serve.loading import opened
    from tunewise.serve.scheduler import Engine
    from tunewise.serve.server import listening, run

    place = listening(host, port)
    with progress() as show:
        pool = opened(folders, model, device, lambda what, done, total: show("serve", what, done, total))
    names = ", ".join(pool.slots)
    if dry_run:
        place.close()
        typer.echo(f"would serve {names}")
        return
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"serving {names} at http://{shown}:{place.getsockname()[1]}/v1", err=True)
    run(application(Engine(pool, queue=queue, rows=rows), token=token), place, drain)


def _vllm(folders: dict[str, Path], model: str | None, host: str, port: int, token: str | None, dry_run: bool) -> None:
    from shutil import which

    from tunewise.serve.vllm import vllm_command

    command = vllm_command(folders, model, host, port)
    if dry_run:
        typer.echo(shlex.join(command))
        return
    found = which("vllm")
    if found is None:
        raise SettingError("vllm is not installed; install vllm here, or leave --engine out")
    typer.echo(shlex.join(command), err=True)
    # The token goes through the environment: a command line can be read by every user of the machine.
    os.execve(found, command, {**os.environ, **({"VLLM_API_KEY": token} if token else {})})  # noqa: S606


def _need_serving() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise SettingError(f"serving needs {', '.join(missing)}; install tunewise[serve]")


def chat(
    adaptations: Adaptations,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    system: Annotated[str | None, typer.Option(help="What the conversation begins with.")] = None,
    model: Where = None,
    device: Device = None,
    max_new_tokens: NewTokens = 256,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token always.", min=0.0, max=2.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="What is drawn follows from it.")] = None,
    with_base: Annotated[bool, typer.Option("--base", help="The base beside them.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Talk to one adaptation, or to several side by side."""
    if as_json and prompt is None:
        raise SettingError("--json is for one question; give it with --prompt")
    if not 0 < top_p <= 1:
        raise SettingError(f"top_p is {top_p} but must be more than 0 and at most 1")
    quiet()
    from tunewise.cli.chat import Talk
    from tunewise.serve.decoding import Sampling
    from tunewise.serve.loading import named, opened
    from tunewise.serve.scheduler import Engine

    folders = named(adaptations)
    with progress() as show:
        pool = opened(folders, model, device, lambda what, done, total: show("chat", what, done, total))
    names = [name for name in pool.slots if with_base or name in folders]
    engine = Engine(pool)
    engine.start()
    try:
        talk = Talk(engine, names, Sampling(temperature=temperature, top_p=top_p, seed=seed), max_new_tokens, system)
        if prompt is None:
            talk.run()
            return
        replies = talk.ask(prompt, show=not as_json)
        if as_json:
            print_json(
                {"prompt": prompt, "answers": {n: {"text": r.text, "sources": r.sources} for n, r in replies.items()}}
            )
    finally:
        engine.stop(timeout=10)


def generate(
    adaptation: Annotated[str, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file for the answers; one that is there goes on.")],
    model: Where = None,
    device: Device = None,
    columns: Columns = None,
    max_new_tokens: NewTokens = 128,
    batch_size: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 16,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Answer every prompt of a file; killed and run again, it goes on where it was."""
    from tunewise.serve.answer_file import AnswerFile
    from tunewise.serve.prompt_file import read_prompts

    talks = read_prompts(data, pairs(columns))
    quiet()
    from tunewise.serve.loading import named, opened

    folders = named([adaptation])
    name = next(iter(folders))
    file = AnswerFile(out, talks, name)
    left = file.left()
    if left:
        from tunewise.serve.client import answered
        from tunewise.serve.scheduler import Engine

        with progress() as show:
            pool = opened(folders, model, device, lambda what, done, total: show(name, what, done, total))
            engine = Engine(pool, queue=2 * batch_size, rows=batch_size)
            engine.start()
            try:
                begun = len(talks) - len(left)
                asked = {number: talks[number] for number in left}
                for done, (number, reply) in enumerate(answered(engine, name, asked, batch_size, max_new_tokens), 1):
                    file.add(number, reply)
                    show(name, "answering", begun + done, len(talks))
            finally:
                engine.stop(timeout=10)
    result = {"adaptation": name, "out": str(out), "answers": len(talks), "new": len(left)}
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{len(talks)} answers in {out}, {len(left)} of them new")
