"""The command line: words to calls. Nothing heavy is imported before the words are understood.

Results go to stdout, logs and progress to stderr. Exit code 0: done; 1: it ran and failed; 2: the request was wrong.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.console import console, logs, print_json, progress, quiet
from tunewise.errors import ArtifactError, RequestError, SettingError, TunewiseError
from tunewise.options import (
    COMPARED,
    Accumulate,
    BatchSize,
    Bf16,
    Columns,
    Config,
    Data,
    Device,
    Dtype,
    Json,
    KlToBase,
    Knowledge,
    L2Sp,
    MaxLength,
    Metric,
    Model,
    Out,
    Recompute,
    Remember,
    Replay,
    RetentionFile,
    Revision,
    SaveSteps,
    Schedule,
    Sets,
    Sources,
    Template,
    load_model,
    read_task,
    read_texts,
    recipes_of,
    settings_of,
    train_arguments,
)

if TYPE_CHECKING:
    from tunewise.request import Request

app = typer.Typer(
    help="Every way to fine-tune a language model behind one interface, measured on your own task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.command("techniques")
def techniques_command(
    name: Annotated[str | None, typer.Argument(help="One technique, in depth.")] = None,
    peft: Annotated[bool, typer.Option("--peft", help="PEFT's own methods, each tried on a model.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that --peft tries them on.")] = "world",
    as_json: Json = False,
) -> None:
    """The taxonomy of techniques as a tree, one technique in depth, or what PEFT's own methods do on a model."""
    from tunewise import listing

    if peft:
        if name is not None:
            raise SettingError("--peft lists all of PEFT's methods; leave the name out")
        _survey(model, as_json)
        return
    if as_json:
        print_json(listing.facts(name))
    else:
        console().print(listing.tree() if name is None else listing.page(name))


def _survey(model: str, as_json: bool) -> None:
    quiet()
    from tunewise import bridge, listing

    base = load_model(model, None, "float32", "cpu", None)
    with progress() as show:
        rows = bridge.survey(base, lambda what, done, total: show(what, "trying", done, total))
    if as_json:
        print_json(rows)
    else:
        console().print(listing.peft_table(rows, base.name))


@app.command("check")
def check_command(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model whose tokenizer and window the lengths are for."),
    ] = None,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Detect the data's format, validate it, and show what a model would see."""
    task = read_task(data, columns, template, metric)
    from tunewise import listing

    found = listing.check(task, load_model(model, revision, "float32", "cpu", max_length) if model else None)
    if as_json:
        print_json(found)
    else:
        console().print(listing.check_page(found))


