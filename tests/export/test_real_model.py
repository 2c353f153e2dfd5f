"""A real instruct model, exported as it is by default, gives the trained model's answers in plain transformers."""

import json
import subprocess
import sys

import pytest
import torch

from tunewise.adaptation.artifact import load, save
from tunewise.data.task import Task
from tunewise.engine.model import load_base
from tunewise.export.export import export
from tunewise.techniques.registry import make

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]
QUESTIONS = ("What is the capital of France?", "Name three colours.", "How are you?")
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, answers = sys.argv[1], []
model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
assert model.config.dtype == torch.bfloat16
tokenizer = AutoTokenizer.from_pretrained(folder)
for question in sys.argv[2:]:
    turns = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)
    answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
assert "tunewise" not in sys.modules
print(json.dumps(answers))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_transformers_answers_as_the_trained_model(instruct_model, tmp_path, dtype):
    """The comparison with the file is in float32 whatever the base was trained in."""
    rows = [{"prompt": question, "completion": "I do not know."} for question in QUESTIONS * 8]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    base = load_base(instruct_model, device="cpu", dtype=dtype)
    attachment = make("lora", {}).resolved(base).attach(base, torch.Generator().manual_seed(0))
    moved = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attachment.params().values():
            parameter.add_(torch.randn(parameter.shape, generator=moved) * 0.01)
    save(attachment, Task.read(str(data)), tmp_path / "a")
    base.release()
    record = export(tmp_path / "a", "merged", tmp_path / "out", base=base, parity_prompts=4)
    assert record["same"] and record["dtype"] == "bfloat16" and record["moved_by_training"] > 1
    checkpoint = sum(path.stat().st_size for path in instruct_model.glob("*.safetensors"))
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == pytest.approx(checkpoint, rel=0.01)
    assert base.model.dtype == getattr(torch, dtype)
    if dtype == "bfloat16":
        return  # where near ties are settled by rounding
    loaded = load(tmp_path / "a", base=base)
    with torch.no_grad():  # what plain transformers reads are the rounded merged weights
        for parameter in loaded.attachment.merge().parameters():
            parameter.copy_(parameter.bfloat16())
    expected = [loaded.generate(question, 12) for question in QUESTIONS]
    base.release()
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "out"), *QUESTIONS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
