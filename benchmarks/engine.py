"""Times one epoch of fine-tuning in tunewise and in its peers: same rows, same batches, same model, same arithmetic.

    python benchmarks/engine.py                        every tool, LoRA and full, 5 repeats: about 30 minutes
    python benchmarks/engine.py --bf16                 the same, and tunewise and Trainer under bf16 autocast
    python benchmarks/engine.py --one tunewise lora    one measurement in this process, as one line of JSON

Every measurement is its own process. A first step on other rows warms each tool up and is not counted; its loss, taken
at the same initial weights, must agree between tunewise and Trainer, or the comparison stops. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer, pack_dataset

from tunewise.model import Base
from tunewise.pack import Sequence
from tunewise.seeds import generator
from tunewise.technique import make
from tunewise.testing import tiny_base
from tunewise.train import TrainSettings, order, train

TOOLS = {
    "tunewise": "tunewise",
    "trainer": "transformers Trainer + PEFT",
    "trl": "TRL SFTTrainer, its defaults (bf16, gradient checkpointing)",
    "trl-packed": "TRL SFTTrainer, packing, no checkpointing",
}
METHODS = ("lora", "full")
THREADS = 2
BATCH, STEPS = 8, 6  # rows of a batch, timed optimiser steps
BLOCK, BLOCKS = 1024, 2  # TRL's packing: tokens of a block, and blocks of a batch (8 rows fill about 1.5)
RATE = 1e-4
# Llama of 15.2 million parameters; input and output embeddings are one tensor.
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MEDIAN, SIGMA, SHORTEST, LONGEST = 166, 0.558, 16, 1024  # log-normal lengths: their mean is about 194
LABELLED = (0.26, 0.66)  # share of a row's tokens that is labelled, uniform: 46 % on average
RESULTS = Path(__file__).parent / "results" / "engine.json"


# What every tool is given.


def draw_rows(steps: int, seed: int = 0) -> list[Sequence]:
    """The warm-up batch and `steps` batches after it; prompts come first and are not labelled."""
    source = generator(seed, "rows")
    rows = []
    for _ in range(BATCH * (1 + steps)):
        length = int(MEDIAN * torch.exp(SIGMA * torch.randn((), generator=source)))
        length = min(max(length, SHORTEST), LONGEST)
        share = LABELLED[0] + (LABELLED[1] - LABELLED[0]) * float(torch.rand((), generator=source))
        prompt = length - round(length * share)
        ids = torch.randint(3, SHAPE["vocab_size"], (length,), generator=source).tolist()
        rows.append(Sequence(ids, [place >= prompt for place in range(length)], prompt))
    return rows


def build_model() -> PreTrainedModel:
    """The random model, the same in every process."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2))


class Record(TrainerCallback):
    """Both clocks after every step, its loss, and the (labelled, real, computed) tokens of every batch."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.losses: list[float] = []
        self.batches: list[tuple[int, int, int]] = []
        self.trainable = 0

    def tick(self) -> None:
        """A step has ended."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Trainer's step has ended."""
        self.tick()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Trainer's loss of a step."""
        self.losses += [float(logs["loss"])] if logs and "loss" in logs else []

    def counting(self, collate: Any) -> Any:
        """The same collator, with its batches counted."""

        def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            computed = batch["input_ids"].numel()
            real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else computed
            self.batches.append((int((batch["labels"][:, 1:] != -100).sum()), real, computed))
            return batch

        return counted


# The tools.


def run_tunewise(model: PreTrainedModel, rows: list[Sequence], method: str, bf16: bool, record: Record) -> None:
    """tunewise; the rows are laid so that its own shuffled order reads them from first to last."""
    laid = list(rows)
    for place, index in enumerate(order(len(rows), 0, 0, len(rows))):
        laid[index] = rows[place]
    base = Base(model, tiny_base().tokenizer, "bench")
    recipe = {"r": 16, "lora_alpha": 32, "learning_rate": RATE} if method == "lora" else {"learning_rate": RATE}
    attachment = make(method, {method: recipe}).attach(base, generator(0, "attach"))
    record.trainable = sum(parameter.numel() for parameter in attachment.params().values())
    settings = TrainSettings(
        max_steps=len(rows) // BATCH,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        bf16=bf16,
    )

    def stepped(step: int, loss: float) -> None:
        record.tick()
        record.losses.append(loss)

    done = train(attachment, laid, settings, seed=0, on_step=stepped)
    warm, tokens = _labelled(rows[:BATCH]), sum(len(row.ids) for row in rows[:BATCH])
    record.batches = [
        (warm, tokens, tokens),
        (done.labelled_tokens - warm, done.tokens - tokens, done.tokens - tokens),
    ]