@app.command("fit")
def fit_command(
    context: typer.Context,
    technique: Annotated[str, typer.Argument(help="A technique, or several joined by + (icl+lora).")],
    model: Model,
    data: Data,
    out: Out,
    max_steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    num_train_epochs: Annotated[float | None, typer.Option(help="Passes over the training data instead.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the technique's for this model.")] = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    lr_scheduler_type: Schedule = "cosine",
    save_steps: SaveSteps = 500,
    eval_steps: Annotated[int, typer.Option(help="Steps between validation losses in metrics.jsonl; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run, to the same bits.")] = False,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sets: Sets = None,
    sources: Sources = None,
    knowledge: Knowledge = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bf16: Bf16 = False,
    gradient_checkpointing: Recompute = False,
    replay: Replay = 0.0,
    kl_to_base: KlToBase = 0.0,
    l2_sp: L2Sp = 0.0,
    remember: Remember = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Fit one technique and leave an adaptation."""
    task, remembered = read_task(data, columns, template, metric), read_texts(remember)
    chosen = settings_of(sets)
    if "," in technique or not technique.strip():
        raise SettingError(
            f'fit takes one technique, not "{technique}"; join with + to compose, or use tunewise compare'
        )
    recipe = recipes_of(technique, chosen, sources, knowledge=knowledge)[0]
    if learning_rate is not None:
        for part in [part for part in getattr(recipe, "parts", (recipe,)) if part.trains]:
            chosen.setdefault(part.name, {}).setdefault("learning_rate", learning_rate)
        recipe = recipes_of(technique, chosen, sources, knowledge=knowledge)[0]
    base = load_model(model, revision, dtype, device, max_length)
    from tunewise.fitting import fit
    from tunewise.train import TrainSettings

    settings = TrainSettings(**train_arguments(max_steps, context.params))

    with progress() as show:
        record = fit(
            base,
            task,
            recipe,
            out,
            settings=settings,
            num_train_epochs=num_train_epochs,
            seed=seed,
            resume=resume,
            remembered=remembered,
            progress=lambda what, done, total: show(recipe.name, what, done, total),
        )
    if as_json:
        print_json(record)
        return
    from tunewise.report import count

    console().print(
        f"{recipe.name}: validation loss {record['validation_loss_before']:.4f} before, "
        f"{record['validation_loss']:.4f} after; {count(record['optimised_parameters'])} parameters optimised, "
        f"{record['seconds']:.1f} s.\nSaved to {record['adaptation']}\n"
        f"Score it: tunewise eval {record['adaptation']} --data {data}"
        + (f" --columns {columns}" if columns else "")
        + (f" --metric {metric}" if metric else ""),
        markup=False,
        highlight=False,
    )


@app.command("compare")
def compare_command(
    context: typer.Context,
    model: Model,
    data: Data,
    out: Out,
    techniques: Annotated[str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")] = COMPARED,
    budget_steps: Annotated[int, typer.Option(help="Optimiser steps of each trial.")] = 100,
    budget_tokens: Annotated[int | None, typer.Option(help="Training tokens of each trial instead.")] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="Minutes for everything instead; techniques that train share them equally.")
    ] = None,
    search: Annotated[
        int, typer.Option(help="Trials' worth of training that each technique may spend on finding its settings.")
    ] = 1,
    seeds: Annotated[int, typer.Option(help="Runs of each technique.")] = 1,
    test_examples: Annotated[int | None, typer.Option(help="Default: 500, or 200 where answers are written.")] = None,
    validation_examples: Annotated[int, typer.Option(help="Examples that choices are made on.")] = 128,
    retention: RetentionFile = None,
    probe: Annotated[str | None, typer.Option(help="Data of a task that the model can do and should not lose.")] = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    lr_scheduler_type: Schedule = "cosine",
    save_steps: SaveSteps = 500,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sets: Sets = None,
    sources: Sources = None,
    knowledge: Knowledge = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bf16: Bf16 = False,
    gradient_checkpointing: Recompute = False,
    replay: Replay = 0.0,
    kl_to_base: KlToBase = 0.0,
    l2_sp: L2Sp = 0.0,
    remember: Remember = None,
    need: Annotated[
        list[str] | None,
        typer.Option(help="What the recommended row must have: memory<8GB, artifact<50MB, mergeable, retain, ..."),
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="US dollars that an hour of this machine costs.")] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Follow training in tensorboard, wandb, mlflow or trackio (joined by commas).")
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds without a sign of life after which a trial hangs.")] = 1800,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run trials here: a crash then ends the comparison.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Run techniques side by side under one budget and say which to use; run it again to continue."""
    from tunewise.request import SAME, Request

    request = Request(
        **{name: context.params[name] for name in SAME},
        out=str(out),
        budget={
            "steps": budget_steps,
            "tokens": budget_tokens,
            "minutes": budget_minutes,
            "search": search,
            "seeds": seeds,
            "test_examples": test_examples,
            "validation_examples": validation_examples,
        },
        settings=train_arguments(budget_steps, context.params),
        sets=sets or [],
        needs=need or [],
        price=price_per_hour,
        report_to=[name.strip() for name in report_to.split(",")] if report_to else [],
        started=time.time(),
        command=["tunewise", *sys.argv[1:]],
    )
    _compare(request, as_json, patience, in_process)


@app.command("eval")
def eval_command(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation, or of a PEFT adapter.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")] = None,
    examples: Annotated[
        int | None, typer.Option("--test-examples", help="Default: 500, or 200 where answers are written.")
    ] = None,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the answers to this JSONL file.")] = None,
    sets: Sets = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Score an adaptation on data, to the digit that a comparison showed."""
    task = read_task(data, columns, template, metric)
    if split not in ("train", "validation", "test"):
        raise SettingError(f'split is "{split}" but must be train, validation or test')
    if examples is not None and examples < 1:
        raise SettingError(f"test_examples is {examples} but must be at least 1")
    folder = adaptation / "adaptation" if (adaptation / "adaptation").is_dir() else adaptation
    quiet()
    from tunewise import store
    from tunewise.adaptation import load
    from tunewise.cache import sample
    from tunewise.evaluate import describe, score

    if not folder.is_dir():
        raise SettingError(f"{adaptation}: there is no such folder; give the folder of an adaptation")
    if (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: is a comparison; give one of its rows, e.g. {folder}/trials/.../adaptation")
    loaded = load(folder, model=model, settings=settings_of(sets))
    if task.template is None:
        task = replace(task, template=loaded.style.template if (folder / "adaptation.json").is_file() else None)
    chosen = sample(getattr(task, split), examples or (200 if task.kind == "generation" else 500))
    with progress() as show:
        found = score(
            loaded.attachment,
            task,
            chosen,
            progress=lambda done, total: show(loaded.attachment.recipe.name, "scoring", done, total),
        )
    if predictions is not None:
        rows = [
            {"prompt": example.prompt, "prediction": text, "answer": example.answer, found.metric: value}
            | ({"sources": cited} if (cited := loaded.attachment.sources(example)) else {})
            for example, text, value in zip(chosen, found.predictions, found.per_example, strict=True)
        ]
        store.write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {"adaptation": str(folder), "split": split, **describe(found)}
    if as_json:
        print_json(result)
        return
    others = ", ".join(f"{name} {value:.4f}" for name, value in found.others.items())
    console().print(
        f"{found.metric} {found.mean:.4f} on {len(chosen)} {split} examples; nll {found.nll:.4f} a token; {others}",
        markup=False,
        highlight=False,
    )


@app.command("interpolate")
def interpolate_command(
    adaptation: Annotated[Path, typer.Argument(help="Folder of an adaptation that merges into its base.")],
    data: Data,
    alphas: Annotated[str, typer.Option(help="Shares of the way from the base.")] = "0,.25,.5,.75,1",
    examples: Annotated[int, typer.Option("--test-examples", help="Examples scored at each.")] = 200,
    retention: RetentionFile = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the base is, if not where it was.")] = None,
    columns: Columns = None,
    metric: Metric = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Score the models between a base and an adaptation of it: what is learnt against what is forgotten."""
    task, texts = read_task(data, columns, None, metric), read_texts(retention)
    try:
        shares = [float(share) for share in alphas.split(",")]
    except ValueError as error:
        raise SettingError(f'alphas is "{alphas}" but must be numbers joined by commas, such as 0,0.5,1') from error
    quiet()
    from tunewise.adaptation import load
    from tunewise.interpolate import measured

    folder = adaptation / "adaptation" if (adaptation / "adaptation").is_dir() else adaptation
    loaded = load(folder, model=model)
    task = replace(task, template=task.template or loaded.style.template)
    with progress() as show:
        rows = measured(loaded.attachment, task, shares, texts, examples, show)
    if as_json:
        print_json(rows)
        return
    from tunewise.report import curve_table

    console().print(curve_table(rows, task.metric))


@app.command("index")
def index_command(
    documents: Annotated[str, typer.Argument(help="Folder or file: .txt .md .html .pdf .jsonl.")],
    out: Annotated[str, typer.Option("--out", "--index", "-o", help="Folder, or qdrant://host:port/name.")],
    embedder: Annotated[str, typer.Option(help="sentence-transformers model, id or folder.")],
    chunk_size: Annotated[int, typer.Option(help="Tokens of a passage at most.")] = 256,
    chunk_overlap: Annotated[int, typer.Option(help="Tokens that the next one repeats.")] = 32,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Make or update an index of documents; what has not changed is not embedded again."""
    quiet()
    from tunewise.knowledge.build import build

    with progress() as show:
        result = build(
            documents, out, embedder, chunk_size, chunk_overlap, lambda what, done, total: show(out, what, done, total)
        )
    if as_json:
        print_json(result)
        return
    skipped = result.pop("skipped")
    said = ", ".join(f"{value:,} {name}" for name, value in result["documents"].items())
    console().print(
        f"{result['index']}: documents {said}; {result['passages']:,} passages", markup=False, highlight=False
    )
    for name, why in skipped:
        typer.echo(f"skipped {name}: {why}", err=True)


@app.command("search")
def search_command(
    index: Annotated[str, typer.Argument(help="Folder of an index, or qdrant://host:port/name.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option(help="Passages at most.")] = 5,
    mode: Annotated[str, typer.Option(help="bm25, dense or hybrid.")] = "hybrid",
    floor: Annotated[float, typer.Option(help="What fits less is not shown (0 to 1).")] = 0.0,
    as_json: Json = False,
) -> None:
    """Show the passages of an index that fit a question, each with its document and span."""
    if mode not in ("bm25", "dense", "hybrid"):
        raise SettingError(f'mode is "{mode}" but must be bm25, dense or hybrid')
    quiet()
    from tunewise.knowledge.build import find

    hits = find(index, question, k, mode, floor)
    if as_json:
        print_json([{"source": hit.passage.id, "score": hit.score, "text": hit.passage.text} for hit in hits])
        return
    for number, hit in enumerate(hits, 1):
        console().print(
            f"[{number}] {hit.passage.id}  {hit.score:.4f}\n{hit.passage.indexed}\n", markup=False, highlight=False
        )
    if not hits:
        console().print("nothing fits", markup=False)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    other: Annotated[Path | None, typer.Argument(help="Folder of another one, to show both side by side.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page of HTML to this file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the charts as pictures to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Show a comparison again, or two side by side."""
    from tunewise import store
    from tunewise.beside import beside
    from tunewise.page import page
    from tunewise.pictures import pngs
    from tunewise.report import picture, terminal

    if other is not None and (html or svg or png):
        raise SettingError("--html, --svg and --png show one comparison; give one folder")
    results = [_comparison(path) for path in (folder, other) if path is not None]
    try:
        shown = beside(*results) if other is not None else terminal(results[0])
        texts = [(html, page(results[0]) if html else ""), (svg, picture(results[0]) if svg else "")]
        if png:
            pngs(results[0], png)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        files = " and ".join(str(path / "compare.json") for path in (folder, other) if path is not None)
        raise ArtifactError(f"{files}: not as tunewise writes it ({error!r})") from error
    for path, text in texts:
        if path is not None:
            store.write_text(path, text)
    if as_json:
        print_json(results[0] if other is None else results)
    else:
        console().print(shown)


def _comparison(folder: Path) -> dict[str, Any]:
    """The content of a comparison's `compare.json`."""
    from tunewise import store

    if not (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    return store.read_json(folder / "compare.json", limit_bytes=1 << 26)


@app.command("demo")
def demo_command(
    out: Out = Path("tunewise-demo"),
    task: Annotated[str, typer.Option(help="town, reviews, records, skill or letters.")] = "reviews",
    techniques: Annotated[str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")] = COMPARED,
    all_techniques: Annotated[bool, typer.Option("--all", help="Every technique that there is.")] = False,
    as_json: Json = False,
) -> None:
    """Compare on the shipped model and a task of its world: no network; eight rows in under three minutes."""
    from tunewise import world
    from tunewise.request import Request

    request = Request(
        model="world",
        data=f"world:{task}",
        out=str(out / task),
        techniques="all" if all_techniques else techniques,
        budget={"steps": 100},
        settings={"per_device_train_batch_size": 16},
        retention="world:text",
        probe="world:memory",
        default_sources=[found.source for found in world.sources().values()],
        command=["tunewise", *sys.argv[1:]],
    )
    _compare(request, as_json)


def _compare(request: Request, as_json: bool, patience: float = 1800, in_process: bool = False) -> None:
    """Run the comparison and print it; nothing at all finished is a failure."""
    with progress() as show:
        if in_process:
            result = request.run(show, on_row=show.rows)
        else:
            from tunewise.supervisor import supervise

            result = supervise(request, patience=patience, progress=show, on_row=show.rows)
    out = Path(request.out)
    if as_json:
        print_json(result)
    else:
        from tunewise.report import terminal

        console().print(terminal(result))
        console().print(f"\nReport: {out / 'report.html'} and report.md", markup=False, highlight=False)
    if not any(row["status"] == "ok" for row in result["rows"]):
        raise TunewiseError(f"no technique finished; the reasons are in {out / 'compare.json'}")


_INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors of ours are one line on stderr."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads cost tenfold on a busy machine
    logs()
    try:
        app()
    except TunewiseError as error:
        kind = "wrong request" if isinstance(error, RequestError) else "failed"
        typer.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code != _INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            raise
        more = [] if "fit" not in sys.argv[1:2] or "--resume" in sys.argv else ["--resume"]
        typer.echo(f"interrupted; to continue: {shlex.join(['tunewise', *sys.argv[1:], *more])}", err=True)
        raise


if __name__ == "__main__":
    main()
