"""The command line: words to calls. Nothing heavy is imported before the words are understood.

Results go to stdout, logs and progress to stderr. Exit code 0: done; 1: it ran and failed; 2: the request was wrong.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.errors import ArtifactError, RequestError, SettingError, TunewiseError

if TYPE_CHECKING:
    from tunewise.model import Base
    from tunewise.task import Task
    from tunewise.technique import Technique
    from tunewise.train import TrainSettings

app = typer.Typer(
    help="Every way to fine-tune a language model behind one interface, measured on your own task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the settings of a YAML file the defaults of this command's options."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path}: must hold settings, one `name: value` a line")
    known = {
        word.lstrip("-").replace("-", "_"): str(parameter.name)
        for parameter in context.command.params
        for word in (*parameter.opts, str(parameter.name))
        if parameter.name != "config" and len(word) > 2
    }
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key not in known:
            raise SettingError(f'{path}: there is no setting "{name}" here; there are {", ".join(sorted(known))}')
        key = known[key]
        if isinstance(value, dict):
            value = [f"{k}={json.dumps(v)}" if key == "sets" else f"{k}={v}" for k, v in value.items()]
            value = value if key == "sets" else ",".join(value)
        defaults[key] = ",".join(map(str, value)) if isinstance(value, list) and key != "sets" else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


Model = Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of a causal language model.")]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="File, folder of splits or Hub id; path#500 takes a sample of 500."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Columns = Annotated[
    str | None,
    typer.Option(help="Names of the data's columns, e.g. prompt=q,completion=a or text=review,label=stars."),
]
Template = Annotated[str | None, typer.Option(help='Text around a prompt, e.g. "Review: {prompt}\\nSentiment:".')]
Metric = Annotated[
    str | None, typer.Option(help="exact_match, f1, rouge_l, sentence_bleu, or your own path.py:function.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="A technique's setting, e.g. lora.r=8 (may be repeated).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with any of these settings.", callback=_read_config, is_eager=True),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit of the model.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights in memory: float32, bfloat16, float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best there is.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest sequence in tokens; default: the model's context.")]
BatchSize = Annotated[int, typer.Option("--per-device-train-batch-size", "--batch-size", help="Examples of one pass.")]
Accumulate = Annotated[
    int, typer.Option("--gradient-accumulation-steps", "--accumulate", help="Passes of one optimiser step.")
]
Schedule = Annotated[str, typer.Option("--lr-scheduler-type", help="linear, cosine, constant, ...")]
SaveSteps = Annotated[int, typer.Option(help="Optimiser steps between checkpoints.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 (weights and updates stay float32).")]
RetentionFile = Annotated[
    Path | None,
    typer.Option("--retention", help="Text the model should not forget; default: text it writes itself."),
]


@app.command("techniques")
def techniques_command(
    name: Annotated[str | None, typer.Argument(help="One technique, in depth.")] = None, as_json: Json = False
) -> None:
    """The taxonomy of techniques as a tree, or one technique in depth."""
    from tunewise import listing

    if as_json:
        _print_json(listing.facts(name))
    else:
        _console().print(listing.tree() if name is None else listing.page(name))


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
    task = _task(data, columns, template, metric)
    from tunewise import listing

    found = listing.check(task, _load(model, revision, "float32", "cpu", max_length) if model else None)
    if as_json:
        _print_json(found)
    else:
        _console().print(listing.check_page(found))


@app.command("fit")
def fit_command(
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
    max_length: MaxLength = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bf16: Bf16 = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Fit one technique and leave an adaptation."""
    task = _task(data, columns, template, metric)
    chosen = _settings(sets)
    if "," in technique or not technique.strip():
        raise SettingError(
            f'fit takes one technique, not "{technique}"; join with + to compose, or use tunewise compare'
        )
    recipe = _techniques(technique, chosen)[0]
    if learning_rate is not None:
        for part in [part for part in getattr(recipe, "parts", (recipe,)) if part.trains]:
            chosen.setdefault(part.name, {}).setdefault("learning_rate", learning_rate)
        recipe = _techniques(technique, chosen)[0]
    settings = _train_settings(max_steps, batch_size, accumulate, lr_scheduler_type, save_steps, bf16, eval_steps)
    base = _load(model, revision, dtype, device, max_length)
    from tunewise.fitting import fit

    with _progress() as show:
        record = fit(
            base,
            task,
            recipe,
            out,
            settings=settings,
            num_train_epochs=num_train_epochs,
            seed=seed,
            resume=resume,
            progress=lambda step, total, value: show(recipe.name, f"loss {value:.3f}", step, total),
        )
    if as_json:
        _print_json(record)
        return
    from tunewise.report import count

    _console().print(
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
    model: Model,
    data: Data,
    out: Out,
    techniques: Annotated[
        str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")
    ] = "base,icl,full,last_layers,bitfit,prompt_tuning,lora",
    budget_steps: Annotated[int, typer.Option(help="Optimiser steps of each trial.")] = 100,
    budget_tokens: Annotated[int | None, typer.Option(help="Training tokens of each trial instead.")] = None,
    search: Annotated[int, typer.Option(help="Learning rates tried for each technique (1 to 5).")] = 1,
    seeds: Annotated[int, typer.Option(help="Runs of each technique.")] = 1,
    test_examples: Annotated[int | None, typer.Option(help="Default: 500, or 200 where answers are written.")] = None,
    validation_examples: Annotated[int, typer.Option(help="Examples that choices are made on.")] = 128,
    retention: RetentionFile = None,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    lr_scheduler_type: Schedule = "cosine",
    save_steps: SaveSteps = 500,
    columns: Columns = None,
    template: Template = None,
    metric: Metric = None,
    sets: Sets = None,
    max_length: MaxLength = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    bf16: Bf16 = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Run techniques side by side under one budget and say which to use; run it again to continue."""
    task = _task(data, columns, template, metric)
    texts = _texts(retention)
    recipes = _techniques(techniques, _settings(sets))
    from tunewise.comparison import Budget, compare

    budget = Budget(
        steps=budget_steps,
        tokens=budget_tokens,
        search=search,
        seeds=seeds,
        test_examples=test_examples,
        validation_examples=validation_examples,
    )
    settings = _train_settings(budget_steps, batch_size, accumulate, lr_scheduler_type, save_steps, bf16)
    base = _load(model, revision, dtype, device, max_length)
    with _progress() as show:
        result = compare(base, task, recipes, out, budget=budget, settings=settings, retention=texts, progress=show)
    _finish(result, out, as_json)


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
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Score an adaptation on data, to the digit that a comparison showed."""
    task = _task(data, columns, template, metric)
    if split not in ("train", "validation", "test"):
        raise SettingError(f'split is "{split}" but must be train, validation or test')
    if examples is not None and examples < 1:
        raise SettingError(f"test_examples is {examples} but must be at least 1")
    folder = adaptation / "adaptation" if (adaptation / "adaptation").is_dir() else adaptation
    _quiet()
    from tunewise import store
    from tunewise.adaptation import load
    from tunewise.evaluate import describe, score
    from tunewise.trial import sample

    if not folder.is_dir():
        raise SettingError(f"{adaptation}: there is no such folder; give the folder of an adaptation")
    if (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: is a comparison; give one of its rows, e.g. {folder}/trials/.../adaptation")
    loaded = load(folder, model=model)
    if task.template is None:
        task = replace(task, template=loaded.style.template if (folder / "adaptation.json").is_file() else None)
    chosen = sample(getattr(task, split), examples or (200 if task.kind == "generation" else 500))
    with _progress() as show:
        found = score(
            loaded.attachment,
            task,
            chosen,
            progress=lambda done, total: show(loaded.attachment.recipe.name, "scoring", done, total),
        )
    if predictions is not None:
        rows = [
            {"prompt": example.prompt, "prediction": text, "answer": example.answer, found.metric: value}
            for example, text, value in zip(chosen, found.predictions, found.per_example, strict=True)
        ]
        store.write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {"adaptation": str(folder), "split": split, **describe(found)}
    if as_json:
        _print_json(result)
        return
    others = ", ".join(f"{name} {value:.4f}" for name, value in found.others.items())
    _console().print(
        f"{found.metric} {found.mean:.4f} on {len(chosen)} {split} examples; nll {found.nll:.4f} a token; {others}",
        markup=False,
        highlight=False,
    )


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    svg: Annotated[Path | None, typer.Option(help="Write the table as a picture to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show a comparison again."""
    from tunewise import store

    if not (folder / "compare.json").is_file():
        raise SettingError(f"{folder}: holds no comparison (no compare.json); give the --out of tunewise compare")
    from tunewise.report import picture, terminal

    result = store.read_json(folder / "compare.json", limit_bytes=1 << 26)
    try:
        shown, drawn = terminal(result), picture(result) if svg else ""
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'compare.json'}: is not as tunewise writes it ({error!r})") from error
    if svg:
        store.write_text(svg, drawn)
    if as_json:
        _print_json(result)
    else:
        _console().print(shown)


@app.command("demo")
def demo_command(
    out: Out = Path("tunewise-demo"),
    techniques: Annotated[
        str, typer.Option("--techniques", "-t", help="Names joined by commas, or all.")
    ] = "base,icl,full,last_layers,bitfit,prompt_tuning,lora",
    as_json: Json = False,
) -> None:
    """Compare on a small model trained on the spot: no network, no account, about a minute."""
    recipes = _techniques(techniques, {})
    _quiet()
    from tunewise import world
    from tunewise.comparison import Budget, compare

    with _progress() as show:
        base = world.model(progress=lambda step, total: show("a small model", "pretraining", step, total))
        result = compare(base, world.reviews(), recipes, out, budget=Budget(steps=100, search=3), progress=show)
    _finish(result, out, as_json)


def _finish(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print the result; nothing at all finished is a failure."""
    if as_json:
        _print_json(result)
    else:
        from tunewise.report import terminal

        _console().print(terminal(result))
        _console().print(f"\nReport: {out / 'report.md'}", markup=False, highlight=False)
    if not any(row["status"] == "ok" for row in result["rows"]):
        raise TunewiseError(f"no technique finished; the reasons are in {out / 'compare.json'}")


def _task(data: str, columns: str | None, template: str | None, metric: str | None) -> Task:
    from tunewise.metrics import find
    from tunewise.task import Task

    if metric is not None and metric != "accuracy":
        find(metric)
    text = template.replace("\\n", "\n") if template else None
    task = Task.read(data, columns=_pairs(columns), template=text, metric=metric)
    if metric == "accuracy" and task.kind != "classification":
        raise SettingError(f"accuracy is for labels, and {data} is a {task.kind} task; use exact_match or f1")
    return task


def _pairs(columns: str | None) -> dict[str, str] | None:
    if not columns:
        return None
    pairs = [item.partition("=") for item in columns.split(",")]
    if any(not name or not own for name, _, own in pairs):
        raise SettingError(f'--columns is "{columns}" but must look like prompt=q,completion=a')
    return {name.strip(): own.strip() for name, _, own in pairs}


def _settings(sets: list[str] | None) -> dict[str, dict[str, Any]]:
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for item in sets or []:
        where, equals, value = item.partition("=")
        technique, dot, name = where.strip().partition(".")
        if not equals or not dot or not name:
            raise SettingError(f'--set is "{item}" but must look like lora.r=8')
        try:
            found.setdefault(technique, {})[name] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SettingError(f"--set {item}: the value cannot be read") from error
    return found


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _techniques(names: str, chosen: dict[str, dict[str, Any]]) -> list[Technique]:
    _quiet()
    from tunewise.technique import all_techniques, make

    known = all_techniques()
    wanted = list(known) if names == "all" else [n.strip() for n in names.split(",") if n.strip()]
    used = {part for name in wanted for part in name.split("+")}
    for technique in chosen:
        if technique not in used:
            raise SettingError(f'--set names "{technique}", which is not among {", ".join(sorted(used))}')
    return [make(name, chosen) for name in wanted]


def _train_settings(
    steps: int, batch: int, accumulate: int, schedule: str, save: int, bf16: bool, evaluate: int = 0
) -> TrainSettings:
    from tunewise.train import TrainSettings

    return TrainSettings(
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type=schedule,
        save_steps=save,
        eval_steps=evaluate,
        bf16=bf16,
    )


def _load(name: str, revision: str | None, dtype: str, device: str | None, max_length: int | None) -> Base:
    _quiet()
    from tunewise.model import load_base

    return load_base(name, revision=revision, dtype=dtype, device=device, max_length=max_length)


def _texts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise SettingError(f"{path}: holds no text; give a file with text that the model should not forget")
    return lines


def _quiet() -> None:
    """Keep libraries' own chatter off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _console() -> Any:
    from rich.console import Console

    # Piped output has no width of its own; a table must not be folded to 80 columns in a file.
    return Console(width=None if sys.stdout.isatty() else 200)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def _progress() -> Iterator[Any]:
    """A live line on stderr: what runs, how far it is, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[row]}", markup=False),
        TextColumn("{task.fields[what]}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
        tasks: dict[tuple[str, str], Any] = {}

        def show(row: str, what: str, done: int, total: int) -> None:
            kind = "training" if what.startswith("loss") else what
            if (row, kind) not in tasks or done < live.tasks[live.task_ids.index(tasks[row, kind])].completed:
                for old in tasks.values():
                    live.update(old, visible=False)
                tasks[row, kind] = live.add_task("", row=row, what=what, total=total)
            live.update(tasks[row, kind], completed=done, total=total, what=what)

        yield show


def main() -> None:
    """Run the command line; errors of ours are one line on stderr."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads cost tenfold on a busy machine
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)  # on the handler, because some libraries set their own loggers to debug
    logging.basicConfig(format="%(message)s", handlers=[handler])
    try:
        app()
    except TunewiseError as error:
        kind = "wrong request" if isinstance(error, RequestError) else "failed"
        typer.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to continue (fit: with --resume)", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