def run_trainer(model: PreTrainedModel, rows: list[Sequence], method: str, bf16: bool, record: Record) -> None:
    """Trainer with rows padded to the longest of their batch."""

    def pad(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        columns = {"attention_mask": [[1] * len(row["input_ids"]) for row in batch]}
        columns |= {name: [row[name] for row in batch] for name in ("input_ids", "labels")}
        return {
            name: torch.nn.utils.rnn.pad_sequence([torch.tensor(v) for v in values], True, fill[name])
            for name, values in columns.items()
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=BATCH, bf16=bf16, **_common())
        trained = get_peft_model(model, _lora()) if method == "lora" else model
        _go(Trainer(trained, arguments, data_collator=pad, train_dataset=_table(rows)), record)


def run_trl(model: PreTrainedModel, rows: list[Sequence], method: str, bf16: bool, record: Record) -> None:
    """SFTTrainer with what it does when nobody asks for anything."""
    with tempfile.TemporaryDirectory() as folder:
        _sft(model, SFTConfig(folder, per_device_train_batch_size=BATCH, **_common()), _table(rows), method, record)


def run_trl_packed(model: PreTrainedModel, rows: list[Sequence], method: str, bf16: bool, record: Record) -> None:
    """SFTTrainer with packing; warm-up and timed rows are packed apart, by TRL's own packer."""
    warm = pack_dataset(_table(rows[:BATCH]), BLOCK, "bfd").select(range(BLOCKS))
    packed = concatenate_datasets([warm, pack_dataset(_table(rows[BATCH:]), BLOCK, "bfd")])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder,
            per_device_train_batch_size=BLOCKS,
            packing=True,
            max_length=BLOCK,
            gradient_checkpointing=False,
            bf16=bf16,
            dataset_kwargs={"skip_prepare_dataset": True},  # packed already
            **_common(),
        )
        _sft(model, config, packed, method, record)


RUN = {"tunewise": run_tunewise, "trainer": run_trainer, "trl": run_trl, "trl-packed": run_trl_packed}


def _sft(model: PreTrainedModel, config: SFTConfig, rows: Dataset, method: str, record: Record) -> None:
    tokenizer = tiny_base().tokenizer  # SFTTrainer wants one; the rows are tokens already
    adapter = _lora() if method == "lora" else None
    _go(
        SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter),
        record,
    )


def _go(trainer: Trainer, record: Record) -> None:
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(record)
    trainer.data_collator = record.counting(trainer.data_collator)
    record.trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()


def _common() -> dict[str, Any]:
    """Settings that Trainer and TRL share; AdamW, its betas, decay 0 and clipping at 1 are their defaults and ours."""
    return {
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def _lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _table(rows: list[Sequence]) -> Dataset:
    labels = [[i if on else -100 for i, on in zip(row.ids, row.labelled, strict=True)] for row in rows]
    return Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": labels})


def _labelled(rows: list[Sequence]) -> int:
    return sum(sum(row.labelled[1:]) for row in rows)


# One measurement.


def measure(tool: str, method: str, bf16: bool, steps: int) -> dict[str, Any]:
    """One epoch of one tool in this process."""
    torch.set_num_threads(THREADS)
    rows, model, record = draw_rows(steps), build_model(), Record()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    RUN[tool](model, rows, method, bf16, record)
    labelled, tokens, computed = (sum(column) for column in zip(*record.batches[1:], strict=True))
    return {
        "tool": tool,
        "method": method,
        "bf16": bf16 or tool == "trl",
        "cpu_seconds": record.cpu[-1] - record.cpu[0],
        "wall_seconds": record.wall[-1] - record.wall[0],
        "peak_memory_bytes": _status("VmHWM") - before,
        "steps": len(record.cpu) - 1,
        "labelled_tokens": labelled,
        "tokens": tokens,
        "computed_tokens": computed,
        "trainable_parameters": record.trainable,
        "first_loss": record.losses[0],
        "mean_loss": statistics.fmean(record.losses[1:]),
    }


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


# The comparison.


def compare(options: argparse.Namespace) -> None:
    """Alternate the tools, take medians, print and write."""
    head = {"machine": machine(), "model": SHAPE, "threads": THREADS, "rows": BATCH * options.steps, "batch": BATCH}
    sections = [(method, False, tuple(TOOLS)) for method in options.methods]
    if options.bf16:
        sections += [(method, True, ("tunewise", "trainer")) for method in options.methods]
    runs: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        for method, bf16, tools in sections:
            turn = repeat % len(tools)
            for tool in tools[turn:] + tools[:turn]:
                runs.append({"repeat": repeat, "section": _title(method, bf16), **_child(tool, method, bf16, options)})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
            check([run for run in runs if run["repeat"] == repeat and run["section"] == _title(method, bf16)])
    names = [_title(method, bf16) for method, bf16, _ in sections]
    summary = {name: summarise([run for run in runs if run["section"] == name]) for name in names}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**head, "summary": summary, "runs": runs}, indent=2) + "\n")
    show(head, summary)


