"""Prompts written by hand beside `icl` and `rag`, on the same test rows and by the same metric.

    python benchmarks/prompts_by_hand.py MODEL TASK... [--test-examples 60] [--out FILE]

By hand (`ByHand`, plain transformers), a chat model gets a few-shot prompt, eight training rows at random as turns, and
a passages prompt: the three nearest documents, or where the task has none, the eight nearest training rows, by BM25.
Labels are chosen by their likelihood, other answers are generated greedily. `icl` stands beside the first, `rag` beside
the second, each with its default settings. The table shows the score, its mean difference from the prompt by hand with
a 95 % interval over the paired rows, the mean tokens of a prompt, and CPU seconds to answer all rows; what `icl` and
`rag` choose beforehand takes the seconds in the last column.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import bm25s
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewise.adaptation.label_list import label_list_choice
from tunewise.contract.technique import Technique
from tunewise.core.seeds import generator
from tunewise.data.task import Example, Task, sample
from tunewise.engine.model import Base, load_base
from tunewise.fitting import metrics
from tunewise.fitting.allowance import allowance
from tunewise.fitting.scoring import score, study
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make

BY_HAND = {"icl": "few_shot", "rag": "passages"}


@dataclass
class Result:
    """What one way to prompt scores, row by row."""

    task: str
    prompt: str
    scores: list[float]
    tokens: float
    seconds: float
    choosing_seconds: float = 0.0
    choices: dict[str, object] = field(default_factory=dict)


class ByHand:
    """Prompts as a practitioner writes them for one task."""

    def __init__(
        self, name: str, dtype: str, train: list[tuple[str, str]], labels: list[str], documents: list[str]
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).eval()
        self.shots, self.labels = random.Random(0).sample(train, 8), labels
        self.passages = documents or [f"Text: {text}\nLabel: {answer}" for text, answer in train]
        self.count = 3 if documents else 8
        self.index = bm25s.BM25()
        self.index.index([re.findall(r"\w+", text.lower()) for text in self.passages], show_progress=False)
        listed = f"Give the label of the text. The labels are: {', '.join(labels)}."
        self.instruction = listed if labels else "Answer the question in a few words."

    def few_shot(self, text: str) -> list[dict[str, str]]:
        """Write the few-shot prompt of a question as turns."""
        turns = [{"role": "system", "content": self.instruction}]
        for question, answer in self.shots:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": text}]

    def nearest_passages(self, text: str) -> list[dict[str, str]]:
        """Write the passages prompt of a question, the nearest passage last."""
        words = [re.findall(r"\w+", text.lower())]
        found = self.index.retrieve(words, k=self.count, show_progress=False, backend_selection="numpy")[0][0]
        texts = [self.passages[place] for place in reversed(found.tolist())]
        return [{"role": "user", "content": "\n\n".join([*texts, self.instruction, text])}]

    @torch.no_grad()
    def answer(self, turns: list[dict[str, str]]) -> tuple[str, int]:
        """Return the answer and the number of tokens of the prompt."""
        ids = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        if not self.labels:
            output = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
            text = self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
            return text, ids.shape[1]
        read, nats = self.model(ids, use_cache=True, logits_to_keep=1), []
        for label in self.labels:
            target = torch.tensor([[*self.tokenizer(label)["input_ids"], self.tokenizer.eos_token_id]])
            cache = copy.deepcopy(read.past_key_values)
            after = self.model(target[:, :-1], past_key_values=cache).logits[0]
            logits = torch.cat([read.logits[0, -1:], after]).float()
            nats.append(float(torch.nn.functional.cross_entropy(logits, target[0], reduction="sum")))
        return self.labels[nats.index(min(nats))], ids.shape[1]


def by_hand(model: str, dtype: str, task: Task, tests: tuple[Example, ...]) -> list[Result]:
    """Score both prompts by hand."""
    train = [(example.prompt, example.answer) for example in task.train]
    files = sorted(Path(task.knowledge).iterdir()) if task.knowledge else []
    hand = ByHand(model, dtype, train, list(task.labels), [file.read_text("utf-8").strip() for file in files])
    metric = metrics.find("exact_match" if task.labels else task.metric)
    results = []
    for name, prompt in (("few_shot", hand.few_shot), ("passages", hand.nearest_passages)):
        started = time.process_time()
        answers = [hand.answer(prompt(example.prompt)) for example in tests]
        seconds = time.process_time() - started
        scores = [
            metric(text, example.references or (example.answer,))
            for (text, _), example in zip(answers, tests, strict=True)
        ]
        results.append(Result(task.name, name, scores, fmean(tokens for _, tokens in answers), seconds))
    return results


def ours(base: Base, task: Task, tests: tuple[Example, ...], technique: Technique, steps: int) -> Result:
    """Score a technique, with the choices on validation that `tunewise fit` makes."""
    started = time.process_time()
    attachment = technique.resolved(base).attach(base, generator(0, "attach"))
    allowed = allowance(base, task, TrainSettings(max_steps=steps))
    attachment.prepare(study(attachment, task, sample(task.validation, 128), 0, allowance=allowed))
    choosing = time.process_time() - started
    started = time.process_time()
    scores = score(attachment, task, tests)
    seconds = time.process_time() - started
    choices = {"label_list": task.label_list, "k": attachment.k, **attachment.findings(lambda: 0.0)}
    base.release()
    return Result(task.name, technique.name, scores.per_example, scores.prompt_tokens, seconds, choosing, choices)


def with_label_list(base: Base, task: Task) -> Task:
    """Return the task with the choice whether prompts list the labels, as `tunewise fit` makes it."""
    with tempfile.TemporaryDirectory() as folder:
        choice = label_list_choice(base, task, Path(folder), has_results=False)
    return choice.applied_to(task) if choice is not None else task


def difference(result: Result, others: list[Result]) -> str:
    """Return the mean difference from the prompt by hand, over paired rows, with what may be chance."""
    if result.prompt not in BY_HAND:
        return ""
    hand = next(other for other in others if other.prompt == BY_HAND[result.prompt])
    pairs = [mine - other for mine, other in zip(result.scores, hand.scores, strict=True)]
    chance = 1.96 * stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("inf")
    return f"{fmean(pairs):+.3f} ± {chance:.3f}"


def main() -> None:
    """Score all tasks, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", nargs="+")
    parser.add_argument("--test-examples", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100, help="of the training whose tokens icl and rag may read")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--set", action="append", default=[], help="a setting, as in icl.k=8")
    parser.add_argument("--prompts", default="few_shot,icl,passages,rag", help="those to run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings: dict[str, dict[str, object]] = {"icl": {}, "rag": {}}
    for text in arguments.set:
        key, value = text.split("=", 1)
        technique, setting = key.split(".", 1)
        settings[technique][setting] = json.loads(value) if re.fullmatch(r"[\d.]+|true|false", value) else value
    wanted = set(arguments.prompts.split(","))
    table = Table("task", "prompt", "score", "difference", "tokens", "CPU s", "CPU s to choose")
    records = []
    for source in arguments.task:
        task = Task.read(source)
        tests = sample(task.test, arguments.test_examples)
        results = by_hand(arguments.model, arguments.dtype, task, tests) if wanted & {"few_shot", "passages"} else []
        base = load_base(arguments.model, dtype=arguments.dtype)
        task = with_label_list(base, task) if wanted & {"icl", "rag"} else task
        for name in sorted(wanted & {"icl", "rag"}):
            results.append(ours(base, task, tests, make(name, {name: settings[name]}), arguments.steps))
        for result in sorted(results, key=lambda each: ["few_shot", "icl", "passages", "rag"].index(each.prompt)):
            compared = difference(result, results) if len(results) == 4 else ""
            figures = [f"{result.tokens:.0f}", f"{result.seconds:.0f}", f"{result.choosing_seconds:.0f}"]
            table.add_row(result.task, result.prompt, f"{fmean(result.scores):.3f}", compared, *figures)
            records.append({**asdict(result), "score": fmean(result.scores), "difference": compared})
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(records, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
