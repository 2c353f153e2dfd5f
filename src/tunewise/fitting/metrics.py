"""Scores an answer against its references, each metric in [0, 1], and computes scores of a whole split.

Exact match and token F1 follow SQuAD's official script (Rajpurkar et al. 2016): lower case, no punctuation or
articles. ROUGE-L is rouge-score's F measure, BLEU sacrebleu's.
"""

from __future__ import annotations

import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunewise.core.errors import SettingError

Metric = Callable[[str, Sequence[str]], float]


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 if the prediction equals a reference after SQuAD's normalisation, else 0."""
    return float(any(_normalise(prediction) == _normalise(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best token F1 over the references."""
    return max(_token_f1(_normalise(prediction).split(), _normalise(reference).split()) for reference in references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F measure over the references."""
    return max(float(_rouge().score(reference, prediction)["rougeL"].fmeasure) for reference in references)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """Return the smoothed sentence BLEU / 100."""
    import sacrebleu

    return float(sacrebleu.sentence_bleu(prediction, list(references)).score) / 100


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "sentence_bleu": sentence_bleu,
}


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus BLEU / 100 of a split; examples may have different numbers of references."""
    import sacrebleu

    most = max(len(row) for row in references)
    # sacrebleu wants the i-th references of all examples, for each i, with None where there are fewer.
    streams: list[Any] = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(predictions), streams).score) / 100


def macro_f1(predictions: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> float:
    """Return the F1 of each label, averaged over the labels."""
    from sklearn.metrics import f1_score

    return float(f1_score(answers, predictions, labels=list(labels), average="macro", zero_division=0))


def find(name: str) -> Metric:
    """Return the metric of this name, or the user's own `path.py:function`, called as f(prediction, references).

    Raises:
        SettingError: there is no such metric, file or function, or the file cannot be run.
    """
    if name in METRICS:
        return METRICS[name]
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise SettingError(f'there is no metric "{name}"; there are {", ".join(METRICS)}, or your own path.py:function')
    if not Path(path).is_file():
        raise SettingError(f"{path}: there is no such file for the metric; give path.py:function")
    return _user_metric(str(Path(path).resolve()), function)


@cache
def _user_metric(path: str, function: str) -> Metric:
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

    def checked(prediction: str, references: Sequence[str]) -> float:
        try:
            value = float(metric(prediction, list(references)))
        except Exception as error:
            raise SettingError(f"{path}:{function} failed on {prediction[:80]!r}: {error!r}") from error
        if not math.isfinite(value):
            raise SettingError(f"{path}:{function} returned {value} for {prediction[:80]!r}; return a finite number")
        return value

    return checked


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def _normalise(text: str) -> str:
    """Return text in lower case, without punctuation, articles or extra white space."""
    without_punctuation = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


def _token_f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference))
