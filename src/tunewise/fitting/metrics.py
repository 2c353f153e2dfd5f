"""Scores an answer against its references, and computes scores of a whole split.

Every metric of the package lies in [0, 1], 1 being best, and gives the best score over the references. Where each score
is 0 or 1 (`is_proportion`), its mean over a split is a proportion. Scores that count words do so in any script; see
`words`.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tunewise.core.errors import SettingError
from tunewise.core.numbers import final_number
from tunewise.core.plug_ins import plug_ins, refuse_taken
from tunewise.core.progress import Progress, silent
from tunewise.core.text import show
from tunewise.fitting import judge
from tunewise.fitting.structured_answers import NotJsonError, canonical, parse_json, tool_calls
from tunewise.fitting.words import rouge_words, spaced, squad_words


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is a reference, apart from white space around it and the amount of it inside, else 0.

    Case, punctuation, signs and articles count. Composed and decomposed characters are the same text.
    """
    return float(any(_as_typed(prediction) == _as_typed(reference) for reference in references))


def squad_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction has the words of a reference after SQuAD's normalisation, else 0."""
    return float(any(words == wanted for words, wanted in _squad_pairs(prediction, references)))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words over the references, after SQuAD's normalisation."""
    return max(_word_f1(words, wanted) for words, wanted in _squad_pairs(prediction, references))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F measure over the references."""
    return max(float(_rouge().score(reference, prediction)["rougeL"].fmeasure) for reference in references)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """Return the smoothed sentence BLEU / 100; scripts without spaces are read by character."""
    import sacrebleu

    score = sacrebleu.sentence_bleu(spaced(prediction), [spaced(reference) for reference in references]).score
    return min(float(score) / 100, 1.0)  # rounding may leave 1 + 4e-16


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return chrF2 / 100, the F score of character n-grams up to 6, which favours recall."""
    import sacrebleu

    return min(float(sacrebleu.sentence_chrf(prediction, list(references)).score) / 100, 1.0)


def number(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the final number of the prediction equals that of a reference, else 0.

    A reference without a number is compared as `exact_match` does.
    """
    answered = final_number(prediction)
    for reference in references:
        wanted = final_number(reference)
        if wanted is None:
            if exact_match(prediction, (reference,)):
                return 1.0
        elif answered is not None and answered.equals(wanted):
            return 1.0
    return 0.0


def json_valid(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is one JSON value and nothing else, else 0; the references do not matter."""
    return float(_json(prediction) is not None)


def json_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction is JSON of the same value as a reference, else 0; the order of keys does not count."""
    answered = _json(prediction)
    return float(answered is not None and any(answered == _json(reference) for reference in references))


def tool_call_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction makes the calls of a reference, in any order, with equal arguments, else 0.

    Where a reference calls nothing, a prediction that calls nothing is right, whatever it says.
    """
    answered = tool_calls(prediction)
    return float(answered is not None and any(answered == tool_calls(reference) for reference in references))


@dataclass(frozen=True)
class Metric:
    """Holds a score of one answer, called as metric(prediction, references).

    Attributes:
        name: as `--metric` takes it.
        score: the function.
        purpose: what it is for, in a few words.
        source: where it is defined.
        is_proportion: whether each score is 0 or 1; None where that is unknown, as of a user's function.
    """

    name: str
    score: Callable[[str, Sequence[str]], float]
    purpose: str
    source: str
    is_proportion: bool | None

    def __call__(self, prediction: str, references: Sequence[str]) -> float:
        """Return the score of one answer."""
        return self.score(prediction, references)


_SQUAD = "Rajpurkar et al. 2016, SQuAD's official script"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, "answers of which every character counts", "plain equality", True),
        Metric("squad_exact_match", squad_exact_match, "short answers to questions", _SQUAD, True),
        Metric("f1", f1, "answers to questions", _SQUAD, False),
        Metric("rouge_l", rouge_l, "longer texts", "Lin 2004, rouge-score", False),
        Metric("sentence_bleu", sentence_bleu, "translations", "Papineni et al. 2002, sacrebleu", False),
        Metric("chrf", chrf, "translations, by characters", "Popović 2015, sacrebleu", False),
        Metric("number", number, "calculations: the final number", "Cobbe et al. 2021, GSM8K", True),
        Metric("json_valid", json_valid, "whether an answer is JSON", "RFC 8259", True),
        Metric("json_match", json_match, "JSON of the same value", "RFC 8259", True),
        Metric("tool_calls", tool_call_match, "calls of tools", "equality of name and arguments", True),
    )
}


