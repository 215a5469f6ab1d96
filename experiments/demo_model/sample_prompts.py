"""Recall tasks as plain text: chat messages and the expected answer, for any server that chats.

    messages, answer = recall_task(random.Random(0), tokens=1024, facts=32)

Compare `answer` with the reply after `strip()`. Answers end with a full stop: "4821.".
Print one: `python -m experiments.demo_model.sample_prompts --kind two_hop --tokens 256`.
"""

import argparse
import json
import random
from functools import cache

from tokenizers import Tokenizer

from experiments.demo_model import chat, words
from experiments.demo_model.data import Fact, Message, ask, ask_two_hop, state
from experiments.demo_model.tokenizer import build_tokenizer

KINDS = {
    "code": "four-digit codes, one phrasing",
    "mixed": "five attributes, all phrasings, names also as decoys in the filler",
    "turns": "as mixed, the facts spread over several turns of the chat",
    "system": "as mixed, the facts in the system message",
    "two_hop": "the code of the friend of somebody who has no code",
    "two_hop_decoy": "the code of the friend of somebody who has one, too",
    "spelled_names": "codes of owners whose names are no whole tokens",
    "spelled_values": "cities and friends that are no whole tokens",
}
OVERHEAD = 2  # a role token and <|end|> for each message


@cache
def _encode_one(text: str) -> int:
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


@cache
def _tokenizer() -> Tokenizer:
    return build_tokenizer()


def count_tokens(messages: list[Message]) -> int:
    """Tokens of the rendered prompt: <|bos|>, the messages, and the final <|assistant|>."""
    return 2 + sum(_encode_one(message["content"]) + OVERHEAD for message in messages)


def _distinct_names(rng: random.Random, count: int, spelled: bool) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names[words.invented_word(rng) if spelled else rng.choice(words.NAMES)] = None
    return list(names)


def _facts(rng: random.Random, kind: str, count: int) -> tuple[list[Fact], str, str]:
    """The facts (the needed one first), the question, and the value asked for."""
    if kind.startswith("two_hop"):
        names = _distinct_names(rng, max(2, count - count // 4), spelled=False)
        friends = [Fact(names[0], "friend", names[1])]
        pool = rng.sample(names[1:], min(len(names) - 1, count // 4))
        friends += [
            Fact(owner, "friend", rng.choice([n for n in names if n != owner])) for owner in pool
        ][: max(0, count // 4 - 1)]
        codes = [Fact(name, "code", words.value_for(rng, "code")) for name in names]
        decoy = codes[:1] if kind == "two_hop_decoy" else []
        facts = [friends[0], codes[1], *decoy, *friends[1:], *codes[2:]]
        return facts[:count], ask_two_hop(rng, names[0], "code"), codes[1].value
    several = kind not in ("code", "spelled_names")  # owners with more than one attribute
    owners = max(1, count * 2 // 3) if several else count
    names = _distinct_names(rng, owners, spelled=kind == "spelled_names")
    found: dict[tuple[str, str], Fact] = {}
    while len(found) < count:
        owner = rng.choice(names) if several else names[len(found)]
        if not several:
            attribute = "code"
        elif kind == "spelled_values":
            attribute = rng.choice(("city", "friend"))
        else:
            attribute = rng.choice(words.MAIN_ATTRIBUTES)
        spelled = 1.0 if kind == "spelled_values" else 0.0
        value = words.value_for(rng, attribute, spelled)
        found.setdefault((owner, attribute), Fact(owner, attribute, value))
    facts = list(found.values())
    question = ask(rng, facts[0].owner, facts[0].attribute, plain=kind == "code")
    return facts, question, facts[0].value


def recall_task(
    rng: random.Random,
    tokens: int = 1024,
    facts: int = 32,
    kind: str = "code",
    depth: float | None = None,
    asked_apart: bool = False,
) -> tuple[list[Message], str]:
    """A prompt of at most `tokens` tokens (and hardly fewer), and the answer.

    depth: where the needed fact stands, 0 first to 1 last (None: anywhere; two hops ignore it).
    asked_apart: the question comes in a turn of its own, after "OK." to the facts.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    chosen, question, value = _facts(rng, kind, facts)
    plain = kind in ("code", "two_hop", "two_hop_decoy", "spelled_names")
    needed, *others = [state(rng, fact, plain) for fact in chosen]
    names = [fact.owner for fact in chosen]
    mentions = 0.0 if plain else 0.1

    def assemble(sentences: list[str]) -> list[Message]:
        if kind == "system":
            return [_message("system", " ".join(sentences)), _message("user", question)]
        if kind == "turns":
            messages = []
            share = -(-len(sentences) // 4)
            for start in range(0, len(sentences), share):
                messages.append(_message("user", " ".join(sentences[start : start + share])))
                messages.append(_message("assistant", chat.NOTED_ANSWER))
            return [*messages, _message("user", question)]
        body = " ".join(sentences)
        if asked_apart:
            noted = _message("assistant", chat.NOTED_ANSWER)
            return [_message("user", body), noted, _message("user", question)]
        return [_message("user", f"{body} {question}")]

    used = count_tokens(assemble([needed, *others])) + (12 if kind == "turns" else 0)
    while True:
        sentence = words.filler_sentence(rng, mentions, names)
        used += _encode_one(sentence)
        if used > tokens:
            break
        others.append(sentence)
    rng.shuffle(others)
    place = rng.random() if depth is None else depth
    others.insert(round(place * len(others)), needed)
    messages = assemble(others)
    if count_tokens(messages) > tokens:
        raise ValueError(f"{facts} facts do not fit into {tokens} tokens")
    return messages, f"{value}."


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="code")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--facts", type=int, default=None, help="default: one per 32 tokens")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    facts = args.facts or max(4, args.tokens // 32)
    messages, answer = recall_task(random.Random(args.seed), args.tokens, facts, args.kind)
    print(json.dumps({"messages": messages, "answer": answer}, indent=2))


if __name__ == "__main__":
    main()
