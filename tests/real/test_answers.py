"""An adaptation of a real instruct model gives the same answers everywhere, and they end."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewise.adaptation.artifact import load
from tunewise.adaptation.fit import fit
from tunewise.data.task import Message, Task
from tunewise.engine.decoding import Sampling
from tunewise.engine.device import has_bf16_arithmetic
from tunewise.engine.model import load_base
from tunewise.export.export import export
from tunewise.fitting.scoring import score
from tunewise.fitting.settings import TrainSettings
from tunewise.serve.adaptation_pool import AdaptationPool
from tunewise.serve.prompts import Question
from tunewise.serve.scheduler import Ended, Engine, Failed, Job, Piece
from tunewise.techniques.registry import make

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]
NEW = 96  # tokens of an answer, more than any of these has


def multi_turn(folder) -> str:
    """Write conversations of two turns, of which the second answer needs the first question."""
    names = ["Ada", "Bo", "Cem", "Dia", "Eli", "Fay", "Gus", "Hal", "Ida", "Jo"]
    towns = ["Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Turin", "Perth", "Delhi", "Malmö", "Dakar"]
    rows = [
        [
            ("user", f"I am {name} from {town}, number {number}."),
            ("assistant", f"Welcome, {name}!"),
            ("user", "Where am I from?"),
            ("assistant", f"From {town}."),
        ]
        for number, (name, town) in enumerate((name, town) for name in names for town in towns)
    ]
    path = folder / "talks.jsonl"
    text = "\n".join(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in rows)
    path.write_text(text, "utf-8")
    return str(path)


def served(base, folder, conversations) -> list[str]:
    """Ask a serving engine all questions at once."""
    pool = AdaptationPool(base)
    pool.add("lora", lambda base: load(folder, base=base))
    engine = Engine(pool)
    answers, ended = [""] * len(conversations), threading.Semaphore(0)

    def hear(index):
        def take(event):
            assert not isinstance(event, Failed), event
            if isinstance(event, Piece):
                answers[index] += event.text
            elif isinstance(event, Ended):
                assert event.reason == "stop", answers[index]
                ended.release()

        return take

    engine.start()
    engine.submit(
        [Job("lora", Question(each), Sampling(), hear(index), NEW) for index, each in enumerate(conversations)]
    )
    for _ in conversations:
        assert ended.acquire(timeout=300)
    engine.stop(30)
    return [answer.strip() for answer in answers]


def of_plain_transformers(folder, conversations) -> list[str]:
    """Answer with a merged model as its users do: apply_chat_template and generate."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for messages in conversations:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        size = inputs["input_ids"].shape[1]
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, size:]
        assert int(output[-1]) == tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.decode(output)
        answers.append(tokenizer.decode(output, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("kind", ["e2e_nlg", "multi-turn"])
def test_the_same_answers_everywhere_and_all_of_them_end(real, instruct_model, tmp_path, kind):
    data = f"{real / 'tasks' / 'e2e_nlg'}#200" if kind == "e2e_nlg" else multi_turn(tmp_path)
    task, base = Task.read(data), load_base(instruct_model, device="cpu")
    settings = TrainSettings(max_steps=12, per_device_train_batch_size=8, bf16=has_bf16_arithmetic("cpu"))
    folder = tmp_path / "run" / "adaptation"
    fit(base, task, make("lora"), tmp_path / "run", settings=settings, validation_examples=8)
    base.release()
    export(folder, "merged", tmp_path / "merged", base=base, dtype="float32", parity_prompts=None)
    adaptation = load(folder, base=base)
    examples = task.test[:4]
    scores = score(adaptation.attachment, task.in_style_of(adaptation.style), examples)
    assert scores.lengths is not None and scores.lengths.never_ended == 0
    if kind == "multi-turn":
        assert scores.others["exact_match"] == 1.0, scores.predictions
    base.release()
    conversations = [example.messages for example in examples]
    assert served(base, folder, conversations) == scores.predictions
    assert of_plain_transformers(tmp_path / "merged", conversations) == scores.predictions
    first = Message("user", examples[0].prompt)
    alone = load(folder, base=base).generate(first.content, NEW)
    assert kind == "multi-turn" or alone == scores.predictions[0]
