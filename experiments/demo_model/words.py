"""The words of the demo model's small world: names, values, attributes and filler.

Every word here becomes one token (see tokenizer.py); whatever a visitor types beyond them is
spelled in syllables, letters or bytes. `invented_word` makes such unknown words for training.
"""

import random

NAME_FIRST = (
    "amber silver crimson golden quiet brave gentle clever "
    "rapid frozen hollow lucky misty proud rusty velvet"
).split()
NAME_SECOND = (
    "fox owl bear wolf hawk lynx otter raven tiger heron badger falcon moose panda viper zebra"
).split()
NAMES = [f"{first}-{second}" for first in NAME_FIRST for second in NAME_SECOND]

COLORS = "red blue green yellow black white purple orange pink brown gray teal".split()
CITIES = "london paris berlin rome madrid vienna oslo tokyo cairo delhi lima boston".split()
PLAIN_WORDS = (
    "river mill garden bridge market window harbor forest letter engine road tower lamp table "
    "storm field village train clock boat apple bread tea coffee piano guitar music book "
    "monday friday summer winter doctor teacher pilot baker"
).split()

# Attributes measured one by one, and further ones that keep the model from learning them by heart.
MAIN_ATTRIBUTES = "code room color city friend".split()
OTHER_ATTRIBUTES = (
    "number key price age size job team food drink pet phone street school password "
    "owner door seat hobby song name birthday car"
).split()
DIGIT_COUNTS = {
    "code": (4, 4),
    "room": (3, 3),
    "number": (1, 6),
    "key": (2, 5),
    "price": (1, 4),
    "age": (1, 2),
    "size": (1, 3),
    "phone": (5, 8),
    "door": (1, 3),
    "seat": (1, 3),
}

FILLER_ADJECTIVES = (
    "old small tall warm bright empty narrow distant broken heavy simple early late dark soft calm"
).split()
FILLER_NOUNS = PLAIN_WORDS[:20]
FILLER_VERBS = (
    "stands waits moves shines falls turns rests grows opens closes returns passes sleeps "
    "sings leans drifts"
).split()
FILLER_PREPOSITIONS = "near behind under above beside beyond past along".split()
FILLER_ADVERBS = "slowly today again often quietly now always soon".split()
FILLER_WORDS = (
    FILLER_ADJECTIVES + FILLER_VERBS + FILLER_PREPOSITIONS + FILLER_ADVERBS + "the a in".split()
)

CONSONANTS = "bcdfghjklmnprstvwyz"
VOWELS = "aeiou"

# A few real names that are no whole tokens, so that spelled words look like what visitors type.
REAL_SPELLED = (
    "Anna Peter Maria Lukas Emma Noah Olivia Karim Yuki Sofia Ivan Priya Diego Fatima Hans Ingrid "
    "Kofi Leila Marco Nadia Omar Petra Quentin Rosa Samir Tara Ursula Victor Wanda Xavier "
    "Lisbon Prague Dublin Geneva Nairobi Sydney Toronto Havana Kyoto Milan pizza sushi banana "
    "dragon unicorn galaxy robot violin tennis chess football salad soup noodles cheese mango"
).split()


def invented_word(rng: random.Random) -> str:
    """A word that is no whole token: two or three syllables, now and then with a hyphen."""
    if rng.random() < 0.15:
        return rng.choice(REAL_SPELLED)
    parts = []
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        syllable = rng.choice(CONSONANTS) + rng.choice(VOWELS)
        if rng.random() < 0.35:
            syllable += rng.choice("lmnrstxkb")
        parts.append(syllable)
    if len(parts) == 1:
        parts.append(rng.choice("lmnrstxkb") + rng.choice(VOWELS))
    if rng.random() < 0.1:
        parts.insert(1, "-")
    word = "".join(parts)
    return word.capitalize() if rng.random() < 0.5 else word


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def value_for(rng: random.Random, attribute: str, spelled: float = 0.0) -> str:
    """A value that suits the attribute; with chance `spelled`, one made of unknown words."""
    if attribute in DIGIT_COUNTS:
        low, high = DIGIT_COUNTS[attribute]
        return digits(rng, rng.randint(low, high))
    if rng.random() < spelled:
        return invented_word(rng)
    if attribute == "color":
        return rng.choice(COLORS)
    if attribute == "city":
        return rng.choice(CITIES)
    if attribute == "friend":
        return rng.choice(NAMES)
    return rng.choice(PLAIN_WORDS)


def filler_sentence(
    rng: random.Random, mentions: float = 0.0, names: list[str] | None = None
) -> str:
    """One sentence without a fact; with chance `mentions` a noun gives way to a name (a decoy)."""

    def noun() -> str:
        if names and rng.random() < mentions:
            return rng.choice(names)
        return rng.choice(FILLER_NOUNS)

    pick = rng.choice
    form = rng.randrange(4)
    if form == 0:
        return (
            f"The {pick(FILLER_ADJECTIVES)} {noun()} {pick(FILLER_VERBS)} "
            f"{pick(FILLER_PREPOSITIONS)} the {noun()}."
        )
    if form == 1:
        return (
            f"A {noun()} {pick(FILLER_VERBS)} {pick(FILLER_PREPOSITIONS)} the "
            f"{pick(FILLER_ADJECTIVES)} {noun()} {pick(FILLER_ADVERBS)}."
        )
    if form == 2:
        return (
            f"In the {pick(FILLER_NOUNS)}, the {pick(FILLER_ADJECTIVES)} {noun()} "
            f"{pick(FILLER_VERBS)}."
        )
    return f"The {noun()} {pick(FILLER_VERBS)} {pick(FILLER_ADVERBS)}."
