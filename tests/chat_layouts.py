"""Chat templates written after the structure of well-known ones, on a tiny tokenizer with their control tokens."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunewise.engine.tiny import tiny_base

_CHATML_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@dataclass(frozen=True)
class Layout:
    """Holds a template with the tokenizer's control tokens; the first is its bos and the second its eos.

    `plain` are added tokens that are not special, and `ends` those that the generation settings name.
    """

    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


CHATML = Layout(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _CHATML_END,
    ("<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ends=("<|endoftext|>",),
)
LLAMA3 = Layout(
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\n\n' }}"
    "{% if loop.first and tools %}{{ 'Tools: ' + (tools | tojson) + '\n\n' }}{% endif %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}' }}"
    "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ends=("<|end_of_text|>", "<|eot_id|>"),
)
GEMMA = Layout(
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    ends=("<eos>", "<end_of_turn>"),
)
QWEN3 = Layout(
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set body = m.content %}{% set why = '' %}"
    "{% if m.reasoning_content is defined %}{% set why = m.reasoning_content %}"
    "{% elif '</think>' in body %}{% set why = body.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set body = body.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or why) %}{{ '<think>\n' + why.strip('\n') + '\n</think>\n\n' }}"
    "{% endif %}{{ body }}{% for call in m.tool_calls or [] %}{{ '\n' if body or not loop.first }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + _CHATML_END.replace(
        "{% endif %}",
        "{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    ),
    ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ends=("<|im_end|>", "<|endoftext|>"),
)
PHI3 = Layout(
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ends=("<|endoftext|>",),
)
MISTRAL = Layout(
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m.role == 'user' %}{% if tools and m == users[-1] %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
    ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    ends=("</s>",),
)
R1 = Layout(
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ '<｜User｜>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    plain=("<think>", "</think>"),
    ends=("<｜end▁of▁sentence｜>",),
)
ALPACA = Layout(
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n{% else %}{{ m.content }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
    ("<s>", "</s>"),
)
PARTS = Layout(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}" + _CHATML_END,
    CHATML.special,
)
LAYOUTS = {
    "llama-3": LLAMA3,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "phi-3": PHI3,
    "mistral": MISTRAL,
    "r1": R1,
    "chatml": CHATML,
    "alpaca": ALPACA,
    "parts": PARTS,
    "none": Layout("", ("<s>", "</s>")),
}


@dataclass(frozen=True)
class Model:
    """A tokenizer with its window, as an encoder sees a model."""

    tokenizer: PreTrainedTokenizerBase
    generation_ends: tuple[int, ...] = ()
    window: int = 4096
    vocabulary: int = 2048


def model_of(layout: Layout) -> Model:
    """Make a tiny tokenizer with a layout's control tokens and template."""
    tokenizer = deepcopy(tiny_base().tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(layout.special))})
    tokenizer.add_tokens(list(layout.plain))
    tokenizer.bos_token, tokenizer.eos_token = layout.special[:2]
    tokenizer.chat_template = layout.template or None
    return Model(tokenizer, tuple(int(tokenizer.convert_tokens_to_ids(end)) for end in layout.ends))
