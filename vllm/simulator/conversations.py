"""Conversations to simulate clients with: read from ShareGPT's files, or made up.

The four workloads are those of the prefix study that the laboratory goes back to: `chat_multi`,
`chat_single`, `qa` (several questions on one context) and `summarization`. The made-up ones need no
download; their words mean nothing, their lengths and what they share are like the real ones'.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKLOADS = ("chat_multi", "chat_single", "qa", "summarization")
HUB_REPOSITORY = "anon8231489123/ShareGPT_Vicuna_unfiltered"
HUB_FILE = "ShareGPT_V3_unfiltered_cleaned_split.json"
MAX_FILE_BYTES = 4 << 30

_WORDS = """the of and a to in is you that it he was for on are as with his they at be this have
from or one had by word but not what all were we when your can said there use an each which she do
how their if will up other about out many then them these so some her would make like him into time
has look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also around
form three small set put end does another well large must big even such because turn here why ask
went men read need land different home us move try kind hand picture again change off play spell air
away animal house point page letter mother answer""".split()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turn; the answers of one that was made up are made up too."""

    name: str
    workload: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def mode(self) -> str:
        return "multi" if len(self.questions) > 1 else "single"


@dataclass(slots=True)
class Conversations:
    found: list[Conversation] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)  # entry, why


def _text(draw: random.Random, low: int, high: int) -> str:
    """Sentences of so many words in all, with a long tail towards `high`."""
    count = low + int((high - low) * draw.random() ** 2)
    words = draw.choices(_WORDS, k=count)
    for at in range(0, count, 12):
        words[at] = words[at].capitalize()
    return " ".join(words) + "."


def _chat_multi(draw: random.Random, number: int) -> Iterator[Conversation]:
    turns = 2 + min(6, int(draw.expovariate(0.5)))
    questions = tuple(_text(draw, 8, 120) for _ in range(turns))
    answers = tuple(_text(draw, 30, 200) for _ in range(turns))
    yield Conversation(f"chat-{number}", "chat_multi", questions, answers)


def _chat_single(draw: random.Random, number: int) -> Iterator[Conversation]:
    question, answer = _text(draw, 8, 200), _text(draw, 30, 200)
    yield Conversation(f"chat-{number}", "chat_single", (question,), (answer,))


def _qa(draw: random.Random, number: int) -> Iterator[Conversation]:
    """One context, asked about several times by requests of their own."""
    context = _text(draw, 80, 200)
    for i in range(4 + draw.randrange(12)):
        prompt = f"Context:\n{context}\n\nQuestion: {_text(draw, 6, 15)[:-1]}?\nAnswer:"
        yield Conversation(f"qa-{number}-{i}", "qa", (prompt,), (_text(draw, 1, 8),))


def _summarization(draw: random.Random, number: int) -> Iterator[Conversation]:
    prompt = f"Summarize the following article:\n\n{_text(draw, 200, 700)}"
    yield Conversation(f"article-{number}", "summarization", (prompt,), (_text(draw, 30, 60),))


_MAKERS: dict[str, Callable[[random.Random, int], Iterator[Conversation]]] = {
    "chat_multi": _chat_multi,
    "chat_single": _chat_single,
    "qa": _qa,
    "summarization": _summarization,
}


def generate(workload: str, count: int, seed: int = 0) -> list[Conversation]:
    """`count` conversations of one workload, made up. Raises ValueError for an unknown workload."""
    if workload not in _MAKERS:
        raise ValueError(f"workload must be one of {', '.join(WORKLOADS)}, not {workload!r}")
    draw = random.Random(f"{seed} {workload}")
    made: list[Conversation] = []
    number = 0
    while len(made) < count:
        made += _MAKERS[workload](draw, number)
        number += 1
    return made[:count]


def hub_file() -> Path:
    """ShareGPT (V3, cleaned split) from the hub, 670 MB. Raises ValueError without a network."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE, repo_type="dataset"))
    except Exception as error:  # which HTTP client's errors these are depends on the hub's version
        raise ValueError(f"the hub does not give {HUB_REPOSITORY}: {error}") from error


def read_sharegpt(path: Path, workload: str, count: int) -> Conversations:
    """The first `count` conversations of a ShareGPT file that can be used.

    An entry is ShareGPT's own ({"id", "conversations": [{"from", "value"}, ...]}) or a prompt on
    its own ({"input": text}). `chat_single` takes first turns, `chat_multi` conversations of two
    turns and more. Entries that cannot be read are counted, with the reason. Raises ValueError for
    a file that is not a list, or has nothing to use.
    """
    if workload not in ("chat_multi", "chat_single"):
        raise ValueError(f"ShareGPT is chats; {workload} cannot be read from it")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of conversations")
    told, names = Conversations(), set[str]()
    for number, entry in enumerate(entries):
        if len(told.found) == count:
            break
        try:
            turns = _turns(entry)
        except ValueError as error:
            told.refused.append((number, str(error)))
            continue
        if workload == "chat_single":
            turns = turns[:1]
        elif len(turns) < 2:
            continue
        questions, answers = zip(*turns, strict=True)
        name = entry.get("id")
        if not isinstance(name, str) or not name or name in names:
            name = f"{name or 'entry'}-{number}"
        names.add(name)
        told.found.append(Conversation(name, workload, questions, answers))
    if not told.found:
        raise ValueError(f"{path} has no conversations for {workload}")
    return told


def _turns(entry: Any) -> list[tuple[str, str]]:
    """(question, answer) pairs; a conversation that a human does not begin starts at his first."""
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    if isinstance(entry.get("input"), str) and entry["input"].strip():
        return [(entry["input"], "")]
    said = entry.get("conversations")
    if not isinstance(said, list):
        raise ValueError("neither conversations nor input")
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for part in said:
        text = part.get("value") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise ValueError("a part of the conversation has no text")
        if part.get("from") in ("human", "user"):
            question = text if text.strip() else None
        elif question:
            turns.append((question, text))
            question = None
    if question:
        turns.append((question, ""))
    if not turns:
        raise ValueError("nobody asks anything")
    return turns
