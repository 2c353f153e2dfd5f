"""Times one epoch of fine-tuning in tunewise and its peers: same model, rows, batches, optimiser, one process each.

    python benchmarks/engine.py                                           # a random model, random rows
    python benchmarks/engine.py --model FOLDER --data DATA... --bf16      # a real model, real rows

A first step on other rows warms each tool up and is not counted; its loss, taken at the same initial weights, must
agree between tunewise and Trainer, or the script stops. See README.md beside this file. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Column, Table
from trl import SFTConfig, SFTTrainer, pack_dataset

from tunewise.core.seeds import generator
from tunewise.data.task import Task
from tunewise.engine.anatomy import features
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.model import Base, load_base
from tunewise.fitting.loop import train
from tunewise.fitting.row_order import order
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base

TOOLS = {
    "tunewise": "tunewise",
    "trainer": "Trainer + PEFT, padded",
    "grouped": "the same, grouped by length",
    "trl-packed": "TRL, packed, not recomputing",
    "trl": "TRL, its defaults (bf16, recomputing)",
}
COMPARED = ("tunewise", "trainer")  # always: their first losses must agree
PARTS = ("tunewise", "torch", "transformers", "peft", "trl")
THREADS, RATE = 2, 1e-4
BATCH = {"cpu": 8, "cuda": 32}  # rows of a step
WAITING = {"OMP_WAIT_POLICY": "passive"}  # idle threads sleep: where they spin, CPU time counts what others do
BLOCK, BLOCKS = 1024, 2  # TRL's packing: tokens of a block, blocks of a batch (8 rows fill 1.5)
MEDIAN, SIGMA, SHORTEST, LONGEST = 166, 0.558, 16, 1024  # log-normal lengths, mean 194
LABELLED = (0.26, 0.66)  # share of a row's tokens that is labelled: uniform, 46 % on average
# 15.2 million parameters; input and output embeddings are one tensor of 9.2 million.
SHAPE = {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
SHAPE |= {"vocab_size": 32_000, "max_position_embeddings": LONGEST, "tie_word_embeddings": True}
LARGE = {**SHAPE, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24}  # 316 million, for a GPU
LARGE |= {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048}
# What each method is in tunewise, and in PEFT: tunewise's default LoRA, and no adapter for full fine-tuning.
METHODS: dict[str, dict[str, Any]] = {"lora": {"r": 16, "lora_alpha": 32}, "full": {}}
PEFT = {"lora": LoraConfig(**METHODS["lora"], target_modules="all-linear", task_type="CAUSAL_LM"), "full": None}
COLUMNS = {  # heading, figure, its form
    "CPU s": ("cpu_seconds", "{:.1f}"),
    "wall s": ("wall_seconds", "{:.1f}"),
    "labelled/CPU s": ("labelled_tokens_per_cpu_second", "{:.0f}"),
    "x tunewise's CPU": ("times_the_cpu_of_tunewise", "{:.2f}"),
    "x its wall time": ("times_the_wall_of_tunewise", "{:.2f}"),
    "peak GB": ("peak_memory_gb", "{:.2f}"),
    "x its memory": ("times_the_memory_of_tunewise", "{:.1f}"),
    "steps": ("steps", "{:.0f}"),
    "padding": ("padding", "{:.0%}"),
    "of GEMM": ("share_of_gemm", "{:.0%}"),
    "mean loss": ("mean_loss", "{:.4f}"),
}


def draw_rows(count: int, name: str) -> list[TokenSequence]:
    """Random rows whose lengths are the quantiles of the law, shuffled; prompts come first, unlabelled."""
    source = generator(0, name)
    normal = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    lengths = (MEDIAN * torch.exp(SIGMA * normal)).int().clamp(SHORTEST, LONGEST)
    rows = []
    for length in lengths[torch.randperm(count, generator=source)].tolist():
        share = LABELLED[0] + (LABELLED[1] - LABELLED[0]) * float(torch.rand((), generator=source))
        prompt = length - round(length * share)
        ids = torch.randint(3, SHAPE["vocab_size"], (length,), generator=source).tolist()
        rows.append(TokenSequence(ids, [place >= prompt for place in range(length)], prompt))
    return rows


def real_rows(base: Base, data: str, batch: int, steps: int) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """The first rows of a task that are not too long, as tunewise encodes them: those of the first step, the rest."""
    task = Task.read(data)
    encoded = Encoder(base, task).encode(task.train[: 2 * batch * (steps + 1)])
    fitting = [row for row in encoded if len(row.ids) <= LONGEST and sum(row.labelled[1:])][: batch * (steps + 1)]
    if len(fitting) < batch * (steps + 1):
        sys.exit(f"{data} has {len(fitting)} rows of up to {LONGEST} tokens, and {batch * (steps + 1)} are needed")
    return fitting[:batch], fitting[batch:]


class Job(hf.TrainerCallback):
    """One measurement: what a tool is given, and what is seen of it. Trainer calls it after each step."""

    def __init__(self, tool: str, method: str, bf16: bool, options: argparse.Namespace, folder: str) -> None:
        torch.manual_seed(0)
        self.device = device = options.device
        self.batch, steps = BATCH[device], options.steps
        self.block, self.blocks = BLOCK, BLOCKS
        if options.model:
            # In bf16 each tool has the weights of its habit: tunewise those of the checkpoint, the others float32 ones.
            dtype = "bfloat16" if bf16 and tool == "tunewise" else "float32"
            self.base = load_base(options.model, device=device, dtype=dtype)
            self.warm, self.timed = real_rows(self.base, options.data[0], self.batch, steps)
            # About as many tokens a step as 8 rows have, in one block that holds the longest row.
            rows = self.warm + self.timed
            mean = self.batch * sum(len(row.ids) for row in rows) / len(rows)
            self.block, self.blocks = max(64 * math.ceil(mean / 64), *(len(row.ids) for row in rows)), 1
        else:
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape(device))).to(device)
            self.base = Base(model, tiny_base().tokenizer, "bench")  # only for its padding: the rows are tokens already
            self.warm, self.timed = draw_rows(self.batch, "warm"), draw_rows(self.batch * steps, "timed")
        self.model, self.tokenizer = self.base.model, self.base.tokenizer
        if tool != "tunewise" and PEFT[method] is None:  # a base is frozen
            self.model.requires_grad_(True)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.rows = self.warm + self.timed
        self.method, self.bf16, self.folder = method, bf16, folder
        self.trainable, self.losses, self.clocks = 0, list[float](), list[tuple[float, float]]()
        self.batches: list[tuple[int, ...]] = []  # labelled, real and computed tokens

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.clocks.append((time.process_time(), time.perf_counter()))

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """The loss of a step."""
        self.losses += [logs["loss"]] if "loss" in logs else []

    def arguments(self) -> dict[str, Any]:
        """What Trainer and TRL are told; AdamW, its betas, no decay and clipping at 1 are their defaults and ours."""
        same = {"learning_rate": RATE, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
        quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        return {"output_dir": self.folder, "num_train_epochs": 1, "use_cpu": self.device == "cpu", **same, **quiet}

    def train(self, trainer: hf.Trainer) -> None:
        """Train, with every batch counted."""
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            computed = batch["input_ids"].numel()
            real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else computed
            self.batches.append((int((batch["labels"][:, 1:] != -100).sum()), real, computed))
            return batch

        trainer.data_collator = counted
        trainer.remove_callback(hf.PrinterCallback)
        trainer.add_callback(self)
        self.trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        trainer.train()


def run_tunewise(job: Job) -> None:
    """The rows are laid so that tunewise's own shuffled order reads them from first to last."""
    rows = list(job.rows)
    for position, index in enumerate(order(len(rows), 0, 0, len(rows))):
        rows[index] = job.rows[position]
    recipe = make(job.method, {job.method: {**METHODS[job.method], "learning_rate": RATE}})
    attachment = recipe.attach(job.base, generator(0, "attach"))
    job.trainable = sum(parameter.numel() for parameter in attachment.params().values())
    steps = {"max_steps": len(rows) // job.batch, "per_device_train_batch_size": job.batch, "bf16": job.bf16}
    settings = TrainSettings(lr_scheduler_type="constant", warmup_ratio=0.0, **steps)

    def stepped(step: int, loss: float) -> None:
        job.on_step_end()
        job.losses.append(loss)

    done = train(attachment, rows, settings, on_step=stepped)
    labelled, tokens = sum(sum(row.labelled[1:]) for row in job.warm), sum(len(row.ids) for row in job.warm)
    job.batches = [(), (done.labelled_tokens - labelled, done.tokens - tokens, done.tokens - tokens)]


def run_trainer(job: Job) -> None:
    """Rows padded to the longest of their batch."""
    arguments = hf.TrainingArguments(per_device_train_batch_size=job.batch, bf16=job.bf16, **job.arguments())
    adapter = PEFT[job.method]
    model = get_peft_model(job.model, adapter) if adapter else job.model
    job.train(hf.Trainer(model, arguments, hf.DataCollatorForSeq2Seq(job.tokenizer), _table(job.rows)))


def run_grouped(job: Job) -> None:
    """Rows in the order of Trainer's grouping by length: it sorts 50 batches at a time, which these are fewer than."""
    job.rows = job.warm + sorted(job.timed, key=lambda row: len(row.ids), reverse=True)
    run_trainer(job)


def run_trl(job: Job) -> None:
    """What SFTTrainer does when nobody asks for anything."""
    _sft(job, _table(job.rows), SFTConfig(per_device_train_batch_size=job.batch, **job.arguments()))


def run_trl_packed(job: Job) -> None:
    """Warm-up and timed rows are packed apart, by TRL's own packer."""
    warm = pack_dataset(_table(job.warm), job.block, "bfd").select(range(job.blocks))
    packed = concatenate_datasets([warm, pack_dataset(_table(job.timed), job.block, "bfd")])
    packing = {"packing": True, "max_length": job.block, "gradient_checkpointing": False, "bf16": job.bf16}
    packing |= {"per_device_train_batch_size": job.blocks, "dataset_kwargs": {"skip_prepare_dataset": True}}
    _sft(job, packed, SFTConfig(**packing, **job.arguments()))


def _sft(job: Job, rows: Dataset, config: SFTConfig) -> None:
    job.train(SFTTrainer(job.model, config, None, rows, processing_class=job.tokenizer, peft_config=PEFT[job.method]))


def _table(rows: list[TokenSequence]) -> Dataset:
    labels = [[i if on else -100 for i, on in zip(row.ids, row.labelled, strict=True)] for row in rows]
    return Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels})


