"""Long-context tasks that are generated, after RULER (Hsieh et al., 2024): nothing to download.

    sample = make("niah_multikey_1", random.Random(0), 1024, count_tokens)

`count_tokens` counts a text's tokens; the haystack grows until the prompt has about as many as were
asked for, and never more.
"""

from __future__ import annotations

import itertools
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from experiments.demo_model import words

Count = Callable[[str], int]


@dataclass(frozen=True)
class Sample:
    """expected: strings that the answer must hold, in any order."""

    prompt: str
    expected: list[str]
    max_tokens: int


@dataclass(frozen=True)
class Needles:
    """keys: how many needles have a key of their own; values: how many each key has.

    asked: how many keys are asked for. hay: sentences, noise, or further needles. kinds of keys and
    values: name, number or uuid.
    """

    keys: int = 1
    values: int = 1
    asked: int = 1
    hay: str = "sentences"
    key: str = "name"
    value: str = "number"


NEEDLES = {
    "niah_single_1": Needles(hay="noise"),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuid"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles(hay="needles"),
    "niah_multikey_3": Needles(hay="needles", key="uuid", value="uuid"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, asked=4),
}
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HOPS, COMMON, ZIPF = 4, 10, 2.0


def make(task: str, rng: random.Random, tokens: int, count: Count) -> Sample:
    """Raises ValueError for an unknown task, or when the least prompt has more than `tokens`."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; one of {', '.join(TASKS)}")
    seed = rng.getrandbits(64)

    def grown(size: int) -> Sample:
        return TASKS[task](random.Random(seed), size)

    low, high = 0, 1
    if count(grown(low).prompt) > tokens:
        raise ValueError(f"{task} does not fit into {tokens} tokens")
    while count(grown(high).prompt) <= tokens:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if count(grown(middle).prompt) <= tokens:
            low = middle
        else:
            high = middle
    return grown(low)


def share_found(answer: str, expected: list[str]) -> float:
    return sum(e.lower() in answer.lower() for e in expected) / len(expected)


# ---- needles ------------------------------------------------------------------------------------


def _needles(how: Needles, rng: random.Random, size: int) -> Sample:
    hidden = how.keys + (size if how.hay == "needles" else 0)
    keys = _distinct(rng, how.key, hidden)
    told = {key: _distinct(rng, how.value, how.values) for key in keys}
    needles = [f"The code of {key} is {value}." for key in keys for value in told[key]]
    hay: list[str] = []
    if how.hay != "needles":
        hay = [NOISE if how.hay == "noise" else words.filler_sentence(rng) for _ in range(size)]
    asked = keys[: how.asked]
    for needle in needles:
        hay.insert(rng.randint(0, len(hay)), needle)
    if how.asked == 1 and how.values == 1:
        question = f"What is the code of {asked[0]}?"
    else:
        question = f"What are all the codes of {', '.join(asked)}?"
    expected = [value for key in asked for value in told[key]]
    length = 44 if how.value == "uuid" else 12
    return Sample(f"{' '.join(hay)} {question}", expected, length * len(expected))


def _distinct(rng: random.Random, kind: str, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        if kind == "uuid":
            made = str(uuid.UUID(int=rng.getrandbits(128)))
        elif kind == "number":
            made = words.digits(rng, 4)
        else:
            made = rng.choice(words.NAMES)
            if len(found) >= len(words.NAMES) // 2:
                made = f"{words.invented_word(rng)}-{made}"
        found[made] = None
    return list(found)


# ---- tracking and counting ----------------------------------------------------------------------


def _variables(rng: random.Random, size: int) -> Sample:
    """Chains of assignments; which variables have the value that one of them begins with?"""
    names = iter(_words(rng, (HOPS + 1) * 2, 5, string.ascii_uppercase))
    chains = []
    values = _distinct(rng, "number", 2)
    for value in values:
        chain = [next(names) for _ in range(HOPS + 1)]
        lines = [f"VAR {chain[0]} = {value}"]
        lines += [f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(chain)]
        chains.append((chain, lines))
    hay = [NOISE] * size
    for _, lines in chains:
        places = sorted(rng.randint(0, len(hay)) for _ in lines)
        for shift, (place, line) in enumerate(zip(places, lines, strict=True)):
            hay.insert(place + shift, f"{line}.")
    question = f"Which variables have the value {values[0]}? Name all of them."
    return Sample(f"{' '.join(hay)} {question}", chains[0][0], 60)


def _common_words(rng: random.Random, size: int) -> Sample:
    """Which ten words come ten times as often as the others?"""
    made = _words(rng, COMMON + 3 + size, 6, string.ascii_lowercase)
    common, others = made[:COMMON], made[COMMON:]
    shown = common * 30 + others * 3
    rng.shuffle(shown)
    listed = " ".join(f"{i}. {w}" for i, w in enumerate(shown, 1))
    question = f"Which {COMMON} words of this list are the most common?"
    return Sample(f"{listed} {question}", common, 120)


def _frequent_words(rng: random.Random, size: int) -> Sample:
    """The three most frequent words, of which the k-th comes k ** -2 times as often as the first.

    The most frequent of all is a row of dots, and does not count.
    """
    made = _words(rng, 50, 5, string.ascii_lowercase)
    scale = 20 + 10 * size
    ranked = ["...", *made]
    shown = [w for k, w in enumerate(ranked, 1) for _ in range(max(1, int(scale / k**ZIPF)))]
    rng.shuffle(shown)
    question = "Dots aside, which three words come most often in this text?"
    return Sample(f"{' '.join(shown)} {question}", made[:3], 50)


def _words(rng: random.Random, count: int, length: int, letters: str) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(letters) for _ in range(length))] = None
    return list(found)


def _with(how: Needles) -> Callable[[random.Random, int], Sample]:
    return lambda rng, size: _needles(how, rng, size)


TASKS: dict[str, Callable[[random.Random, int], Sample]] = {
    **{name: _with(how) for name, how in NEEDLES.items()},
    "vt": _variables,
    "cwe": _common_words,
    "fwe": _frequent_words,
}
