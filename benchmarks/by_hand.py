"""LoRA by hand beside the comparison's row: plain transformers and PEFT on the same rows, steps and learning rate.

    python benchmarks/by_hand.py RUN [--out benchmarks/results/by_hand.TASK.json]

RUN is the folder of a finished comparison with a row of lora, run in the folder that its command was run in. The script
trains and scores as a practitioner would write it (`by_hand`, sixty lines), then runs `tunewise compare -t lora` with
the settings of RUN in an empty folder. Both are processes of their own, one after the other; the table shows the score
on the same test examples, seconds from start to end, and peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def by_hand(result: dict) -> dict:
    """Train LoRA with Trainer and PEFT as the row of lora was trained, and score the same test examples."""
    import torch
    from peft import LoraConfig, get_peft_model
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from tunewise.data.task import Task, sample  # only for the same rows

    row = next(row for row in result["rows"] if row["technique"] == "lora")
    task, settings = Task.read(result["task"]["source"]), result["settings"]
    tests, labels = sample(task.test, result["task"]["test"]), list(task.labels)
    tokenizer = AutoTokenizer.from_pretrained(result["model"]["name"])
    model = AutoModelForCausalLM.from_pretrained(result["model"]["name"], dtype=torch.float32)
    lora = {"r": row["settings"]["r"], "lora_alpha": row["settings"]["lora_alpha"], "lora_dropout": 0.0}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **lora))

    def encode(prompt: str, answer: str) -> dict:
        lists = labels and result["task"].get("label_list", True)
        content = f"{prompt}\n\nAnswer with one of: {', '.join(labels)}." if lists else prompt
        turns = [{"role": "user", "content": content}]
        start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        whole = [*start, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :], "start": start}

    rows = [encode(example.prompt, example.answer) for example in task.train]
    collator = DataCollatorForSeq2Seq(tokenizer)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=row["training"]["steps"],
        per_device_train_batch_size=settings["per_device_train_batch_size"],
        learning_rate=row["learning_rate"],
        lr_scheduler_type=settings["lr_scheduler_type"],
        warmup_steps=settings["warmup_ratio"],
        bf16=settings["bf16"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trained = trainer.train()
    model.eval()

    @torch.no_grad()
    def label_of(prompt: str) -> str:
        batch = collator([{k: v for k, v in encode(prompt, label).items() if k != "start"} for label in labels])
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        return labels[int(nll.sum(1).argmin())]

    @torch.no_grad()
    def answer_to(prompt: str) -> str:
        start = torch.tensor([encode(prompt, "")["start"]])
        output = model.generate(input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=96)
        return tokenizer.decode(output[0, start.shape[1] :], skip_special_tokens=True).strip()

    if labels:
        scores = [float(label_of(example.prompt) == example.answer) for example in tests]
    else:
        rouge = RougeScorer(["rougeL"])
        scores = [
            max(
                rouge.score(text, answer_to(example.prompt))["rougeL"].fmeasure
                for text in example.references or (example.answer,)
            )
            for example in tests
        ]
    return {"score": sum(scores) / len(scores), "train_seconds": trained.metrics["train_runtime"]}


def run(command: list[str]) -> tuple[dict, float, int]:
    """Run a command that prints JSON; return it, the seconds from start to end, and the peak bytes of its processes."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {shlex.join(command)}")
        output.seek(0)
        text = output.read().decode()
    answer = text if text.startswith("{\n") else text.splitlines()[-1]  # Trainer prints its metrics before
    return json.loads(answer), seconds, usage.ru_maxrss * 1024


def of_lora_alone(command: list[str], out: str) -> list[str]:
    """Return the command of a comparison for the row of lora alone, into another folder."""
    valued = {"-t": "lora", "--techniques": "lora", "-o": out, "--out": out}
    words = [valued.get(before, word) for before, word in zip(["", *command], command, strict=False)]
    words += [] if {"-t", "--techniques"} & set(words) else ["-t", "lora"]
    return [sys.executable, "-m", "tunewise.cli", *words[1:], "--json"]


def main() -> None:
    """Run both, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    result = json.loads((options.run / "compare.json").read_text("utf-8"))
    if options.child:
        print(json.dumps(by_hand(result)))
        return
    row = next(row for row in result["rows"] if row["technique"] == "lora")
    figures = {"task": result["task"]["name"], "steps": row["training"]["steps"], "score_of_run": row["score"]}
    theirs, seconds, peak = run([sys.executable, __file__, str(options.run), "--child"])
    figures["by hand"] = theirs | {"seconds": seconds, "peak_bytes": peak}
    with tempfile.TemporaryDirectory() as folder:
        ours, seconds, peak = run([*of_lora_alone(result["command"], folder)])
    row = next(row for row in ours["rows"] if row["technique"] == "lora")
    figures["tunewise"] = {"score": row["score"]["mean"], "train_seconds": row["cost"]["train_seconds"]}
    figures["tunewise"] |= {"seconds": seconds, "peak_bytes": peak}
    low, high = row["score"]["low"], row["score"]["high"]
    print(f"{figures['task']}, {figures['steps']} steps; 95 % interval of tunewise's score: {low:.3f} to {high:.3f}\n")
    print("| | score | training | start to end | peak memory |\n|---|---:|---:|---:|---:|")
    for name in ("by hand", "tunewise"):
        line = figures[name]
        print(
            f"| {name} | {line['score']:.3f} | {line['train_seconds']:.0f} s | {line['seconds']:.0f} s "
            f"| {line['peak_bytes'] / 1e9:.2f} GB |"
        )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