RUN = {
    "tunewise": run_tunewise,
    "trainer": run_trainer,
    "grouped": run_grouped,
    "trl": run_trl,
    "trl-packed": run_trl_packed,
}


def measure(tool: str, method: str, bf16: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One epoch of one tool in this process; memory counts from the built model and rows on."""
    torch.set_num_threads(THREADS)
    device = options.device
    with tempfile.TemporaryDirectory() as folder:
        job = Job(tool, method, bf16, options, folder)
        linears = linear_shapes(job.base)
        gc.collect()
        if device == "cpu":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _held(device)
        RUN[tool](job)
        most = _most(device)
    labelled, tokens, computed = (sum(column) for column in zip(*job.batches[1:], strict=True))
    cpu, wall = (last - first for first, last in zip(job.clocks[0], job.clocks[-1], strict=True))
    cost = {"cpu_seconds": cpu, "wall_seconds": wall, "peak_memory_gb": (most - before) / 1e9}
    work = {"labelled_tokens": labelled, "tokens": tokens, "padding": 1 - tokens / computed}
    work |= {"trainable_parameters": job.trainable, "steps": len(job.clocks) - 1, "first_loss": job.losses[0]}
    rates = {"labelled_tokens_per_cpu_second": labelled / cpu, "labelled_tokens_per_second": labelled / wall}
    half = bf16 or tool == "trl"
    reached = flops(linears, method, computed, labelled if tool == "tunewise" else computed) / wall
    gemm = gemm_rate(linears, torch.bfloat16 if half else torch.float32, device)
    rates |= {"flops_per_second": reached, "gemm_flops_per_second": gemm, "share_of_gemm": reached / gemm}
    return {"tool": tool, **cost, **rates, **work, "mean_loss": statistics.fmean(job.losses[1:])}


Shapes = dict[tuple[int, int], int]  # (inputs, outputs): how many linears have these; the head is None's


def linear_shapes(base: Base) -> tuple[Shapes, tuple[int, int]]:
    """Inputs and outputs of the blocks' linears, with how many there are of each, and those of the head."""
    counts = Counter(features(linear) for _, _, linear in base.anatomy.linears())
    return dict(counts), (base.anatomy.width, base.anatomy.vocabulary)


def flops(linears: tuple[Shapes, tuple[int, int]], method: str, tokens: int, head_tokens: int) -> float:
    """Multiplications and additions of the matrix products with the model's weights, forward and backward.

    Frozen weights have two products for each token (output, gradient of the input), trained ones three; attention and
    LoRA's own matrices are left out, a few per cent at these lengths.
    """
    shapes, (width, vocabulary) = linears
    products = 3 if method == "full" else 2
    inner = sum(count * inputs * outputs for (inputs, outputs), count in shapes.items())
    return 2.0 * products * (tokens * inner + head_tokens * width * vocabulary)


def gemm_rate(linears: tuple[Shapes, tuple[int, int]], dtype: torch.dtype, device: str, rows: int = 768) -> float:
    """Operations a second of plain matrix products at the shapes of the model's linears, on `rows` rows each."""
    seconds = work = 0.0
    for (inputs, outputs), count in linears[0].items():
        x, weight = torch.randn(rows, inputs, device=device, dtype=dtype), torch.randn(outputs, inputs, device=device)
        weight, times = weight.to(dtype), list[float]()
        for _ in range(12):
            started = time.perf_counter()
            for _ in range(4):
                x @ weight.T
            if device != "cpu":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - started) / 4)
        seconds += count * statistics.median(times[2:])
        work += count * 2.0 * rows * inputs * outputs
    return work / seconds


