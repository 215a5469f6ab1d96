"""LongBench's scores of one prediction against one gold answer, each from 0 to 1."""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

PUNCTUATION = str.maketrans("", "", string.punctuation)


def qa_f1(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """F1 over the words they share, without case, punctuation and articles (as SQuAD)."""
    said, true = _words(prediction), _words(gold)
    same = (Counter(said) & Counter(true)).total()
    return 2 * same / (len(said) + len(true)) if same else 0.0


def _words(text: str) -> list[str]:
    bare = text.lower().translate(PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def rouge(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L's F1 (Lin, 2004) by rouge-score."""
    return float(_scorer().score(gold, prediction)["rougeL"].fmeasure)


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"])


def classification(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """One over how many classes were named, if the gold one was; parts of its name do not count."""
    named = [c for c in classes if c in prediction and (c == gold or c not in gold)]
    return 1 / len(named) if gold in named else 0.0


def retrieval(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers said that are the gold "Paragraph N"'s."""
    found = re.search(r"Paragraph (\d+)", gold)
    return count(prediction, found.group(1) if found else gold)


def count(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers said that are the gold one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(gold)) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Ratcliff and Obershelp's similarity of the first line of code, to whole percents."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((t for t in lines if not any(mark in t for mark in ("`", "#", "//"))), "")
    return round(difflib.SequenceMatcher(None, line, gold, autojunk=False).ratio(), 2)


METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "qa_f1": qa_f1,
    "rouge": rouge,
    "classification": classification,
    "retrieval": retrieval,
    "count": count,
    "code_similarity": code_similarity,
}


def score(
    metric: str, prediction: str, answers: Sequence[str], classes: Sequence[str], first_line: bool
) -> float:
    """The best over the gold answers."""
    if first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max((METRICS[metric](prediction, gold, classes or ()) for gold in answers), default=0.0)
