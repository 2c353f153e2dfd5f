"""What Axolotl's configuration says of data sets, conversations and prompts."""

from __future__ import annotations

from tunewise.core.text import show
from tunewise.importing import values
from tunewise.importing.data_source import (
    ONE_FOLDER,
    ONLY_ANSWERS,
    OTHER_SPLITS,
    OWN_TEMPLATE,
    SEVERAL,
    SYSTEM_PROMPT,
    column,
    columns,
    located,
)
from tunewise.importing.record import Outcome, left, same, took
from tunewise.importing.rules import NO_CODE, Context, Rule, leaves, needless
from tunewise.importing.source import Entry

# Columns by the type of a data set: ours for theirs, where they are not found by their names.
_TYPES: dict[str, dict[str, str]] = {
    "alpaca": {},
    "alpaca_chat": {},
    "alpaca_chat.load_concise": {},
    "alpaca_chat.load_qa": {},
    "alpaca_chat.load_camel_ai": {"prompt": "message_1", "completion": "message_2"},
    "alpaca_w_system.load_open_orca": {"prompt": "question", "completion": "response", "system": "system_prompt"},
    "chat_template": {},
    "context_qa": {"question": "question", "answer": "answer", "context": "article"},
    "context_qa.load_v2": {},
    "gpteacher": {},
    "jeopardy": {},
    "metharme": {"prompt": "prompt", "completion": "generation"},
    "oasst": {"instruction": "INSTRUCTION", "output": "RESPONSE"},
    "sharegpt": {},
    "summarizetldr": {"prompt": "article", "completion": "summary"},
}
_PLAIN_TEXT = ("completion", "pretrain")
_TURNS = {"role": ("role", "from"), "content": ("content", "value")}


def _path(entry: Entry, context: Context) -> Outcome:
    """Take the data set."""
    source = context.source
    if source.value("datasets.shards") is not None:
        return left("a part of the data cannot be chosen; write it into a file and give it with --data")
    part = entry.key.partition(".")[0]
    config = values.optional(values.text, source, f"{part}.name")
    split = values.optional(values.text, source, f"{part}.split")
    outcome = located(values.text(entry), source.value(f"{part}.data_files"), config, split)
    is_text = part == "pretraining_dataset" or source.value("datasets.ds_type") == "text"
    return took({**outcome.settings, "kind": "text"}, outcome.remark) if is_text and outcome.settings else outcome


def _type(entry: Entry, context: Context) -> Outcome:
    """Take the columns that a type of data set has, and say what its prompts become."""
    word = values.text(entry).partition(":")[0]
    if word in _PLAIN_TEXT:
        return took({"kind": "text"}, "plain text, learnt whole")
    if word not in _TYPES:
        return left(f"the type {show(word)} is not known here; say with --columns which column is which")
    settings = columns(_TYPES[word])
    remark = "prompts stand in the model's chat template, or as they are, without the words that Axolotl adds"
    if word in ("chat_template", "sharegpt"):
        remark = "turns of messages or conversations are found by their names"
    return took(settings, remark) if settings else same(remark)


def _column(name: str) -> Rule:
    """Make the rule that takes the name of a column."""
    return lambda entry, context: column(name, values.text(entry))


def _messages(entry: Entry, context: Context) -> Outcome:
    name = values.text(entry)
    return same("found by its name") if name in ("messages", "conversations") else column("messages", name)


def _turn_names(entry: Entry, context: Context) -> Outcome:
    """Compare the names within a turn with those that are read: role and content, from and value."""
    if not isinstance(entry.value, dict):
        raise entry.error("names of a turn's parts")
    if all(entry.value.get(part, names[0]) in names for part, names in _TURNS.items()):
        return same("turns with role and content, or from and value, are read")
    return left("turns must have role and content, or from and value; rename them in the data")


def _turn_name(part: str) -> Rule:
    def rule(entry: Entry, context: Context) -> Outcome:
        return _turn_names(Entry(entry.path, entry.key, {part: values.text(entry)}, entry.line), context)

    return rule


def _roles(entry: Entry, context: Context) -> Outcome:
    """Compare the roles that are learnt with the assistant's."""
    if entry.value in ("", []):
        return left('earlier answers are learnt too; mark their turns with "train": false in the data')
    learnt = values.names(entry)
    if set(learnt) <= {"assistant", "gpt", "model"}:
        return same("the assistant's turns are learnt")
    return left("the assistant's turns alone are learnt")


