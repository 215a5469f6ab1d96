"""A worker without a model, which believes nothing.

It keeps its own copy of every sequence from what plans tell, and a memory in which each slot holds
a digest of all tokens up to its position. A token is a function of the whole sequence and its seed,
so any slip of bookkeeping, a block given twice, a prefix shared wrongly, a position left out, shows
as an error here or as a wrong token in the end.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from vllm.core.plan import NewSequence, StepPlan, StepResult
from vllm.core.request import TokenLogprobs
from vllm.kv.manager import KVManager

VOCAB = 50


def sampled(tokens: list[int], seed: int) -> int:
    return zlib.crc32(f"{tokens} {seed}".encode()) % VOCAB


def told(tokens: list[int]) -> TokenLogprobs:
    """What the worker says of the last of these prompt tokens."""
    return TokenLogprobs([tokens[-1]], [-float(zlib.crc32(str(tokens).encode()) % 1000)], 1)


@dataclass
class Row:
    new: NewSequence
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)


class FakeExecutor:
    def __init__(self, kv: KVManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.kv = kv
        self.size = kv.spec.block_size
        self.max_num_seqs, self.max_tokens = max_num_seqs, max_num_batched_tokens
        self.rows: dict[int, Row] = {}
        # [block, offset]: a digest; 8 bytes a token, as in the arena of such a spec in float32
        self.memory = np.zeros((kv.num_blocks, self.size), dtype=np.uint64)
        self.writer: dict[int, int] = {}  # block -> the sequence that wrote to it last
        self.computed: dict[int, int] = {}  # sequence -> tokens computed, over all its lives
        self.steps = 0
        self.ended: set[int] = set()

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        self._apply(plan)
        self._check(plan)
        tokens = []
        logprobs: dict[int, list[TokenLogprobs]] = {}
        for i, seq in enumerate(plan.seqs):
            row, start, count = self.rows[seq], int(plan.starts[i]), int(plan.counts[i])
            self._write(seq, row, start, count)
            self._read(row, start + count)
            if row.new.params.prompt_logprobs is not None:
                end = min(start + count, row.new.prompt_len - 1)
                made = [told(row.tokens[: p + 2]) for p in range(start, end)]
                if made:
                    logprobs[seq] = made
            if plan.sample[i]:
                tokens.append(sampled(row.tokens, row.new.sampling_seed))
                row.tokens.append(tokens[-1])
        return StepResult(tokens, prompt_logprobs=logprobs or None)

    def shutdown(self) -> None:
        pass

    def view(self, block: int) -> memoryview:
        """As `core.plan.BlockIO`."""
        return memoryview(self.memory[block].view(np.uint8))

    def _apply(self, plan: StepPlan) -> None:
        for seq in plan.park:
            self._park(seq)
        for seq in plan.forget:
            self._forget(seq)
        for new in plan.new:
            assert new.seq not in self.rows, "a sequence is new twice"
            self.rows[new.seq] = Row(new, list(new.tokens))
            assert new.seq in plan.seqs, "a new sequence has no row"
        assert len(self.rows) <= self.max_num_seqs, "more sequences than the worker has rows"
        for i, (seq, blocks) in enumerate(zip(plan.seqs, plan.blocks, strict=True)):
            assert seq in self.rows, "a sequence that was forgotten, or never known, is in the plan"
            self._extend(seq, blocks, int(plan.starts[i] + plan.counts[i]))

    def _forget(self, seq: int) -> None:
        self.rows.pop(seq, None)

    def _park(self, seq: int) -> None:
        del self.rows[seq]

    def _extend(self, seq: int, blocks: list[int], tokens: int) -> None:
        """These came to the sequence's table, which shall hold so many tokens."""
        mine = self.rows[seq].blocks
        mine += blocks
        assert mine == self.kv.blocks(seq), "the worker's table is another"
        assert (tokens - 1) // self.size < len(mine)

    def _check(self, plan: StepPlan) -> None:
        assert len(set(plan.seqs)) == len(plan.seqs)
        assert len(plan.seqs) == len(plan.starts) == len(plan.counts) == len(plan.sample)
        assert plan.num_tokens <= self.max_tokens
        assert (plan.counts > 0).all()
        assert (plan.starts >= 0).all()
        remaining = []
        for i, seq in enumerate(plan.seqs):
            known = len(self.rows[seq].tokens)
            start, count = int(plan.starts[i]), int(plan.counts[i])
            assert start + count <= known, "a token that nobody knows yet"
            assert bool(plan.sample[i]) == (start + count == known)
            new = seq in [n.seq for n in plan.new]
            remaining.append((known - start == 1 and not new, new))
        kinds = [(not decode, new) for decode, new in remaining]
        assert kinds == sorted(kinds), "decodes first, then prompts, those that are new last"

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self.size], position % self.size

    def _write(self, seq: int, row: Row, start: int, count: int) -> None:
        for position in range(start, start + count):
            block, offset = self._slot(row, position)
            assert not self.kv._pool.is_published(block), "a published block is written"
            others = [s for s, r in self.rows.items() if s != seq and block in r.blocks]
            assert not others, "a block that others hold is written"
            self.memory[block, offset] = self._digest(row.tokens[: position + 1])
        self.computed[seq] = self.computed.get(seq, 0) + count

    def _read(self, row: Row, end: int) -> None:
        """Attention: every KV before `end` must be the one of this very prefix."""
        for position in range(end):
            expected = self._digest(row.tokens[: position + 1])
            assert self.memory[self._slot(row, position)] == expected, "a wrong KV is read"

    @staticmethod
    def _digest(tokens: list[int]) -> int:
        return zlib.crc32(str(tokens).encode()) + 1


def oracle(
    prompt: list[int],
    seed: int,
    *,
    max_tokens: int,
    max_model_len: int,
    stop: tuple[int, ...] = (),
    eos: tuple[int, ...] = (),
    min_tokens: int = 0,
) -> tuple[list[int], str, int | None]:
    """One sequence, all alone: its tokens, its finish reason and its stop reason."""
    tokens = list(prompt)
    while True:
        tokens.append(sampled(tokens, seed))
        out = tokens[len(prompt) :]
        if len(out) >= min_tokens and out[-1] in eos:
            return out, "stop", None
        if len(out) >= min_tokens and out[-1] in stop:
            return out, "stop", out[-1]
        if len(out) >= max_tokens or len(tokens) >= max_model_len:
            return out, "length", None
