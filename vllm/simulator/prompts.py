"""Prompts that stand for a trace's block ids: equal ids are equal tokens, others are not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice


def keys_of(ids: Iterable[int], tokens: int, block_size: int) -> list[bytes]:
    """Keys of a prompt's full blocks out of a trace's chained ids; equal ids are equal keys.

    With them the engine hashes nothing, so the prompt's tokens need not stand for the ids.
    """
    return [_key(number) for number in islice(ids, tokens // block_size)]


@lru_cache(maxsize=1 << 20)
def _key(number: int) -> bytes:
    return hashlib.sha256(b"trace-id" + number.to_bytes(8, "little")).digest()


def prompt_of(ids: Iterable[int], tokens: int, block_size: int, vocab_size: int) -> list[int]:
    """`tokens` ids below `vocab_size`, a block of them for each of `ids`.

    A block begins with its id's digits to the base of the vocabulary, as many as a block has room
    for; what no id covers (a partial end) is filled with the request's length, like nothing before.
    """
    prompt: list[int] = []
    for number in ids:
        digits = [number % vocab_size]
        while number := number // vocab_size:
            digits.append(number % vocab_size)
        if len(digits) > block_size:
            raise ValueError(f"blocks of {block_size} tokens are too small for the trace's ids")
        prompt += digits + [len(digits) % vocab_size] * (block_size - len(digits))
    del prompt[tokens:]
    return prompt + [tokens % vocab_size] * (tokens - len(prompt))
