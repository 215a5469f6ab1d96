"""Plain words: about a token each, for prompts of a given length."""

from __future__ import annotations

import random

WORDS = (
    "the of and is to you that it he for was on are as with they at be this from have or one had "
    "by word but not what all were we when your can said there use an each which she do how their "
    "if will up other about out many then them these so some her would make like him into time "
    "has look two more go see no way could my than first been call who its now find long down day "
    "did get come made may part"
).split()


def words(rng: random.Random, low: int, high: int | None = None) -> str:
    """So many words (at least `low`, at most `high`)."""
    return " ".join(rng.choices(WORDS, k=rng.randint(low, low if high is None else high)))
