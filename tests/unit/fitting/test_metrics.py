"""Scores of an answer, in every script."""

import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tunewise.core.errors import SettingError
from tunewise.fitting import metrics
from tunewise.fitting.metrics import METRICS, find
from tunewise.fitting.words import rouge_words, spaced, squad_words

TEXTS = {
    "Russian": "Привет, мир",
    "Chinese": "今天天气很好。",
    "Japanese": "カタカナとひらがな",
    "Arabic": "مرحبا بالعالم",
    "Hindi": "नमस्ते दुनिया",
    "Korean": "안녕하세요 세계",
    "Thai": "สวัสดีชาวโลก",
    "Khmer": "សួស្តី​ពិភពលោក",
    "Myanmar": "မင်္ဂလာပါ",
    "Persian": "می‌خواهم",
    "Greek": "ΟΔΟΣ και οδός",
    "Hebrew": "שלום עולם",
    "emoji": "👍🏽",
    "family": "👨‍👩‍👧",
    "plus": "+",
    "Latin": "été à Zürich",
    "English": "The cat sat on the mat.",
    "number": "-5",
}
IN_WORDS = ["exact_match", "squad_exact_match", "f1", "rouge_l", "sentence_bleu", "chrf"]


@pytest.mark.parametrize("name", IN_WORDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_identical_text_scores_1(name, text):
    assert find(name)(text, [text]) == 1.0


@pytest.mark.parametrize("name", IN_WORDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_of_another_script_scores_0(name, text):
    other = "Bloom" if not text.isascii() else "Привет"
    assert find(name)(other, [text]) == 0.0


PAIRS = [
    ("exact_match", "-5", "5", 0),
    ("exact_match", "3.5", "35", 0),
    ("exact_match", "x > 1", "x < 1", 0),
    ("exact_match", "x == 1", "x != 1", 0),
    ("exact_match", "C++", "C", 0),
    ("exact_match", "C#", "C", 0),
    ("exact_match", "", "A", 0),
    ("exact_match", "the", "A", 0),
    ("exact_match", "paris", "Paris", 0),
    ("exact_match", "Paris.", "Paris", 0),
    ("exact_match", " two\t words\n", "two words", 1),
    ("exact_match", "e\u0301te\u0301", "été", 1),
    ("exact_match", "5²", "52", 0),
    ("squad_exact_match", "The Paris.", "paris", 1),
    ("squad_exact_match", "Paris。", "Paris", 1),
    ("squad_exact_match", "«Paris»", "Paris", 1),
    ("squad_exact_match", "“Paris”", "Paris", 1),
    ("squad_exact_match", "ＰＡＲＩＳ", "Paris", 1),
    ("squad_exact_match", "-5", "5", 0),
    ("squad_exact_match", "−5", "-5", 1),
    ("squad_exact_match", "3.5", "35", 0),
    ("squad_exact_match", ".5", "5", 0),
    ("squad_exact_match", "5²", "52", 0),
    ("squad_exact_match", "1,000", "1000", 1),
    ("squad_exact_match", "", "A", 0),
    ("squad_exact_match", "the", "A", 0),
    ("squad_exact_match", "B", "A", 0),
    ("squad_exact_match", "A.", "A", 1),
    ("squad_exact_match", "", "+", 0),
    ("squad_exact_match", "-", "+", 0),
    ("f1", "", "A", 0),
    ("f1", "the", "A", 0),
    ("f1", "B", "A", 0),
    ("f1", "A", "A", 1),
    ("f1", "-5", "5", 0),
    ("f1", "", "the", 0),
    ("f1", "-", "+", 0),
    ("f1", "今天天气好", "今天天气很好", 10 / 11),
    ("f1", "a red cat", "the red dog", 1 / 2),
    ("rouge_l", "今天天气好", "今天天气很好", 10 / 11),
    ("rouge_l", "tt r n", "été à Zürich", 0),
    ("rouge_l", "नमस्त दनय", "नमस्ते दुनिया", 0),
    ("rouge_l", "great 👎", "great 👍", 1 / 2),
    ("rouge_l", "+", "-", 0),
    ("rouge_l", "STRASSE", "Straße", 1),
    ("rouge_l", "ﾊﾛｰ", "ハロー", 1),
    ("number", "So 20 - 2 = 18.", "#### 18", 1),
    ("number", "#### 18", "#### 18.0", 1),
    ("number", "The answer is 1,234.50.", "1234.5", 1),
    ("number", "-5", "5", 0),
    ("number", "−5", "-5", 1),
    ("number", "3.5", "35", 0),
    ("number", "6/8", "3/4", 1),
    ("number", "", "0", 0),
    ("number", "none", "#### 0", 0),
    ("number", "none", "none", 1),
    ("json_valid", '{"a": [1, true]}', "", 1),
    ("json_valid", '{"a": 1', "", 0),
    ("json_valid", "{'a': 1}", "", 0),
    ("json_valid", "Here: {}", "", 0),
    ("json_valid", "NaN", "", 0),
    ("json_valid", "", "", 0),
    ("json_match", '{"b": 2.0, "a": [1]}', '{"a":[1],"b":2}', 1),
    ("json_match", '{"a": [2, 1]}', '{"a": [1, 2]}', 0),
    ("json_match", '{"a": true}', '{"a": 1}', 0),
    ("json_match", '{"a": "1"}', '{"a": 1}', 0),
    ("json_match", "{}", "[]", 0),
    ("json_match", "no", "no", 0),
    ("json_match", "1e400", "1e401", 0),
]


@pytest.mark.parametrize(("name", "prediction", "reference", "score"), PAIRS)
def test_pairs(name, prediction, reference, score):
    assert find(name)(prediction, [reference]) == pytest.approx(score, abs=1e-12)


def test_the_best_reference_counts():
    for name in ("exact_match", "squad_exact_match", "f1", "rouge_l", "number", "json_match", "tool_calls"):
        assert find(name)("5", ["6", "5"]) == 1.0 and find(name)("5", ["5", "6"]) == 1.0


@given(st.text(st.sampled_from(string.printable)), st.text(st.sampled_from(string.printable)))
def test_rouge_of_ascii_is_rouge_scores_own(one, other):
    if re.search("[A-Za-z0-9]", one + other):
        expected = RougeScorer(["rougeL"]).score(other, one)["rougeL"].fmeasure
        assert find("rouge_l")(one, [other]) == expected


_WORDS = st.lists(
    st.sampled_from(
        ["the", "a", "an", "cat", "cats", "cat's", "U.S.", "mother-in-law", "1999,", "(two)", "18", "&", "ran;", "A"]
    )
)


@given(_WORDS, _WORDS)
def test_f1_of_words_is_squads(one, other):
    prediction, reference = " ".join(one), " ".join(other)
    if _official(reference):
        common = (Counter(_official(prediction)) & Counter(_official(reference))).total()
        expected = 2 * common / (len(_official(prediction)) + len(_official(reference)))
        assert find("f1")(prediction, [reference]) == pytest.approx(expected, abs=1e-12)
        assert find("squad_exact_match")(prediction, [reference]) == (_official(prediction) == _official(reference))


def _official(text):
    """The normalisation of SQuAD's evaluate-v1.1.py."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


@given(st.text(), st.text())
def test_scores_lie_between_0_and_1_and_proportions_are_0_or_1(one, other):
    for metric in METRICS.values():
        score = metric(one, [other])
        assert 0 <= score <= 1
        assert not metric.is_proportion or score in (0, 1), metric.name


def test_words():
    assert rouge_words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert rouge_words("第3章 ABC") == ["第", "3", "章", "abc"]
    assert rouge_words("น้ำ 12") == ["น้ํ", "า", "12"]  # SARA AM is a mark and a letter
    assert rouge_words("می‌خواهم") == ["میخواهم"]
    assert rouge_words("+-") == ["+", "-"] and rouge_words("a+b") == ["a", "b"]
    assert squad_words("It is -3.5, not 3.5. U.S.-led") == ["it", "is", "-3.5", "not", "3.5", "usled"]
    assert spaced("今天 is fine") == " 今 天  is fine" and spaced("été") == "été"


def test_bleu_reads_chinese_by_character_and_english_as_before():
    import sacrebleu

    assert find("sentence_bleu")("今天天气很好", ["今天天气真好"]) == pytest.approx(
        sacrebleu.sentence_bleu("今天天气很好", ["今天天气真好"], tokenize="zh").score / 100
    )
    one, other = "The cat, it sat.", "The cat sat."
    assert find("sentence_bleu")(one, [other]) == sacrebleu.sentence_bleu(one, [other]).score / 100
    assert metrics.corpus_bleu(["今天天气很好"], [["今天天气很好"]]) == pytest.approx(1)


def test_the_options_name_all_metrics():
    from tunewise.cli.options import _OPTIONS

    assert set(re.findall(r"\w+", _OPTIONS["metric"].help)) >= {*METRICS, "judge"}
    with pytest.raises(SettingError, match=r"tool_calls, judge, or your own"):
        find("no_such")


def test_the_documentation_lists_all_metrics():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
    for metric in METRICS.values():
        values = "0 or 1" if metric.is_proportion else "0 to 1"
        assert f"| `{metric.name}` | {metric.purpose} | {values} | {metric.source} |" in page


def test_references_of_another_kind_are_refused():
    metrics.check_references("json_match", ["{}", "1"])
    metrics.check_references("tool_calls", ["hello", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'])
    metrics.check_references("rouge_l", ["{"])
    with pytest.raises(SettingError, match=r'the answer "\{" is not JSON, as json_match needs'):
        metrics.check_references("json_match", ["{}", "{"])
    with pytest.raises(SettingError, match="a tool call that can be read"):
        metrics.check_references("tool_calls", ["<tool_call>{</tool_call>"])