@dataclass(frozen=True)
class Answers:
    """Holds the answers to a split's questions and what they are compared with.

    Attributes:
        predictions: what the model wrote.
        references: the acceptable answers to each question.
        questions: the conversation before each answer, as text.
        opponents: the answers that a judge compares with; None: the first reference of each.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    questions: Sequence[str]
    opponents: Sequence[str] | None = None


def scores(name: str, answers: Answers, progress: Progress = silent) -> tuple[list[float], dict[str, float]]:
    """Return the score of each answer, and further figures of the split: what a judge's replies were worth.

    Raises:
        TunewiseError: the metric is a judge that cannot be asked.
    """
    one_judge = judge.Judge.of(name)
    if one_judge is None:
        metric = find(name)
        return [metric(p, r) for p, r in zip(answers.predictions, answers.references, strict=True)], {}
    opponents = answers.opponents or [references[0] for references in answers.references]
    verdicts = one_judge.scores(answers.questions, answers.predictions, opponents, progress)
    return verdicts.scores, {"unreadable_verdicts": verdicts.unreadable_share}


def check_references(name: str, references: Iterable[str]) -> None:
    """Raise `SettingError` if a reference is not of the metric's kind, so that no answer could ever be right."""
    kinds: dict[str, tuple[Callable[[str], object], str]] = {
        "json_match": (_json, "JSON"),
        "tool_calls": (tool_calls, "text or a tool call that can be read"),
    }
    if name not in kinds:
        return
    read, kind = kinds[name]
    for reference in references:
        if read(reference) is None:
            raise SettingError(f'the answer "{show(reference)}" is not {kind}, as {name} needs; choose another metric')


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus BLEU / 100 of a split; examples may have different numbers of references."""
    import sacrebleu

    most = max(len(row) for row in references)
    # sacrebleu wants the i-th references of all examples, for each i, with None where there are fewer.
    streams: list[Any] = [[spaced(row[i]) if i < len(row) else None for row in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu([spaced(prediction) for prediction in predictions], streams).score) / 100


def macro_f1(predictions: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> float:
    """Return the F1 of each label, averaged over the labels."""
    from sklearn.metrics import f1_score

    return float(f1_score(answers, predictions, labels=list(labels), average="macro", zero_division=0))


def all_metrics() -> dict[str, Metric]:
    """Return every metric by name: tunewise's own, and those that entry points in `tunewise.metrics` add.

    Raises:
        SettingError: a plug-in cannot be imported, or has the name of another metric.
    """
    further = plug_ins("tunewise.metrics", Metric)
    refuse_taken([metric.name for metric in further], "the metric", {*METRICS, judge.METRIC})
    return METRICS | {metric.name: metric for metric in further}


def find(name: str) -> Metric:
    """Return the metric of this name, or the user's own `path.py:function`, called as f(prediction, references).

    Raises:
        SettingError: there is no such metric, file or function, or the file cannot be run.
    """
    if name in METRICS:
        return METRICS[name]
    if name in (metrics := all_metrics()):
        return _guarded(metrics[name])
    if name == judge.METRIC:
        raise SettingError(
            "a judge is a model at an endpoint: eval, compare and interpolate take --judge-url and --judge-model"
        )
    if judge.Judge.of(name) is not None:
        raise SettingError("a judge compares the answers of a whole split, in eval, compare and interpolate only")
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise SettingError(
            f'there is no metric "{name}"; there are {", ".join([*metrics, judge.METRIC])}, or your own '
            "path.py:function"
        )
    if not Path(path).is_file():
        raise SettingError(f"{path}: there is no such file for the metric; give path.py:function")
    return Metric(name, _user_metric(str(Path(path).resolve()), function), "your own", path, None)


@cache
def _user_metric(path: str, function: str) -> Callable[[str, Sequence[str]], float]:
    spec = importlib.util.spec_from_file_location("tunewise_user_metric", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(f"{path}: the metric's file cannot be run: {error!r}") from error
    metric: Any = getattr(module, function, None)
    if not callable(metric):
        raise SettingError(f'{path}: has no function "{function}"; define {function}(prediction, references)')
    return _checked(f"{path}:{function}", metric)


@cache
def _guarded(metric: Metric) -> Metric:
    """Return a plug-in's metric whose faults become sentences."""
    return replace(metric, score=_checked(f"the metric {metric.name}", metric.score))


def _checked(name: str, metric: Callable[[str, Sequence[str]], Any]) -> Callable[[str, Sequence[str]], float]:
    """Return a function of another's code that returns a finite number or raises `SettingError`."""

    def checked(prediction: str, references: Sequence[str]) -> float:
        try:
            value = float(metric(prediction, list(references)))
        except Exception as error:
            raise SettingError(f"{name} failed on {prediction[:80]!r}: {error!r}") from error
        if not math.isfinite(value):
            raise SettingError(f"{name} returned {value} for {prediction[:80]!r}; return a finite number")
        return value

    return checked


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class WordTokenizer(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return rouge_words(text)

    return RougeScorer(["rougeL"], tokenizer=WordTokenizer())


def _as_typed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _squad_pairs(prediction: str, references: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words of the prediction and of each reference, normalised as far as it leaves the reference any.

    The choice "A" would be removed as an article, and "+" as punctuation.
    """
    for reference in references:
        if wanted := squad_words(reference):
            yield squad_words(prediction), wanted
        elif wanted := squad_words(reference, without_articles=False):
            yield squad_words(prediction, without_articles=False), wanted
        else:
            yield prediction.split(), reference.split()


def _word_f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))


def _json(text: str) -> object:
    """Return the canonical form of JSON, or None where the text is not JSON."""
    try:
        return canonical(parse_json(text))
    except NotJsonError:
        return None
