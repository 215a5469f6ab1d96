"""Made-up people for prompts: nobody real, any number, the same for the same seed."""

from __future__ import annotations

import random

Distribution = dict[str, dict[str, float]]

JOBS: Distribution = {
    "job": {
        "nurse": 6,
        "carpenter": 4,
        "teacher": 7,
        "baker": 3,
        "software engineer": 5,
        "bus driver": 4,
        "accountant": 5,
        "farmer": 3,
        "librarian": 2,
        "electrician": 4,
        "shop owner": 4,
        "physicist": 1,
        "actor": 1,
        "retired clerk": 5,
        "student of economics": 3,
    }
}
AGES = ("in the early twenties", "about thirty", "in the forties", "nearly sixty", "over seventy")
PLACES = (
    "a port town in the north",
    "a village between two lakes",
    "the outskirts of a large city",
    "an island with one road",
    "a valley known for its orchards",
    "a mining town that has seen better days",
)
CARE = (
    "reads every rule twice before the first move",
    "trusts a first impression and seldom goes back on it",
    "keeps lists of what went well and what did not",
    "asks what the others will do before choosing anything",
    "likes to be different from the rest of the table",
    "would rather be roughly right than exactly late",
)
PLAY = (
    "has played cards every week for years and remembers who bluffs",
    "finds games a waste of time, but hates to lose them",
    "once won a small lottery and has believed in round numbers since",
    "learnt chess from a grandmother who never let anybody win",
    "plays only with the family, and always keeps the score",
)
SPEECH = (
    "speaks in short sentences and gives numbers without comment",
    "explains every step as if somebody had to write it down",
    "makes a joke first and an answer afterwards",
    "is polite, a little slow, and very exact",
)


def persona(rng: random.Random, distribution: Distribution = JOBS) -> str:
    """About 600 characters on one person, whose traits follow the distribution's weights."""
    traits = {
        name: rng.choices(list(weights), list(weights.values()))[0]
        for name, weights in distribution.items()
    }
    said = " and ".join(f"{value}" for value in traits.values())
    first, second = rng.sample(CARE, 2)
    savings = rng.randrange(1, 60) * 500
    return (
        f"You are a {said}, {rng.choice(AGES)}, from {rng.choice(PLACES)}. You are somebody who "
        f"{first}, and who {second}. At home there are {rng.randrange(1, 7)} people and "
        f"{rng.randrange(0, 4)} animals, and about {savings} put aside for bad years. In company "
        f"you are somebody who {rng.choice(PLAY)}. Whoever talks with you notices soon that you "
        f"are one who {rng.choice(SPEECH)}. What you want most at the moment is to "
        f"{rng.choice(('sleep well', 'finish the roof', 'see the sea', 'pass an exam'))} before "
        f"the {rng.choice(('winter', 'summer', 'autumn'))}."
    )


def personas(count: int, seed: int, distribution: Distribution = JOBS) -> list[str]:
    rng = random.Random(seed)
    return [persona(rng, distribution) for _ in range(count)]