def _title(method: str, bf16: bool) -> str:
    return f"{method} {'bf16' if bf16 else 'fp32'}"


def _child(tool: str, method: str, bf16: bool, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", tool, method, "--steps", str(options.steps)]
    done = subprocess.run(command + ["--bf16"] * bf16, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tool} {method} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def check(runs: list[dict[str, Any]]) -> None:
    """Exit unless the tools did the same work: labelled tokens, trained parameters, first loss of tunewise and Trainer."""
    by_tool = {run["tool"]: run for run in runs}
    ours, theirs = by_tool["tunewise"], by_tool["trainer"]
    for run in runs:
        for what in ("trainable_parameters", "labelled_tokens"):
            if run[what] != ours[what]:
                sys.exit(f"{run['tool']} has {run[what]} {what.replace('_', ' ')}, but tunewise {ours[what]}")
    tolerance = 2e-2 if ours["bf16"] else 1e-3
    if not abs(ours["first_loss"] - theirs["first_loss"]) <= tolerance:
        sys.exit(
            f"the first step's loss is {ours['first_loss']:.5f} in tunewise but {theirs['first_loss']:.5f} in "
            "Trainer, from the same weights and rows: they do not train the same thing"
        )


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians of each tool, and how many times it needs what tunewise needs."""
    found: dict[str, dict[str, Any]] = {}
    ours = {run["repeat"]: run for run in runs if run["tool"] == "tunewise"}
    for tool in dict.fromkeys(run["tool"] for run in runs):
        own = [run for run in runs if run["tool"] == tool]
        medians = {
            key: statistics.median(run[key] for run in own)
            for key in own[0]
            if isinstance(own[0][key], int | float) and key not in ("repeat", "bf16")
        }
        # Labelled tokens are equal, so that the ratio of CPU times is that of labelled tokens per CPU second.
        pairs = [run["cpu_seconds"] / ours[run["repeat"]]["cpu_seconds"] for run in own]
        memory = [run["peak_memory_bytes"] / ours[run["repeat"]]["peak_memory_bytes"] for run in own]
        found[tool] = {
            **medians,
            "bf16": own[0]["bf16"],
            "labelled_tokens_per_cpu_second": medians["labelled_tokens"] / medians["cpu_seconds"],
            "cpu_ratio": statistics.median(pairs),
            "cpu_ratio_range": [min(pairs), max(pairs)],
            "memory_ratio": statistics.median(memory),
        }
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tunewise", "torch", "transformers", "peft", "trl", "accelerate")},
        },
    }


def show(head: dict[str, Any], summary: dict[str, dict[str, dict[str, Any]]]) -> None:
    """The tables."""
    console = Console(width=140)
    facts = head["machine"]
    console.print(f"{facts['cpu']}, {facts['cores']} cores, {THREADS} threads, load {facts['load_average'][0]:.2f}")
    console.print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    for section, tools in summary.items():
        tokens = tools["tunewise"]
        title = f"{section}: {head['rows']} rows, {tokens['tokens']} tokens, {tokens['labelled_tokens']} labelled"
        table = Table(title=title, title_justify="left")
        names = ("", "CPU s", "wall s", "labelled/CPU s", "x tunewise's CPU", "peak MB", "x memory", "steps", "mean loss")
        for name in names:
            table.add_column(name, justify="right" if name else "left")
        for tool, row in tools.items():
            low, high = row["cpu_ratio_range"]
            table.add_row(
                TOOLS[tool] + (" [bf16]" if row["bf16"] else ""),
                f"{row['cpu_seconds']:.1f}",
                f"{row['wall_seconds']:.1f}",
                f"{row['labelled_tokens_per_cpu_second']:.0f}",
                f"{row['cpu_ratio']:.2f} ({low:.2f}-{high:.2f})",
                f"{row['peak_memory_bytes'] / 1e6:.0f}",
                f"{row['memory_ratio']:.1f}",
                f"{row['steps']:.0f}",
                f"{row['mean_loss']:.4f}",
            )
        console.print(table)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "METHOD"), help="one measurement in this process")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--bf16", action="store_true", help="also (with --one: only) under bf16 autocast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="timed optimiser steps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.one:
        return compare(options)
    with contextlib.redirect_stdout(sys.stderr):  # the tools print their own logs
        found = measure(*options.one, options.bf16, options.steps)
    print(json.dumps(found))
    return None


if __name__ == "__main__":
    main()
