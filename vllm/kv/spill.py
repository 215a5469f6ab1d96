"""Whole sequences aside, the partly filled last block too: preemption by swapping.

    out   blocks --copies--> the fastest tier      each block is given back when its copy is made
    back  other blocks <--loads-- the tier         then the copies are deleted

A copy has a name that nobody else can come to, so it is never a hit, and it is pinned, so it never
goes before its sequence does. What comes back is what went out, byte for byte.

It knows bytes and no tables. The head blocks of a compressed sequence are packed into as few blobs
as they fill, which `begin` takes in place of blocks: so they are free at once, and the blocks that
the blobs come back into are slabs of its own. Nothing is published under a copy's name, so a lossy
lineage stays its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vllm.core.plan import BlockIO
from vllm.kv.index import BlockId
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.loads import Load, Loads
from vllm.kv.mover import Mover, delete
from vllm.kv.pool import BlockPool
from vllm.kv.shelf import BATCH, Level

Piece = tuple[memoryview, BlockId | None]  # bytes, and the block that they are in, if any


@dataclass(slots=True)
class Spilled:
    """One sequence's copies, in the order of its blocks."""

    names: list[Key]
    tokens: int  # whose KVs they hold
    storing: int  # copies that are not made yet
    whole: bool = True  # no copy has failed, or is late
    wanted: bool = True  # the sequence has not ended


class Spills:
    """Which sequences are aside, and the transfers of their copies."""

    def __init__(
        self, level: Level | None, mover: Mover, io: BlockIO, pool: BlockPool, loads: Loads
    ) -> None:
        self._level, self._mover, self._io = level, mover, io
        self._pool, self._loads = pool, loads
        self._by_seq: dict[int, Spilled] = {}
        self._storing: dict[Key, tuple[Spilled, BlockId | None]] = {}  # None: given back
        self._count = 0

    # ---- out ----------------------------------------------------------------------------------

    def accepts(self, count: int) -> bool:
        """Whether there is room for so many copies."""
        level = self._level
        if level is None or not self._mover.accepts_store(level.tier.name):
            return False
        return level.shelf.reservable >= count

    def begin(self, seq: int, blocks: list[BlockId], tokens: int) -> bool:
        """Copy these blocks aside. False, and nothing changes, when there is no room for all.

        The copies hold references of their own; the caller gives the sequence's back.
        """
        if not self.accepts(len(blocks)):
            return False
        self._pool.share(blocks)
        self._store(seq, [(self._io.view(block), block) for block in blocks], tokens)
        return True

    def begin_packed(self, seq: int, blobs: list[memoryview], tokens: int) -> None:
        """The same with blobs that are nobody else's, where `accepts` says that there is room."""
        assert self.accepts(len(blobs))
        self._store(seq, [(blob, None) for blob in blobs], tokens)

    def _store(self, seq: int, pieces: list[Piece], tokens: int) -> None:
        level = self._level
        assert level is not None
        names = [self._name() for _ in pieces]
        spilled = self._by_seq[seq] = Spilled(names, tokens, len(names))
        for at in range(0, len(pieces), BATCH):
            job = Job(Kind.STORE, level.tier.name, [], [])
            batch = slice(at, at + BATCH)
            for name, (view, block) in zip(names[batch], pieces[batch], strict=True):
                victims = level.shelf.reserve(name)
                assert victims is not None, "there was room for all"
                self._storing[name] = spilled, block
                job.add(name, view, victims)
            self._mover.submit(job)

    def view(self, block: int) -> memoryview:
        """The bytes of a block of the device."""
        return self._io.view(block)

    def _name(self) -> Key:
        self._count += 1
        return Key(hashlib.sha256(b"vllm-kv-spill" + self._count.to_bytes(8, "little")).digest())

    def owns(self, job: Job) -> bool:
        """Whether a store is one of copies."""
        return job.keys[0] in self._storing

    def revoke(self, job: Job) -> None:
        """The tier hangs: the sequence computes anew, and its blocks are free."""
        for name in job.keys:
            spilled, block = self._storing[name]
            if block is not None:
                self._pool.release([block])
            self._storing[name] = spilled, None
            spilled.whole = False

    def stored(self, job: Job) -> None:
        """Copies have been made, or not."""
        assert self._level is not None
        shelf = self._level.shelf
        for name, ok in zip(job.keys, job.ok, strict=True):
            spilled, block = self._storing.pop(name)
            if block is not None:
                self._pool.release([block])
            if ok:
                shelf.stored(name, on_device=False)
                shelf.pin(name)
            else:
                shelf.failed(name)
            spilled.storing -= 1
            spilled.whole &= ok
            if not spilled.storing and not spilled.wanted:
                self._delete_all(spilled)

    @property
    def going(self) -> bool:
        """Whether blocks are about to be free, as their copies are made."""
        return any(spilled.whole and block is not None for spilled, block in self._storing.values())

    # ---- back ---------------------------------------------------------------------------------

    def of(self, seq: int) -> Spilled | None:
        """The sequence's copies, if they are of any use."""
        spilled = self._by_seq.get(seq)
        if spilled is not None and not spilled.whole:
            self.forget(seq)
            return None
        return spilled

    def bring_back(self, seq: int, blocks: list[BlockId]) -> None:
        """Let `seq` wait for its copies in these blocks, to which it holds references."""
        assert self._level is not None
        spilled = self._by_seq.pop(seq)
        assert not spilled.storing and spilled.whole
        self._pool.share(blocks)
        self._loads.begin(
            (name, Load(block, self._level, private=True))
            for name, block in zip(spilled.names, blocks, strict=True)
        )
        self._loads.await_all(seq, spilled.names)

    def forget(self, seq: int) -> None:
        """Nobody comes back for the sequence's copies."""
        spilled = self._by_seq.pop(seq, None)
        if spilled is not None:
            spilled.wanted = False
            if not spilled.storing:
                self._delete_all(spilled)

    def _delete_all(self, spilled: Spilled) -> None:
        assert self._level is not None
        for name in spilled.names:
            if name in self._level.shelf:
                self.delete(name)

    def delete(self, name: Key) -> None:
        """A copy is of no use any more."""
        assert self._level is not None
        self._level.shelf.unpin(name)
        self._level.shelf.discard(name)
        delete(self._level.tier, name)

    def blocks(self) -> list[BlockId]:
        """One for each reference that copies hold."""
        return [block for _, block in self._storing.values() if block is not None]

    def check(self) -> None:
        for spilled in self._by_seq.values():
            left = sum(name in self._storing for name in spilled.names)
            assert left == spilled.storing, "every copy that is being made is counted"
