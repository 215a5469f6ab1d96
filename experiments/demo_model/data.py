"""Conversations with facts, for training, and recall tasks as plain text, for measuring.

A fact is (owner, attribute, value). The only owner without a name is the visitor: "my".
`recall_task` gives chat messages and the expected answer, so any server can be asked.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from experiments.demo_model import chat, words

Message = dict[str, str]


@dataclass(frozen=True)
class Fact:
    owner: str
    attribute: str
    value: str


FACT_FORMS = (
    "The {a} of {n} is {v}.",
    "The {a} for {n} is {v}.",
    "Remember that {n} has the {a} {v}.",
    "Note that {n} has {a} {v}.",
    "{n} has the {a} {v}.",
    "{n}'s {a} is {v}.",
    "Remember, the {a} of {n} is {v}.",
)
QUESTION_FORMS = (
    "What is the {a} of {n}?",
    "What is the {a} for {n}?",
    "Which {a} has {n}?",
    "Tell me the {a} of {n}.",
    "Please recall the {a} of {n}.",
    "What {a} does {n} have?",
    "What is {n}'s {a}?",
    "Do you remember the {a} of {n}?",
    "Can you tell me the {a} of {n}?",
)
MY_FACT_FORMS = ("My {a} is {v}.", "Remember that my {a} is {v}.", "Note that my {a} is {v}.")
MY_QUESTION_FORMS = (
    "What is my {a}?",
    "Tell me my {a}.",
    "Do you remember my {a}?",
    "Please recall my {a}.",
    "What was my {a}?",
)
TWO_HOP_FORMS = (
    "What is the {a} of the friend of {n}?",
    "What is the {a} of {n}'s friend?",
    "Tell me the {a} of the friend of {n}.",
    "Please recall the {a} of the friend of {n}.",
)
REPEAT_FORMS = ("Repeat after me: {w}", "Please repeat: {w}", "Say {w}", "Repeat {w}")


def state(rng: random.Random, fact: Fact, plain: bool = False) -> str:
    """The fact as a sentence."""
    forms = MY_FACT_FORMS if fact.owner == "my" else FACT_FORMS
    form = forms[0] if plain or rng.random() < 0.3 else rng.choice(forms)
    return form.format(n=fact.owner, a=fact.attribute, v=fact.value)


def ask(rng: random.Random, owner: str, attribute: str, plain: bool = False) -> str:
    """A question for one attribute of one owner."""
    forms = MY_QUESTION_FORMS if owner == "my" else QUESTION_FORMS
    form = forms[0] if plain or rng.random() < 0.25 else rng.choice(forms)
    return form.format(n=owner, a=attribute)


def ask_two_hop(rng: random.Random, owner: str, attribute: str) -> str:
    return rng.choice(TWO_HOP_FORMS).format(n=owner, a=attribute)


def loosen(rng: random.Random, text: str) -> str:
    """Now and then as typed in haste: a small first letter, no mark at the end."""
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.rstrip("?.")
    return text


def _names(rng: random.Random, count: int, spelled: float) -> list[str]:
    names = rng.sample(words.NAMES, min(count, len(words.NAMES)))
    return list(
        dict.fromkeys(words.invented_word(rng) if rng.random() < spelled else n for n in names)
    )


# ---------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True)
class Difficulty:
    """What a training conversation may hold. The first stages keep everything off."""

    phrasings: bool = True
    small_talk: float = 0.3
    unknown: float = 0.04
    mentions: float = 0.1
    spelled: float = 0.15
    two_hop: float = 0.15
    system: float = 0.3
    chains: bool = False  # every owner has the same attribute, and half of them a friend


PLAIN = Difficulty(
    phrasings=False,
    small_talk=0.0,
    unknown=0.0,
    mentions=0.0,
    spelled=0.05,
    two_hop=0.0,
    system=0.0,
)
FULL = Difficulty()
CHAINS = Difficulty(
    small_talk=0.05, unknown=0.0, mentions=0.0, spelled=0.0, two_hop=0.8, system=0.1, chains=True
)

# What the loss and the curriculum make of a piece of an assistant message.
ANSWER, HARD_ANSWER, REPETITION, TALK, NOTED = (
    "answer",
    "hard answer",
    "repetition",
    "talk",
    "noted",
)


@dataclass
class Conversation:
    """Training text under way: pieces (role, text, kind), counted in tokens as they come."""

    count: Callable[[str], int]
    pieces: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: int = 1

    def add(self, role: str, text: str, kind: str | None = None) -> None:
        self.pieces.append((role, text, kind))
        self.tokens += self.count(text) + 2


def _choose_facts(rng: random.Random, facts: int, how: Difficulty) -> tuple[list[Fact], list[str]]:
    """Facts with distinct (owner, attribute), and names that own nothing."""
    if how.chains:
        return _chained_facts(rng, facts)
    owners = max(1, int(facts * rng.uniform(0.5, 1.0))) if how.phrasings else facts
    spelled = how.spelled * rng.choice((0.0, 0.5, 1.0, 2.5))
    names = _names(rng, owners + 4, spelled)
    names, spare = names[:-4] or names[:1], names[-4:]
    usual = rng.choice(words.MAIN_ATTRIBUTES[:3]) if rng.random() < 0.4 else None
    codes = rng.choice((0.4, 1.0))  # the share of codes, where phrasings are plain
    found: dict[tuple[str, str], Fact] = {}
    for turn in range(facts):
        owner = names[turn] if turn < len(names) else rng.choice(names)
        attribute = "code" if rng.random() < codes else rng.choice(words.MAIN_ATTRIBUTES)
        if how.phrasings:
            if rng.random() < 0.06:
                owner = "my"
            draw = rng.random()
            if usual and draw < 0.7:
                attribute = usual
            elif draw < 0.85:
                attribute = rng.choice(words.MAIN_ATTRIBUTES)
            elif draw < 0.98:
                attribute = rng.choice(words.OTHER_ATTRIBUTES)
            else:  # a word that the visitor made an attribute
                attribute = rng.choice((rng.choice(words.PLAIN_WORDS), words.invented_word(rng)))
        value = words.value_for(rng, attribute, spelled * 1.5)
        if attribute == "friend" and len(names) > 1 and rng.random() < 0.8:
            value = rng.choice([name for name in names if name != owner])
        found.setdefault((owner, attribute), Fact(owner, attribute, value))
    if how.two_hop and len(names) > 2:
        for owner in rng.sample(names, max(1, len(names) // 5)):
            value = rng.choice([name for name in names if name != owner])
            found.setdefault((owner, "friend"), Fact(owner, "friend", value))
    return list(found.values()), spare


def _chained_facts(rng: random.Random, facts: int) -> tuple[list[Fact], list[str]]:
    """Facts for questions of two hops: the asked owner always has a decoy of its own."""
    names = rng.sample(words.NAMES, max(2, facts * 2 // 3) + 4)
    names, spare = names[:-4], names[-4:]
    attribute = rng.choice(("code", "code", "room", "color", "city"))
    found = [Fact(name, attribute, words.value_for(rng, attribute)) for name in names]
    for owner in rng.sample(names, len(names) // 2 + 1):
        friend = rng.choice([name for name in names if name != owner])
        found.append(Fact(owner, "friend", friend))
    return found, spare


def _two_hop_questions(known: list[Fact]) -> list[tuple[str, str, str]]:
    """(owner, attribute, value of the owner's friend) that the known facts settle."""
    by_owner: dict[str, list[Fact]] = {}
    for fact in known:
        by_owner.setdefault(fact.owner, []).append(fact)
    return [
        (fact.owner, target.attribute, target.value)
        for fact in known
        if fact.attribute == "friend"
        for target in by_owner.get(fact.value, ())
    ]


def _repetition(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.4:
        said = words.digits(rng, rng.randint(1, 6))
    else:
        pool = rng.choice((words.PLAIN_WORDS, words.FILLER_WORDS, words.COLORS, words.NAMES))
        said = " ".join(
            words.invented_word(rng) if rng.random() < 0.1 else rng.choice(pool)
            for _ in range(rng.randint(1, 5))
        )
    return loosen(rng, rng.choice(REPEAT_FORMS).format(w=said)), said


def training_conversation(
    rng: random.Random, tokens: int, facts: int, how: Difficulty, count: Callable[[str], int]
) -> list[tuple[str, str, str | None]]:
    """Pieces of at least `tokens` tokens: facts amid filler first, then questions to the end."""
    talk = Conversation(count)
    all_facts, spare = _choose_facts(rng, facts, how)
    rng.shuffle(all_facts)
    taken = {(fact.owner, fact.attribute) for fact in all_facts}
    plain = not how.phrasings

    def chatter() -> None:
        if rng.random() < 0.35:
            said, answer = _repetition(rng)
            talk.add("user", said)
            talk.add("assistant", answer, REPETITION)
            return
        said, answer = chat.small_talk(rng)
        talk.add("user", said)
        talk.add("assistant", answer, TALK)

    context_tokens = tokens - int(rng.uniform(0.3, 0.7) * tokens)
    sentences: list[Fact | None] = []
    later: list[Fact] = []
    first_facts = all_facts
    if len(all_facts) > 1 and rng.random() < 0.3:
        cut = rng.randrange(1, len(all_facts))
        first_facts, later = all_facts[:cut], all_facts[cut:]
    known = list(first_facts)
    sentences += first_facts
    room = context_tokens - len(first_facts) * 10 - len(later) * 5
    if rng.random() < 0.9:
        sentences += [None] * max(0, int(room / 7.5))
    rng.shuffle(sentences)
    mentions = how.mentions * rng.random() * 2
    pool = [*{fact.owner for fact in all_facts if fact.owner != "my"}, *spare]
    joint = "\n" if how.phrasings and rng.random() < 0.1 else " "

    def text_of(sentence: Fact | None) -> str:
        if sentence is None:
            return words.filler_sentence(rng, mentions, pool)
        return state(rng, sentence, plain)

    if rng.random() < how.system:
        share = rng.choice((0.0, 0.0, 0.1, 0.5, 1.0)) if tokens > 64 else 0.0
        cut = int(len(sentences) * share)
        parts = [text_of(sentence) for sentence in sentences[:cut]]
        if rng.random() < 0.6 or not parts:
            parts.insert(0, rng.choice(chat.SYSTEM_PROMPTS))
        talk.add("system", joint.join(parts))
        sentences = sentences[cut:]
    while rng.random() < how.small_talk:
        chatter()
    body = joint.join(text_of(sentence) for sentence in sentences)
    asked_at_once = rng.random() < 0.5 or not body
    if not asked_at_once:
        talk.add("user", body)
        talk.add("assistant", chat.NOTED_ANSWER, NOTED)
        body = ""

    questions: list[Fact] = []
    asked: set[tuple[str, str, str]] = set()
    while talk.tokens < tokens:
        if not body and later and rng.random() < 0.4:
            fact = later.pop()
            known.append(fact)
            questions.append(fact)
            talk.add(
                "user",
                loosen(rng, state(rng, fact, plain)) if how.phrasings else state(rng, fact, plain),
            )
            talk.add("assistant", chat.NOTED_ANSWER, NOTED)
            continue
        if not body and rng.random() < how.small_talk * 0.2:
            chatter()
            continue
        if rng.random() < how.unknown:
            owner = rng.choice(spare if rng.random() < 0.5 else pool)
            attribute = rng.choice(words.MAIN_ATTRIBUTES)
            if (owner, attribute) in taken:
                continue
            question, answer, kind = ask(rng, owner, attribute), chat.UNKNOWN_ANSWER, TALK
        elif rng.random() < how.two_hop and (
            chains := [chain for chain in _two_hop_questions(known) if chain not in asked]
        ):
            owner, attribute, value = rng.choice(chains)
            asked.add((owner, attribute, value))
            question, answer, kind = ask_two_hop(rng, owner, attribute), f"{value}.", HARD_ANSWER
        else:
            if not questions:
                questions = rng.sample(known, len(known))
            fact = questions.pop()
            question = ask(rng, fact.owner, fact.attribute, plain)
            ordinary = fact.owner in _NAME_SET and fact.attribute in words.MAIN_ATTRIBUTES
            answer, kind = f"{fact.value}.", ANSWER if ordinary else HARD_ANSWER
        if how.phrasings:
            question = loosen(rng, question)
        talk.add("user", f"{body}{joint}{question}" if body else question)
        talk.add("assistant", answer, kind)
        body = ""
    return talk.pieces


_NAME_SET = frozenset(words.NAMES)
