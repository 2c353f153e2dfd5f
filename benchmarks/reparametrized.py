"""Times our low-rank and Kronecker layers against PEFT's inside the same training loop, and weighs what memory costs.

    python benchmarks/reparametrized.py [--repeats 5]

1. a training step of each technique and of PEFT's nearest method on random Llamas of three widths, taking turns
2. forward and backward of one layer of width 2048: KronA's product, which is never formed, against PEFT's LoKr
3. qlora against lora: bytes of the frozen linears, and a step
4. bytes a parameter of full fine-tuning by optimiser: weights, the most gradients alive at once, optimiser state
5. a step of full that computes its activations again over one that keeps them

Ratios are medians of ratios within a repeat. fp32, two threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunewise.core.seeds import generator
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.model import Base
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.techniques.reparametrized.krona import kronecker
from tunewise.testing import attach, tiny_base

WIDTHS = {256: 4, 512: 4, 1024: 2}  # with blocks
ROWS, LENGTH, STEPS = 8, 128, 4
LORA = {"r": 16, "lora_alpha": 32.0}
PEFT_LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PAIRS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("lora", LORA, "peft:lora", PEFT_LORA),
    ("dylora", LORA, "peft:lora", PEFT_LORA),
    ("adalora", {"init_r": 12}, "peft:adalora", {"init_r": 12, "total_step": 100, "target_modules": "all-linear"}),
    ("krona", {}, "peft:lokr", {"r": 1 << 20, "alpha": 1 << 20, "target_modules": "all-linear"}),
]
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "galore", "lomo", "adalomo")


def model(width: int, blocks: int) -> Base:
    """A random Llama with a vocabulary of 2048."""
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": width * 8 // 3 // 32 * 32, "num_hidden_layers": blocks}
    config = LlamaConfig(vocab_size=2048, num_attention_heads=width // 64, **shape)
    return Base(LlamaForCausalLM(config), tiny_base().tokenizer)


def rows() -> list[TokenSequence]:
    """Rows of random tokens, half of each labelled."""
    source = generator(0, "rows")
    ids = [torch.randint(2, 2048, (LENGTH,), generator=source).tolist() for _ in range(ROWS)]
    return [TokenSequence(row, [place >= LENGTH // 2 for place in range(LENGTH)], LENGTH // 2) for row in ids]


def step(base: Base, name: str, settings: dict[str, Any], **plan_settings: Any) -> float:
    """Median seconds of a training step after the first."""
    attachment = attach(make(name, {name: settings}), base)
    clocks = [time.perf_counter()]
    plan = TrainSettings(max_steps=STEPS, per_device_train_batch_size=ROWS, **plan_settings)
    train(attachment, rows(), plan, on_step=lambda *_: clocks.append(time.perf_counter()), reuse_trunk=False)
    attachment.detach()
    return statistics.median([after - before for before, after in itertools.pairwise(clocks)][1:])


def against(first: Callable[[], float], second: Callable[[], float], repeats: int) -> dict[str, float]:
    """Medians of both in turns, and of second over first."""
    runs = [(first(), second()) for _ in range(repeats)]
    ratio = statistics.median(b / a for a, b in runs)
    return {
        "ours": statistics.median(a for a, _ in runs),
        "theirs": statistics.median(b for _, b in runs),
        "ratio": ratio,
    }


def products(repeats: int, size: int = 2048, tokens: int = 256) -> dict[str, float]:
    """One KronA update with factors of 32 x 64 and 64 x 32, and PEFT's LoKr with its nearest, on `tokens` tokens."""
    from peft import LoKrConfig, get_peft_model

    x = torch.randn(tokens, size)
    a, b = torch.randn(32, 64, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    holder = nn.Sequential(nn.Linear(size, size, bias=False))
    theirs = get_peft_model(holder, LoKrConfig(r=1 << 20, alpha=1 << 20, target_modules=["0"]))
    frozen = nn.Linear(size, size, bias=False).requires_grad_(False)

    def timed(work: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        work().sum().backward()
        return time.perf_counter() - started

    def bare() -> float:
        x.requires_grad_(True)
        return timed(lambda: frozen(x))

    base = statistics.median(bare() for _ in range(5))
    ours, other = (lambda: timed(lambda: frozen(x) + kronecker(x, a, b))), (lambda: timed(lambda: theirs(x)))
    ours(), other()
    pairs = [(ours() - base, other() - base) for _ in range(3 * repeats)]
    ratio = statistics.median(b / a for a, b in pairs)
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "ratio": ratio,
    }


def four_bits(repeats: int) -> dict[str, float]:
    """Bytes of the frozen linears in fp32 and in four bits, and a step of qlora over one of lora."""
    base = model(512, 4)
    whole = sum(module.weight.nbytes for _, _, module in base.anatomy.linears())
    attachment: Any = attach(make("qlora"), base)
    packed = sum(weight.nbytes for weight in attachment.packed.values())
    attachment.detach()
    settings = {"r": 16, "lora_dropout": 0.0}
    times = against(lambda: step(base, "lora", LORA), lambda: step(base, "qlora", settings), repeats)
    return {"lora": times["ours"], "qlora": times["theirs"], "ratio": times["ratio"], "bytes": whole, "packed": packed}


def ledger() -> dict[str, dict[str, float]]:
    """Bytes a parameter: weights, the most gradients alive at once, and the optimiser's state."""
    bytes_per_parameter = {}
    for name in OPTIMIZERS:
        base = model(512, 4)
        alive = [0]
        parameters = [parameter.requires_grad_(True) for parameter in base.model.parameters()]
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(
                lambda _, alive=alive, parameters=parameters: alive.append(
                    sum(other.grad.nbytes for other in parameters if other.grad is not None)
                )
            )
        attachment: Any = attach(make("full", {"full": {"optimizer": name, "galore_rank": 64}}), base)
        try:
            train(attachment, rows(), TrainSettings(max_steps=2, per_device_train_batch_size=ROWS))
        except ImportError:
            continue
        count, weights = base.parameters, sum(parameter.nbytes for parameter in parameters)
        states = attachment.mover.state.values()
        state = sum(value.nbytes for slots in states for value in slots.values() if torch.is_tensor(value))
        bytes_per_parameter[name] = {
            "weights": weights / count,
            "gradients": max(alive) / count,
            "state": state / count,
        }
    return bytes_per_parameter


def recomputed(repeats: int) -> dict[str, float]:
    """Seconds of a step of full that keeps its activations, and of one that computes them again."""
    base = model(512, 4)
    times = against(
        lambda: step(base, "full", {}), lambda: step(base, "full", {}, gradient_checkpointing=True), repeats
    )
    return {"kept": times["ours"], "recomputed": times["theirs"], "ratio": times["ratio"]}


def main() -> None:
    """Measure, print tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reparametrized.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    console, result = Console(width=120), {"torch": torch.__version__, "repeats": options.repeats, "steps": []}
    table = Table("technique", "against", "width", "ms a step", "ms of PEFT's", "PEFT's over ours", title="steps")
    for width, blocks in WIDTHS.items():
        base = model(width, blocks)
        for ours, our_settings, theirs, their_settings in PAIRS:
            runs = [partial(step, base, ours, our_settings), partial(step, base, theirs, their_settings)]
            times = against(*runs, options.repeats)
            result["steps"].append({"technique": ours, "against": theirs, "width": width, **times})
            cells = (f"{1000 * times['ours']:.0f}", f"{1000 * times['theirs']:.0f}", f"{times['ratio']:.2f}")
            table.add_row(ours, theirs, str(width), *cells)
    result["products"], result["four_bits"] = products(options.repeats), four_bits(options.repeats)
    result["ledger"], result["recomputed"] = ledger(), recomputed(options.repeats)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(table)
    for name in ("products", "four_bits", "recomputed"):
        console.print(name, {key: round(value, 5) for key, value in result[name].items()})
    sums = Table("optimiser", "weights", "gradients", "state", "sum", title="bytes a parameter")
    for name, row in result["ledger"].items():
        sums.add_row(name, *(f"{value:.2f}" for value in (*row.values(), sum(row.values()))))
    console.print(sums)


if __name__ == "__main__":
    main()