def shape(device: str) -> dict[str, Any]:
    """The model's."""
    return SHAPE if device == "cpu" else LARGE


def _held(device: str) -> int:
    return _status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def _most(device: str) -> int:
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def compare(options: argparse.Namespace) -> None:
    """Alternate the tools, take medians, print and write."""
    on_gpu = options.device != "cpu"
    head = {
        "machine": machine(options.device),
        "model": Path(options.model).name if options.model else shape(options.device),
        "rows": BATCH[options.device] * options.steps,
    }
    tools = [tool for tool in TOOLS if tool in COMPARED or tool in options.tools]
    precisions = {"bf16": True} if on_gpu else {"fp32": False} | ({"bf16": True} if options.bf16 else {})
    plan: dict[str, tuple[list[str], list[str]]] = {}
    for data in options.data or [None]:
        for (precision, half), method in itertools.product(precisions.items(), options.methods):
            words = [method, *(["--bf16"] if half else []), *(["--data", data] if data else [])]
            # TRL's defaults are in bf16, whatever is asked for
            chosen = [tool for tool in tools if not (on_gpu and tool not in COMPARED) and not (half and tool == "trl")]
            plan[f"{Path(data).name + ' ' if data else ''}{method} {precision}"] = (chosen, words)
    runs: dict[str, list[dict[str, Any]]] = {title: [] for title in plan}
    for repeat in range(options.repeats):
        for title, (compared, words) in plan.items():
            first = repeat % len(compared)  # another tool begins each time
            same = [*words, "--steps", str(options.steps), "--device", options.device]
            same += ["--model", options.model] if options.model else []
            measurements = [_child(tool, *same) for tool in compared[first:] + compared[:first]]
            check(title, {run["tool"]: run for run in measurements})
            runs[title] += measurements
    summary = {title: summarise(measurements) for title, measurements in runs.items()}
    name = "engine_cuda.json" if on_gpu else "engine_real.json" if options.model else "engine.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**head, "summary": summary, "runs": runs}, indent=2) + "\n")
    show(head, summary)


