"""Whole sequences aside, the partly filled last block too: preemption by swapping.

    out   blocks --copies--> the fastest tier      each block is given back when its copy is made
    back  other blocks <--loads-- the tier         then the copies are deleted

A copy has a name that nobody else can come to, so it is never a hit, and it is pinned, so it never
goes before its sequence does. What is brought back is what went out, byte for byte: it may be any
list of blocks, also those of a compressed sequence, whose lengths its table keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vllm.kv.index import BlockId
from vllm.kv.lineage import Key


@dataclass(slots=True)
class Spilled:
    """One sequence's copies, in the order of its blocks."""

    names: list[Key]
    tokens: int  # whose KVs they hold
    storing: int  # copies that are not made yet
    whole: bool = True  # no copy has failed
    wanted: bool = True  # the sequence has not ended


class Spills:
    """Which sequences are aside. The transfers are `Hierarchy`'s."""

    def __init__(self) -> None:
        self._by_seq: dict[int, Spilled] = {}
        self._storing: dict[Key, tuple[Spilled, BlockId]] = {}
        self._count = 0

    def begin(self, seq: int, blocks: list[BlockId], tokens: int) -> list[Key]:
        """Names for the copies of these blocks, each of which the copies hold a reference to."""
        names = []
        for _ in blocks:
            self._count += 1
            said = b"vllm-kv-spill" + self._count.to_bytes(8, "little")
            names.append(Key(hashlib.sha256(said).digest()))
        spilled = self._by_seq[seq] = Spilled(names, tokens, len(names))
        self._storing |= {n: (spilled, b) for n, b in zip(names, blocks, strict=True)}
        return names

    def stored(self, name: Key, ok: bool) -> tuple[Spilled, BlockId] | None:
        """A copy has been made, or not: its sequence's copies, and the block that is free of it.

        None for a key that is no copy's name.
        """
        found = self._storing.pop(name, None)
        if found is not None:
            found[0].storing -= 1
            found[0].whole &= ok
        return found

    def of(self, seq: int) -> Spilled | None:
        return self._by_seq.get(seq)

    def pop(self, seq: int) -> Spilled | None:
        """The sequence comes back, or has ended: its copies are the caller's now."""
        return self._by_seq.pop(seq, None)

    @property
    def going(self) -> bool:
        """Whether blocks will be free as soon as their copies are made."""
        return bool(self._storing)

    def blocks(self) -> list[BlockId]:
        """Blocks that copies hold a reference to."""
        return [block for _, block in self._storing.values()]

    def check(self) -> None:
        for spilled in self._by_seq.values():
            left = sum(name in self._storing for name in spilled.names)
            assert left == spilled.storing, "every copy that is being made is counted"
