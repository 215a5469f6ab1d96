"""Made-up documents of any length, with facts to ask for: the demo model can answer about them."""

from __future__ import annotations

import random

COLOURS = ("amber", "blue", "dark", "gray", "green", "lucky", "old", "quiet", "red", "swift")
ANIMALS = ("bear", "crow", "deer", "fox", "hawk", "lion", "otter", "owl", "seal", "wolf")
CITIES = ("Oslo", "Paris", "Rome", "Cairo", "Lima", "Quito", "Delhi", "Dublin")


def names(rng: random.Random, count: int) -> list[str]:
    """Different names; at most a hundred."""
    return rng.sample([f"{colour}-{animal}" for colour in COLOURS for animal in ANIMALS], count)


def facts(rng: random.Random, count: int) -> dict[str, str]:
    """Codes by name."""
    return {name: str(rng.randrange(1000, 10000)) for name in names(rng, count)}


def document(rng: random.Random, sentences: int, told: dict[str, str] | None = None) -> str:
    """Sentences (about ten tokens each) in random order, among them what is to be told."""
    said = [f"The code of {name} is {code}." for name, code in (told or {}).items()]
    while len(said) < sentences:
        name = f"{rng.choice(COLOURS)}-{rng.choice(ANIMALS)}"
        said.append(
            rng.choice(
                (
                    f"The city of {name} is {rng.choice(CITIES)}.",
                    f"The color of {name} is {rng.choice(('gray', 'white', 'black', 'brown'))}.",
                    f"The room of {name} is {rng.randrange(100, 1000)}.",
                )
            )
        )
    rng.shuffle(said)
    return " ".join(said)
