"""Documents cut into passages that know their places."""

from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunewise.core.errors import SettingError
from tunewise.retrieval import chunks
from tunewise.retrieval.chunks import MAX_HEADING, _headings, _pieces, split, split_all
from tunewise.retrieval.passage import Document
from tunewise.testing import tiny_base

TOKENIZER = tiny_base("llama").tokenizer.backend_tokenizer
SENTENCE = "The cat sat on a mat and the dog ran to town. "


def tokens(text):
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def cut(text, size=32, overlap=0):
    return split(Document("d", text), TOKENIZER, size, overlap)


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
lines = st.lists(st.one_of(st.sampled_from(["the cat sat.", "a dog ran to town!", "🚲", "é"]), words), max_size=12).map(
    " ".join
)
blocks = st.one_of(
    lines,
    st.tuples(st.integers(1, 6), words).map(lambda pair: "#" * pair[0] + " " + pair[1]),
    st.sampled_from(
        ["", "```", "~~~", "    code", "- item\n- item", "> quote", "| a | b |\n|---|---|\n| c | d |", "---"]
    ),
    st.just(SENTENCE * 3),
)
texts = st.lists(st.tuples(blocks, st.sampled_from(["\n", "\n\n", "\n \n", "\n\n\n"])), max_size=12).map(
    lambda pairs: "".join(block + end for block, end in pairs)
)


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(16, 64), st.integers(0, 7), st.sampled_from([64, 1]))
@example("# A\n\n## B\n\ntext\n\n# C", 16, 0, 64)
@example(" \n# A\n \n", 16, 0, 64)
@example("x" * 500, 16, 7, 64)
@example("🚲" * 100, 16, 7, 64)
@example("#" * 6 + " " + "long heading " * 14 + "\ntext", 16, 4, 64)
def test_passages_are_spans_in_order_that_hold_everything(text, size, overlap, piece):
    with patch.object(chunks, "_PIECE", piece):
        passages = cut(text, size, overlap)
        assert passages == cut(text, size, overlap)
    covered = set()
    for heading in _headings(text):
        covered.update(range(heading.start, heading.end))
    only_headings = set(covered)
    for passage in passages:
        span = range(passage.start, passage.end)
        assert passage.document == "d" and passage.text == text[passage.start : passage.end]
        assert passage.text.strip() and tokens(passage.text) <= size
        assert any(place not in only_headings and not text[place].isspace() for place in span)
        covered.update(span)
    assert all(place in covered or c.isspace() or c in chunks._MARKS for place, c in enumerate(text))
    for one, two in pairwise(passages):
        assert one.start < two.start and one.end < two.end
        assert overlap or one.end <= two.start
        assert tokens(text[two.start : one.end].strip()) <= overlap


@given(texts, st.integers(2, 200))
def test_pieces_make_up_the_text(text, size):
    pieces = list(_pieces(text, [heading.start for heading in _headings(text)], size))
    assert "".join(piece for _, piece in pieces) == text
    assert all(text[place : place + len(piece)] == piece and len(piece) <= size for place, piece in pieces)


def test_a_long_text_is_cut_at_its_best_border():
    text = SENTENCE * 30 + "\n# Part\n" + SENTENCE * 20 + "\n\n" + SENTENCE * 10 + "\n" + SENTENCE * 40 + "x" * 3000
    pieces = [piece for _, piece in _pieces(text, [text.index("# Part")], 1600)]
    assert [piece[:6] for piece in pieces[:3]] == ["The ca", "# Part", "\nThe c"]
    assert pieces[2].endswith("town.") and pieces[3].startswith(" The cat") and len(pieces[-2]) == 1600


def test_places_are_characters_not_bytes():
    text = "é🚲ß. " * 40
    assert len(text.encode()) > len(text)
    passages = cut(text, 32)
    assert len(passages) > 3 and all(text[p.start : p.end] == p.text for p in passages)


