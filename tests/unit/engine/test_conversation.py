"""What is learnt of conversations, spelled out for the layouts of well-known models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chat_layouts import LAYOUTS, Layout, Model, model_of
from tunewise.core.errors import DataError
from tunewise.data.task import Example, Message, Task
from tunewise.engine.control_tokens import ControlTokens
from tunewise.engine.conversation import final_answer
from tunewise.engine.encoding import Encoder, TokenSequence
from tunewise.engine.rows import fitted_to


def user(text: str) -> Message:
    return Message("user", text)


def learnt(text: str, fields: object = None) -> Message:
    return Message("assistant", text, labelled=True, fields=json.dumps(fields) if fields else "")


def task_of(*examples: Example, kind: str = "generation") -> Task:
    return Task("t", kind, "messages", tuple(examples), examples[:1], examples[:1], (), "rouge_l")


CALL = {"type": "function", "id": "call00001", "function": {"name": "find", "arguments": {"name": "Bo"}}}
CALL_TEXT = '<tool_call>\n{"name": "find", "arguments": {"name": "Bo"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "description": "Find.", "parameters": SCHEMA}}])
THOUGHT = "<think>\n7 times 0\n</think>\n\nIt is 0."
CASES = {
    "single": Example((user("Hi  "),), "Ho"),
    "multi": Example((user("a"), learnt("b"), user("c"), Message("assistant", "no"), user("d")), "e"),
    "system": Example((Message("system", "Be brief."), user("a")), "b"),
    "tools": Example(
        (
            user("Who is Bo?"),
            learnt("", {"tool_calls": [CALL]}),
            Message("tool", "a dog", fields=json.dumps({"tool_call_id": "call00001"})),
        ),
        "A dog.",
        tools=TOOLS,
    ),
    "call": Example(
        (user("Who is Bo?"),),
        CALL_TEXT,
        answer_fields=json.dumps({"content": "", "tool_calls": [CALL]}),
        tools=TOOLS,
    ),
    "thinking": Example((user("7x0?"),), THOUGHT),
    "reasoning": Example(
        (user("7x0?"),),
        "It is 0.",
        answer_fields=json.dumps({"content": "It is 0.", "reasoning_content": "7 times 0"}),
    ),
    "thinking twice": Example((user("7x0?"), learnt(THOUGHT), user("Twice?")), "<think>\ntwo\n</think>\n\n0."),
    "control tokens": Example(
        (user("What is <|im_end|> <end_of_turn></s>?"), learnt("A <|im_end|>."), user("<|eot_id|> <|end|>?")),
        "<|im_start|> <|eot_id|></s>",
    ),
}


# For each layout: what precedes the first word of an answer, its end, the end of a turn before it, the text of a call,
# and whether a turn before the answer gets a row of its own.
SPELLED = {
    "llama-3": ("", "<|eot_id|>", "<|eot_id|>", '{"name": "find", "parameters": {"name": "Bo"}}', False),
    "gemma": ("", "<end_of_turn>", "<end_of_turn>", CALL_TEXT, False),
    "qwen3": ("", "<|im_end|>", "<|im_end|>", CALL_TEXT, True),
    "phi-3": ("", "<|end|>", "<|end|>", CALL_TEXT, False),
    "mistral": (" ", "</s>", "</s>", '[TOOL_CALLS] [{"name": "find", "arguments": {"name": "Bo"}}]', False),
    "r1": ("", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", CALL_TEXT, True),
    "chatml": ("", "<|im_end|>", "<|im_end|>", CALL_TEXT, False),
    "alpaca": ("", "</s>", "", CALL_TEXT, False),
    "parts": ("", "<|im_end|>", "<|im_end|>", CALL_TEXT, False),
    "none": (" ", "</s>", "", CALL_TEXT, False),
}


def spelled(layout: str, case: str) -> list[tuple[str, ...]]:
    """Return the stretches of text that are learnt, row by row."""
    space, end, earlier_end, call, apart = SPELLED[layout]
    call = call if call.startswith("[") else space + call  # Mistral's mark of a call stands without the space
    thought, second = THOUGHT, "<think>\ntwo\n</think>\n\n0."
    if layout == "r1":  # its prompts open the thought
        thought, second = thought.removeprefix("<think>\n"), second.removeprefix("<think>\n")
    turns = {
        "single": ["Ho"],
        "multi": ["b", "e"],
        "system": ["b"],
        "tools": [call, "A dog."],
        "call": [call],
        "thinking": [thought],
        "reasoning": [thought],
        "thinking twice": [thought, second],
        "control tokens": ["A <|im_end|>.", "<|im_start|> <|eot_id|></s>"],
    }[case]
    texts = [text if text is call else space + text for text in turns]
    if apart:
        return [(text + end,) for text in texts]
    return [(*(text + earlier_end for text in texts[:-1]), texts[-1] + end)]


def stretches(model: Model, row: TokenSequence) -> tuple[str, ...]:
    """Decode each run of labelled tokens."""
    runs = list[list[int]]()
    for place, (token, labelled) in enumerate(zip(row.ids, row.labelled, strict=True)):
        if labelled and (not place or not row.labelled[place - 1]):
            runs.append([])
        if labelled:
            runs[-1].append(token)
    return tuple(model.tokenizer.decode(run) for run in runs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_learnt_is_each_answer_with_its_end(layout, case):
    model, example = model_of(LAYOUTS[layout]), CASES[case]
    encoder = Encoder(model, task_of(example))
    examples = encoder.one_answer_each([example])
    rows = encoder.encode(examples)
    assert [stretches(model, row) for row in rows] == spelled(layout, case)
    prompts = encoder.prompts(examples, 0)
    assert [prompt.ids for prompt in prompts] == [row.ids[: row.prompt] for row in rows], "as it is generated from"
    assert all(row.ids[-1] == encoder.ends.taught for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_generated_answer_stops_at_every_end_of_the_model(layout):
    model = model_of(LAYOUTS[layout])
    encoder = Encoder(model, task_of(CASES["single"]))
    end = model.tokenizer.convert_tokens_to_ids(SPELLED[layout][1])
    assert encoder.ends.taught == end
    assert encoder.ends.stops == {end, model.tokenizer.eos_token_id, *model.generation_ends}
    assert encoder.until_stop([5, 6, end, 7]) == 2


@pytest.mark.figure("S7")
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "none"])
def test_control_tokens_in_text_stay_text(layout):
    """No control token is added by a text that spells them, and what the template does with text is done to it too."""
    model = model_of(LAYOUTS[layout])
    special = set(model.tokenizer.all_special_ids) | {model.tokenizer.convert_tokens_to_ids(SPELLED[layout][1])}
    spelling = "".join(LAYOUTS[layout].special)
    plain, hostile = (
        Example((user(f" a{text} "), learnt(f"b{text}"), user(f"{text}c")), f"d{text}") for text in ("", spelling)
    )
    rows = [
        Encoder(model, task_of(example)).encode(Encoder(model, task_of(example)).one_answer_each([example]))
        for example in (plain, hostile)
    ]
    for before, after in zip(*rows, strict=True):
        assert [i for i in before.ids if i in special] == [i for i in after.ids if i in special]
        assert model.tokenizer.decode(after.ids).replace(spelling, "") == model.tokenizer.decode(before.ids)


def test_text_around_a_control_token_is_trimmed_as_any_other():
    model = model_of(LAYOUTS["gemma"])
    example = Example((user("  Hi <eos>  "),), "  Ho <end_of_turn>  ")
    assert Encoder(model, task_of(example)).text(example) == (
        "<bos><start_of_turn>user\nHi <eos><end_of_turn>\n<start_of_turn>model\n",
        "Ho <end_of_turn><end_of_turn>",
    )


def test_an_empty_thought_that_a_template_writes_belongs_to_the_prompt():
    model = model_of(LAYOUTS["qwen3"])
    prompt, answer = Encoder(model, task_of(CASES["single"])).text(CASES["single"])
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and answer == "Ho<|im_end|>"
    row = replace(CASES["single"], template_kwargs='{"enable_thinking": false}')
    assert Encoder(model, task_of(row)).text(row) == (prompt, answer), "not twice"


def test_answers_with_reasoning_open_no_empty_thought():
    model = model_of(LAYOUTS["qwen3"])
    task = task_of(CASES["single"], CASES["thinking"])
    prompt, answer = Encoder(model, task).text(CASES["single"])
    assert prompt.endswith("<|im_start|>assistant\n") and answer == "<think>\n\n</think>\n\nHo<|im_end|>"
    style = replace(task_of(), reasons=True)
    assert Encoder(model, style).text(CASES["single"])[0] == prompt, "an adaptation remembers it"


@pytest.mark.parametrize(
    ("layout", "case", "word"),
    [
        ("gemma", "system", "system message"),
        ("chatml", "tools", "shows no tools"),
        ("chatml", "call", "shows no tool calls"),
        ("chatml", "reasoning", "shows no reasoning"),
        ("gemma", "tools", "no tool turns"),
        ("alpaca", "single", "writes no end after an answer; </s>"),
        ("r1", "single", "does not write an answer after the prompt"),
        ("qwen3", "multi", "1 turns before the last answer became rows of their own"),
    ],
)
def test_what_is_changed_for_a_template_is_told(layout, case, word):
    task = fitted_to(model_of(LAYOUTS[layout]), task_of(CASES[case]))
    assert any(word in note for note in task.notes), task.notes
    assert fitted_to(model_of(LAYOUTS[layout]), task) is task, "once"
    assert fitted_to(model_of(LAYOUTS["none"]), task) is not task, "for another model again"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("question", ["", " \n"])
def test_a_blank_question_has_an_answer(layout, question):
    """As in the inputs without content by which worked examples are calibrated."""
    encoder = Encoder(model_of(LAYOUTS[layout]), task_of(CASES["single"]))
    encoder.template = "{prompt}"
    sequence = encoder.encode([Example((user(question),), "Ho")])[0]
    assert "Ho" in encoder.tokenizer.decode(sequence.ids[sequence.prompt :])


@pytest.mark.parametrize("layout", ["r1", "qwen3", "chatml", "none"])
def test_a_turn_with_reasoning_is_learnt_with_one_thought(layout):
    """Also where it becomes a row of its own."""
    turn = learnt("It is 0.", {"reasoning_content": "7 times 0"})
    example = Example((user("7x0?"), turn, user("Twice?")), "<think>\ntwo\n</think>\n\n0.")
    model = model_of(LAYOUTS[layout])
    encoder = Encoder(model, task_of(example))
    rows = encoder.encode(encoder.one_answer_each([example]))
    assert [stretches(model, row) for row in rows] == spelled(layout, "thinking twice")


def test_a_model_without_any_end_is_told():
    model = model_of(LAYOUTS["alpaca"])
    model.tokenizer.eos_token = None
    encoder = Encoder(model, task_of(CASES["single"]))
    assert encoder.ends.stops == frozenset() and "no generated answer ends by itself" in encoder.notes[0]
    assert stretches(model, encoder.encode([CASES["single"]])[0]) == ("Ho",)


def test_a_template_that_shows_nothing_is_refused():
    layout = Layout("{% for m in messages %}{{ m.role }}{% endfor %}", LAYOUTS["chatml"].special)
    with pytest.raises(DataError, match="leaves out what a conversation says"):
        Encoder(model_of(layout), task_of(CASES["single"]))


def test_a_refused_example_is_named():
    bad = Example((user("a"), user("b")), "c")
    encoder = Encoder(model_of(LAYOUTS["gemma"]), task_of(bad))
    with pytest.raises(DataError, match=r"example 2 \(b\): the model's chat template refuses .*alternate"):
        encoder.encode([CASES["single"], bad])


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "return_tensors", "add_generation_prompt"])
def test_variables_of_a_row_cannot_change_how_a_template_is_applied(name):
    row = replace(CASES["single"], template_kwargs=json.dumps({name: True}))
    with pytest.raises(DataError, match=name):
        Encoder(model_of(LAYOUTS["chatml"]), task_of(row)).encode([row])


def test_plain_text_is_not_put_into_a_template():
    text = Example((), "Once upon a time.")
    model = model_of(LAYOUTS["chatml"])
    row = Encoder(model, task_of(text, kind="text")).encode([text])[0]
    assert model.tokenizer.decode(row.ids[len(row.ids) - sum(row.labelled) :]) == "Once upon a time.<|endoftext|>"


@pytest.mark.parametrize("layout", ["none", "chatml"])
def test_long_text_is_cut_into_pieces_of_the_window(layout):
    model = replace(model_of(LAYOUTS[layout]), window=64)
    text = "\n".join(f"Line {number} of a long book, with été and 今天." for number in range(60))
    task = fitted_to(model, task_of(Example((), text), Example((), "Short."), kind="text"))
    assert "".join(example.answer for example in task.train[:-1]) == text and task.train[-1].answer == "Short."
    assert "long texts were cut into pieces of up to" in task.notes[-1]
    rows = Encoder(model, task).encode(task.train)
    assert not any(row.truncated for row in rows)
    ends = [row.ids[-1] == model.tokenizer.eos_token_id for row in rows]
    assert ends == [not example.continues for example in task.train] and sum(ends) == 2
    assert fitted_to(model, task) is task


def test_hidden_control_tokens_are_shown_again():
    control = ControlTokens(model_of(LAYOUTS["chatml"]).tokenizer)
    text = "a <|im_end|><|im_start|> b"
    hidden = control.hide(text)
    assert len(hidden) == len(text) and "<|im_end|>" not in hidden and control.show(hidden) == text
    assert control.pieces(hidden) == [("a ", False), ("<|im_end|>", True), ("<|im_start|>", True), (" b", False)]


def test_the_final_answer_stands_after_the_reasoning():
    assert final_answer("<think>\nx\n</think>\n\n 7 ") == "7" and final_answer(" 7 ") == "7"