def _training_mark(entry: Entry, context: Context) -> Outcome:
    if values.text(entry) in ("weight", "train", "loss_mask", "loss"):
        return same("turns that it marks with 0 or false are not learnt")
    return left("name the mark of a turn train, weight or loss in the data")


def _chat_template(entry: Entry, context: Context) -> Outcome:
    if values.text(entry) == "tokenizer_default":
        return same("the model's own chat template is used")
    return left(OWN_TEMPLATE)


def _held_out(entry: Entry, context: Context) -> Outcome:
    if values.number(entry) == 0.1:
        return same(OTHER_SPLITS)
    return left(OTHER_SPLITS)


_WITH_DATA = needless("goes with the data set")
_TOKENS = leaves("add them to the model's tokenizer, and set resize_embeddings")
DATA_RULES: dict[str, Rule] = {
    "datasets": leaves(SEVERAL),
    "datasets.path": _path,
    "datasets.name": _WITH_DATA,
    "datasets.data_files": _WITH_DATA,
    "datasets.split": _WITH_DATA,
    "datasets.ds_type": _WITH_DATA,
    "datasets.shards": _WITH_DATA,
    "datasets.shards_idx": _WITH_DATA,
    "datasets.preprocess_shards": needless(),
    "datasets.revision": leaves("the newest version of a data set is read"),
    "datasets.trust_remote_code": leaves(NO_CODE),
    "datasets.type": _type,
    "datasets.type.field_instruction": _column("instruction"),
    "datasets.type.field_output": _column("output"),
    "datasets.type.field_input": _column("input"),
    "datasets.type.field_system": _column("system"),
    "datasets.type.system_prompt": leaves(SYSTEM_PROMPT),
    "datasets.type.system_format": leaves("--template puts text around a prompt", "{system}"),
    "datasets.type.format": leaves('--template puts text around a prompt, as in "Q: {prompt} A:"', "{instruction}"),
    "datasets.type.no_input_format": leaves("--template puts text around a prompt", "{instruction}"),
    "datasets.field": _column("text"),
    "datasets.field_messages": _messages,
    "datasets.field_tools": _column("tools"),
    "datasets.field_thinking": leaves(
        "reasoning is read from reasoning_content, thinking or reasoning", "reasoning_content"
    ),
    "datasets.message_property_mappings": _turn_names,
    "datasets.message_field_role": _turn_name("role"),
    "datasets.message_field_content": _turn_name("content"),
    "datasets.message_field_training": _training_mark,
    "datasets.message_field_training_detail": leaves("turns are learnt whole or not at all"),
    "datasets.roles_to_train": _roles,
    "datasets.template_thinking_key": needless("the template's own name for reasoning is found"),
    "datasets.roles": leaves(
        "roles are system, user, assistant and tool, with their usual other names; rename the rest"
    ),
    "datasets.train_on_eos": leaves("each learnt answer is learnt with its end", "turn"),
    "datasets.train_on_eot": leaves("each learnt answer is learnt with its end", "turn"),
    "datasets.chat_template": _chat_template,
    "datasets.chat_template_jinja": leaves(OWN_TEMPLATE),
    "datasets.conversation": leaves(OWN_TEMPLATE),
    "datasets.drop_system_message": leaves("system messages stay; remove them from the data"),
    "pretraining_dataset": _path,
    "pretraining_dataset.path": _path,
    "pretraining_dataset.name": _WITH_DATA,
    "pretraining_dataset.split": _WITH_DATA,
    "pretraining_dataset.data_files": _WITH_DATA,
    "pretraining_dataset.type": needless("plain text, learnt whole"),
    "pretraining_dataset.text_column": _column("text"),
    "train_on_inputs": leaves(ONLY_ANSWERS),
    "chat_template": _chat_template,
    "chat_template_jinja": leaves(OWN_TEMPLATE),
    "chat_template_kwargs": leaves("a chat_template_kwargs column of the data gives them to the template"),
    "default_system_message": leaves(SYSTEM_PROMPT),
    "eot_tokens": leaves("an answer ends with the token that the chat template writes, or the tokenizer's own"),
    "special_tokens": leaves("they are those of the model's tokenizer; a pad token is never needed"),
    "tokens": _TOKENS,
    "added_tokens_overrides": _TOKENS,
    "test_datasets": leaves(ONE_FOLDER),
    "test_datasets.*": leaves(ONE_FOLDER),
    "push_dataset_to_hub": leaves("data stays where it is"),
    "curriculum_sampling": leaves("the order is random"),
    "val_set_size": _held_out,
}