def _child(*words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **WAITING})
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    print(done.stdout, end="", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(title: str, runs: dict[str, dict[str, Any]]) -> None:
    """Exit unless all did the same work, and tunewise and Trainer start from the same loss."""
    ours, theirs = runs["tunewise"], runs["trainer"]
    for tool, run in runs.items():
        for what in ("trainable_parameters", "labelled_tokens", "tokens"):
            if run[what] != ours[what]:
                sys.exit(f"{title}: {tool} has {run[what]} {what.replace('_', ' ')}, but tunewise {ours[what]}")
    if not abs(ours["first_loss"] - theirs["first_loss"]) <= (0.1 if "bf16" in title else 1e-3):  # nor NaN
        both = f"{ours['first_loss']:.5f} in tunewise but {theirs['first_loss']:.5f} in Trainer"
        sys.exit(f"{title}: from the same weights and rows the first loss is {both}")


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians of each tool; ratios to tunewise are taken within each repeat."""
    figures: dict[str, dict[str, Any]] = {}
    ours = [run for run in runs if run["tool"] == "tunewise"]
    for tool in [tool for tool in TOOLS if any(run["tool"] == tool for run in runs)]:
        tool_runs = [run for run in runs if run["tool"] == tool]
        figures[tool] = {key: statistics.median(run[key] for run in tool_runs) for key in tool_runs[0] if key != "tool"}
        for name, key in (("cpu", "cpu_seconds"), ("wall", "wall_seconds"), ("memory", "peak_memory_gb")):
            times = [run[key] / base[key] for run, base in zip(tool_runs, ours, strict=True)]
            figures[tool][f"times_the_{name}_of_tunewise"] = statistics.median(times)
            figures[tool][f"times_the_{name}_range"] = [min(times), max(times)]
    return figures


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    facts = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "threads": THREADS, "load": os.getloadavg()[0]}
    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_name()}
    return {**gpu, **facts, **WAITING, **{name: version(name) for name in PARTS}}


def show(head: dict[str, Any], summary: dict[str, dict[str, dict[str, Any]]]) -> None:
    """The tables."""
    console = Console(width=160)
    console.print(", ".join(f"{name} {value}" for name, value in head["machine"].items()), highlight=False)
    for title, tools in summary.items():
        ours = tools["tunewise"]
        size = f"{head['rows']} rows, {ours['tokens']:.0f} tokens, {ours['labelled_tokens']:.0f} of them labelled"
        console.print(f"\n{title}: {size}", highlight=False)
        table = Table("", *(Column(heading, justify="right") for heading in COLUMNS))
        for tool, row in tools.items():
            table.add_row(TOOLS[tool], *(form.format(row[key]) for key, form in COLUMNS.values()))
        console.print(table)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "METHOD"), help="one measurement, as a line of JSON")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=tuple(TOOLS), help="beside tunewise and trainer")
    parser.add_argument("--bf16", action="store_true", help="also (with --one: only) under bf16 autocast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu; or cuda: a larger model, under bf16 autocast")
    parser.add_argument("--steps", type=int, default=6, help="timed optimiser steps, 8 rows each")
    parser.add_argument("--out", type=Path, help="default: results/engine.json, or results/engine_cuda.json")
    parser.add_argument("--model", help="folder of a real model; default: a random one")
    parser.add_argument("--data", nargs="+", help="with --model: tasks, as `tunewise compare` takes them")
    options = parser.parse_args()
    if bool(options.model) != bool(options.data):
        parser.error("--model and --data go together")
    if not options.one:
        return compare(options)
    with contextlib.redirect_stdout(sys.stderr):  # the tools' own logs
        measurement = measure(*options.one, options.bf16, options)
    print(json.dumps(measurement))


if __name__ == "__main__":
    main()
