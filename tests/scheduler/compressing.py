"""A fake worker that compresses, and a drive with it.

As in `fake`, a slot holds a digest of all that its KV depends on: the tokens up to its position,
the head, and what had been dropped before it was computed. So a KV that a compressed sequence
computed is a wrong one for everybody else, and reading it is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams
from vllm.core.plan import Choice, Compress, NewSequence, StepPlan, StepResult
from vllm.core.request import EngineRequest
from vllm.kv.table import HeadTable

from .drive import Drive
from .fake import FakeExecutor, Row


@dataclass
class Kept:
    """A compressed row: its own copy of the table, and the positions that each head holds."""

    table: HeadTable
    positions: list[list[int]]
    gaps: list[tuple[int, int]] = field(default_factory=list)  # (tokens, digest of what stayed)


class CompressingExecutor(FakeExecutor):
    """seed: of what is chosen, which is a function of it, the sequence's tokens and the budget."""

    def __init__(self, kv, max_num_seqs, max_num_batched_tokens, heads: int, seed: int) -> None:
        super().__init__(kv, max_num_seqs, max_num_batched_tokens)
        self.heads, self.seed = heads, seed
        self.memory = np.zeros((kv.num_blocks, heads, self.size), dtype=np.uint64)
        self.flat = self.memory.reshape(-1)
        self.kept: dict[int, Kept] = {}
        self.parked: dict[int, Kept | None] = {}
        self.began: dict[int, int] = {}  # the first position that a sequence computed
        self.behind: dict[int, bool] = {}  # whether that was behind a compressed prefix
        self.salt: Callable[[int], str | None] = lambda seq: None
        self.resumed = 0
        self.compressions = 0
        self.dropped = 0
        self.hits = 0  # sequences that began with a compressed prefix

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        result.kept = [self._compress(order) for order in plan.compress]
        result.choices = {o.seq: self._choice(o) for o in plan.compress if o.shared}
        return result

    def view(self, block: int) -> memoryview:
        return memoryview(self.memory[block].reshape(-1).view(np.uint8))

    # ---- rows ---------------------------------------------------------------------------------

    def _apply(self, plan: StepPlan) -> None:
        for seq in plan.park:
            self.parked[seq] = self.kept.pop(seq, None)
        for seq in plan.forget:
            self.kept.pop(seq, None)
            self.parked.pop(seq, None)
        for new in plan.new:
            kept = self.parked.pop(new.seq, None)
            if new.resumed:
                self.resumed += 1
                if kept is not None:
                    kept.table, left = kept.table.elsewhere(new.head_blocks)
                    assert not len(left), "as many head blocks as it had"
                    self.kept[new.seq] = kept
            if new.choice is not None:
                assert not new.resumed
                self.kept[new.seq] = self._begin(new)
                self.hits += 1
            assert (new.head_blocks is None) == (new.seq not in self.kept)
            if not new.resumed:
                self.began[new.seq] = int(plan.starts[plan.seqs.index(new.seq)])
                self.behind[new.seq] = new.choice is not None
        super()._apply(plan)

    def _begin(self, new: NewSequence) -> Kept:
        choice = new.choice
        table, left = HeadTable.of(new.head_blocks, choice.lengths, choice.tokens, self.size)
        assert not len(left), "as many head blocks as it begins with"
        positions = [[p for p in head if p >= 0] for head in choice.positions[0].tolist()]
        return Kept(table, positions, [(choice.tokens, zlib.crc32(str(positions).encode()))])

    def _choice(self, order: Compress) -> Choice:
        positions = self.kept[order.seq].positions
        made = np.full((1, self.heads, max(map(len, positions))), -1, dtype=np.int32)
        for head, mine in enumerate(positions):
            made[0, head, : len(mine)] = mine
        return Choice(order.tokens, made, None)

    def _extend(self, seq: int, blocks: list[int], tokens: int) -> None:
        kept = self.kept.get(seq)
        if kept is None:
            super()._extend(seq, blocks, tokens)
            return
        for positions in kept.positions:
            positions += range(kept.table.tokens, tokens)
        assert len(blocks) == kept.table.missing(tokens), "as many as it lacks"
        kept.table.extend(tokens, np.array(blocks, dtype=np.int32))
        self._same_tables(seq)

    def _same_tables(self, seq: int) -> None:
        mine, theirs = self.kept[seq].table, self.kv._heads.tables[seq]
        assert mine.tokens == theirs.tokens
        assert mine.lengths.tolist() == theirs.lengths.tolist()
        assert mine.held.tolist() == theirs.held.tolist()

    # ---- KVs ----------------------------------------------------------------------------------

    def slots(self, seq: int, end: int) -> list[list[tuple[int, int]]]:
        """(position, slot) of every KV before `end`, head by head."""
        kept = self.kept.get(seq)
        if kept is None:
            blocks = self.rows[seq].blocks
            return [
                [
                    (p, (blocks[p // self.size] * self.heads + h) * self.size + p % self.size)
                    for p in range(end)
                ]
                for h in range(self.heads)
            ]
        found = []
        for h, positions in enumerate(kept.positions):
            ids = kept.table.head_blocks[0, h]
            assert len(positions) == kept.table.lengths[0, h]
            found.append(
                [
                    (p, int(ids[i // self.size]) * self.size + i % self.size)
                    for i, p in enumerate(positions)
                    if p < end
                ]
            )
        return found

    def _held(self, seq: int) -> set[int]:
        """Head blocks of a sequence."""
        if seq in self.kept:
            return set(self.kept[seq].table.held.tolist())
        return {b * self.heads + h for b in self.rows[seq].blocks for h in range(self.heads)}

    def _write(self, seq: int, row: Row, start: int, count: int) -> None:
        others = set().union(*(self._held(s) for s in self.rows if s != seq))
        for head, pairs in enumerate(self.slots(seq, start + count)):
            for position, slot in pairs:
                if position >= start:
                    block = slot // self.size
                    assert not self.kv._pool.is_published(block // self.heads), "R4: published"
                    assert block not in others, "a head block that others hold is written"
                    self.flat[slot] = self.right(seq, position, head)
        self.computed[seq] = self.computed.get(seq, 0) + count

    def _read_all(self, seq: int, end: int) -> None:
        for head, pairs in enumerate(self.slots(seq, end)):
            for position, slot in pairs:
                assert self.flat[slot] == self.right(seq, position, head), "a wrong KV is read"

    def _read(self, row: Row, end: int) -> None:
        self._read_all(row.new.seq, end)

    def right(self, seq: int, position: int, head: int) -> int:
        kept = self.kept.get(seq)
        gaps = [] if kept is None else [g for g in kept.gaps if g[0] <= position]
        said = f"{self.rows[seq].tokens[: position + 1]} {head} {gaps} {self.salt(seq)}"
        return zlib.crc32(said.encode()) + 1

    # ---- orders -------------------------------------------------------------------------------

    def _compress(self, order: Compress) -> np.ndarray:
        row, size = self.rows[order.seq], self.size
        wish = row.new.compression
        assert wish is not None, "it never asked for that"
        end = [*row.new.stages, row.new.prompt_len][0]
        unseen = 0 if wish.window is None else max(0, end - wish.window)
        if not self.behind[order.seq]:  # else others have seen what is before it
            seen = self.began[order.seq] <= unseen
            assert wish.window == 0 or seen, "R2: queries were not computed"
        self._read_all(order.seq, order.tokens)
        before = self.slots(order.seq, order.tokens)
        said = f"{row.tokens[: order.tokens]} {order.budget} {self.seed}"
        rng = np.random.default_rng(zlib.crc32(said.encode()))
        chosen = self._choose(rng, [[p for p, _ in pairs] for pairs in before], order.budget)
        lengths = np.array([[len(c) for c in chosen]], dtype=np.int32)
        assert int((-(-lengths // size)).sum()) <= len(order.head_blocks), "enough was reserved"
        targets = set((order.head_blocks // self.heads).tolist())
        assert not any(self.kv._pool.is_published(b) for b in targets), "R4: copied out"
        held = set().union(*(self._held(s) for s in self.rows))
        assert not held & set(order.head_blocks.tolist()), "R4: never into what somebody holds"
        table, _ = HeadTable.of(order.head_blocks, lengths, order.tokens, size)
        values = [
            [self.flat[dict(pairs)[p]] for p in c] for pairs, c in zip(before, chosen, strict=True)
        ]
        for h, mine in enumerate(values):
            for i, value in enumerate(mine):
                slot = int(table.head_blocks[0, h, i // size]) * size + i % size
                self.flat[slot] = value
        old = self.kept.get(order.seq)
        gaps = [] if old is None else old.gaps
        digest = zlib.crc32(str(chosen).encode())
        self.kept[order.seq] = Kept(table, chosen, [*gaps, (order.tokens, digest)])
        self.compressions += 1
        self.dropped += sum(map(len, before)) - int(lengths.sum())
        return lengths

    def _choose(self, rng, held: list[list[int]], budget: int) -> list[list[int]]:
        """Whole blocks of each head, or all that it has, at random, while the budget lasts."""
        size = self.size
        groups = [h for h, mine in enumerate(held) for _ in range(-(-len(mine) // size))]
        left = max(1, -(-budget // size))
        taken = rng.permutation(groups)[:left].tolist()
        chosen = []
        for h, mine in enumerate(held):
            count = min(len(mine), taken.count(h) * size)
            some = rng.choice(len(mine), size=count, replace=False)
            chosen.append([mine[i] for i in sorted(some.tolist())])
        return chosen


class CompressingDrive(Drive):
    def __init__(
        self,
        *,
        heads: int = 2,
        settings: CompressionSettings | None = None,
        choices: int = 0,
        **options,
    ) -> None:
        settings = settings or CompressionSettings()
        super().__init__(heads=heads, compression=settings, **options)
        config = self.scheduler._config
        self.fake = CompressingExecutor(
            self.kv, config.max_num_seqs, config.max_num_batched_tokens, heads, choices
        )
        self.salts: dict[int, str | None] = {}
        self.fake.salt = self.salts.get
        if settings.share:
            self.kv.share_compressed(self.fake)

    def add(self, *args, **fields) -> str:
        name = super().add(*args, **fields)
        for sequence in self.scheduler._by_request.get(name, ()):
            self.salts[sequence.number] = sequence.request.cache_salt
        return name

    def longest(self, request: EngineRequest) -> int:
        return self.scheduler._compression.longest(request, self.max_model_len)

    def step(self) -> StepPlan:
        plan = super().step()
        self.fake.memory[self.kv.pool._free] = 0  # poison
        slabs = self.kv._heads.slabs
        for ids in slabs._free.values():
            for block in ids:
                self.fake.flat[block * self.fake.size : (block + 1) * self.fake.size] = 0
        free = (self.kv.pool.num_blocks - self.kv.pool.held) * self.fake.heads
        snapshots = 0 if self.kv._snapshots is None else self.kv._snapshots.held
        dense = self.kv.pool.held - len(slabs) - snapshots
        total = free + slabs.held + slabs.remainder + (dense + snapshots) * self.fake.heads
        assert total == self.kv.pool.num_blocks * self.fake.heads
        return plan

    def verify(self) -> None:
        if self.kv._snapshots is not None:
            assert not self.kv._snapshots._begun
            self.kv._snapshots.clear()
        super().verify()
        assert not self.kv._heads.tables
        assert not self.kv._heads._reserved
        assert len(self.kv._heads.slabs) == 0
        assert not self.fake.kept


def params(**fields) -> CompressionParams:
    return CompressionParams(**({"protected_window_size": 0, "window": 2} | fields))