def test_headings_make_the_path_and_not_the_text():
    text = (
        "intro\n\n# Manual\n\n## Brakes\n\nThey squeak.\n\n## Bell #\n\nIt rings.\n\n# Index\n\n### Far below\nlast\n"
    )
    assert [(p.heading, p.text) for p in cut(text, 16)] == [
        ("", "intro"),
        ("Manual > Brakes", "They squeak."),
        ("Manual > Bell", "It rings."),
        ("Index > Far below", "last"),
    ]


def test_small_sections_share_a_passage():
    (passage,) = cut("# A\n\none\n\n## B\n\ntwo\n", 64)
    assert passage.text == "one\n\n## B\n\ntwo" and passage.heading == "A" and passage.id == "d:5-19"


@pytest.mark.parametrize(
    "text, paths",
    [
        ("# One\n```\n# no\n```\n## Two\n", ["One", "One > Two"]),
        ("````\n# no\n```\n# no\n````\n# Yes", ["Yes"]),
        ("~~~ `x`\n# no\n```\n~~~\n# Yes", ["Yes"]),
        ("```x`\n# Yes", ["Yes"]),
        ("```\n# no, to the end", []),
        ("    # no\n   # Yes\n\t# no", ["Yes"]),
        ("#no\n#\n# \n####### no\n# Yes ##", ["Yes"]),
        ("# " + "x" * MAX_HEADING, []),
    ],
)
def test_which_lines_are_headings(text, paths):
    assert [heading.path for heading in _headings(text)] == paths


@pytest.mark.parametrize("text", ["", " \n\t\n", "# Alone", "# A\n\n## B\n", "\u2028", "```", "# A\n---\n* * *"])
def test_what_has_no_text_has_no_passages(text):
    assert cut(text) == []


def test_sentences_stay_whole():
    text = SENTENCE * 20
    passages = cut(text, 64, 24)
    assert len(passages) > 3
    for passage in passages:
        assert passage.text.endswith(".") and passage.text.startswith("The cat")
    for one, two in pairwise(passages):
        assert text[two.start : one.end].strip() == SENTENCE.strip()  # one whole sentence is repeated


def test_indented_code_keeps_its_indent():
    text = "# A\n\n    def f():\n        return 1\n"
    assert cut(text, 64)[0].text == "    def f():\n        return 1"


@pytest.mark.parametrize("size, overlap", [(15, 0), (0, 0), (-1, 0), (16, 8), (256, 128), (256, -1)])
def test_settings_out_of_range_are_refused(size, overlap):
    with pytest.raises(SettingError, match="tokens"):
        cut("text", size, overlap)


def test_a_tokenizer_that_truncates_or_pads_still_counts():
    tokenizer = type(TOKENIZER).from_str(TOKENIZER.to_str())
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=40)
    document = Document("d", SENTENCE * 10)
    assert split(document, tokenizer, 32, 0) == split(document, TOKENIZER, 32, 0)
    assert tokenizer.truncation and tokenizer.padding  # it is left as it was


def test_many_documents_in_order_with_progress():
    documents = [Document(name, SENTENCE * count) for name, count in (("b", 3), ("a", 1), ("none", 0))]
    seen = []
    passages = split_all(documents, TOKENIZER, 16, 0, lambda *progress: seen.append(progress))
    assert passages == [passage for document in documents for passage in split(document, TOKENIZER, 16, 0)]
    assert seen == [("cutting", 1, 3), ("cutting", 2, 3), ("cutting", 3, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 300_000,
        "the cat sat on a mat\n" * 15_000 + "\n\n\nend",
        "word " * 60_000,
        "a, " * 100_000 + "\n# end",
        "[" * 100_000 + "\n# end",
        "> " * 50_000 + "\n# end",
        "*a " * 60_000 + "\n# end",
    ],
    ids=["one word", "one paragraph", "one sentence", "heading at the end", "brackets", "quotes", "stars"],
)
def test_long_texts_take_no_longer_than_their_length(text):
    assert cut(text, 256, 32)
