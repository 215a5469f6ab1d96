"""What a worker remembers of each sequence: one fixed row from its first step to its last.

Plans send differences, rows keep the whole; a preempted sequence is forgotten and sent again. All
of a step's inputs are gathered from the rows at once, with numpy.
"""

from __future__ import annotations

import numpy as np

from vllm.core.plan import NewSequence, StepPlan
from vllm.kv.table import HeadTable


class Rows:
    """`capacity` rows of up to `max_len` tokens, in blocks of `block_size`.

    The large arrays are only reserved: the operating system hands out their pages as rows fill.
    """

    def __init__(self, capacity: int, max_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.tokens = np.zeros((capacity, max_len + 1), dtype=np.int32)
        self.table = np.zeros((capacity, -(-max_len // block_size)), dtype=np.int32)
        self.num_blocks = np.zeros(capacity, dtype=np.int32)
        self.length = np.zeros(capacity, dtype=np.int32)  # known tokens
        self.prompt_len = np.zeros(capacity, dtype=np.int32)
        self.new: list[NewSequence | None] = [None] * capacity
        self.tables: dict[int, HeadTable] = {}  # of rows whose sequences are compressed
        self._parked: dict[int, HeadTable] = {}
        self._row: dict[int, int] = {}
        self._free = list(reversed(range(capacity)))

    def apply(self, plan: StepPlan) -> tuple[np.ndarray, list[int]]:
        """Bring the rows up to the plan. Returns the plan's rows, and those that are new."""
        for seq in plan.park:
            table = self._leave(seq)
            if table is not None:
                self._parked[seq] = table
        for seq in plan.forget:
            self._leave(seq)
            self._parked.pop(seq, None)
        fresh = []
        for new in plan.new:
            row = self._free.pop()
            self._row[new.seq] = row
            self.new[row] = new
            count = len(new.tokens)
            self.tokens[row, :count] = new.tokens
            self.length[row] = count
            self.prompt_len[row] = new.prompt_len
            self.num_blocks[row] = 0
            parked = self._parked.pop(new.seq, None)
            if new.resumed and parked is not None and new.head_blocks is not None:
                self.tables[row], _ = parked.elsewhere(new.head_blocks)
            if new.choice is not None and new.head_blocks is not None:
                self.tables[row], _ = HeadTable.of(
                    new.head_blocks, new.choice.lengths, new.choice.tokens, self.block_size
                )
            fresh.append(row)
        rows = np.array([self._row[seq] for seq in plan.seqs], dtype=np.int64)
        for i, (row, added) in enumerate(zip(rows.tolist(), plan.blocks, strict=True)):
            table = self.tables.get(row)
            if table is not None:
                tokens = int(plan.starts[i] + plan.counts[i])
                table.extend(tokens, np.array(added, dtype=np.int32))
            elif added:
                held = self.num_blocks[row]
                self.table[row, held : held + len(added)] = added
                self.num_blocks[row] = held + len(added)
        return rows, fresh

    def _leave(self, seq: int) -> HeadTable | None:
        """The sequence has no row any more. Returns its table if it was compressed."""
        row = self._row.pop(seq, None)
        if row is None:
            return None
        self.new[row] = None
        self._free.append(row)
        return self.tables.pop(row, None)

    def row(self, seq: int) -> int:
        return self._row[seq]

    def append(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """The step sampled one token for each of `rows`."""
        self.tokens[rows, self.length[rows]] = tokens
        self.length[rows] += 1
