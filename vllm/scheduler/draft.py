"""The plan that is being made: who has a row, and what is left of the budget."""

from __future__ import annotations

import numpy as np

from vllm.core.plan import Choice, Coasting, Compress, NewSequence, StepPlan
from vllm.scheduler.sequence import Sequence


class Draft:
    """Rows in the order of the plan: decodes, prompts, then those that start."""

    def __init__(self, budget: int) -> None:
        self.sequences: list[Sequence] = []
        self.budget = budget
        self.decodes = 0  # rows of them; with prompts begun, no more are added
        self._counts: list[int] = []
        self._blocks: list[list[int]] = []
        self._new: list[NewSequence] = []

    def add(self, sequence: Sequence, count: int, blocks: list[int]) -> None:
        """A row: it computes so many tokens, with these blocks that it has not had yet."""
        self.sequences.append(sequence)
        self._counts.append(count)
        self._blocks.append(blocks)
        self.budget -= count

    def start(self, sequence: Sequence, new: NewSequence, count: int, blocks: list[int]) -> None:
        """The row of one that the workers do not know."""
        self._new.append(new)
        self.add(sequence, count, blocks)

    def sort_decodes(self) -> None:
        """Bring the decodes into their order; nothing has been added behind them."""
        assert self.decodes == len(self.sequences)
        order = sorted(range(self.decodes), key=lambda row: self.sequences[row].place)
        self.sequences = [self.sequences[row] for row in order]
        self._counts = [self._counts[row] for row in order]
        self._blocks = [self._blocks[row] for row in order]

    def plan(
        self,
        forget: list[int],
        park: list[int],
        compress: list[Compress],
        coasting: Coasting | None,
    ) -> StepPlan:
        rows = self.sequences
        starts = np.array([s.computed for s in rows], dtype=np.int32)
        counts = np.array(self._counts, dtype=np.int32)
        return StepPlan(
            seqs=[s.number for s in rows],
            starts=starts,
            counts=counts,
            sample=starts + counts == np.array([s.length for s in rows], dtype=np.int32),
            blocks=self._blocks,
            new=self._new,
            forget=forget,
            park=park,
            compress=compress,
            coasting=coasting,
        )


def as_new(
    sequence: Sequence, resumed: bool, head_blocks: np.ndarray | None, choice: Choice | None
) -> NewSequence:
    request = sequence.request
    return NewSequence(
        seq=sequence.number,
        tokens=sequence.tokens.whole(),
        prompt_len=sequence.prompt_len,
        params=request.params,
        sampling_seed=sequence.sampling_seed,
        eos_token_ids=request.eos_token_ids,
        bad_words_token_ids=request.bad_words_token_ids,
        grammar=request.grammar,
        compression=sequence.compression,
        resumed=resumed,
        head_blocks=head_blocks,
        stages=[t for t, _ in sequence.points if t < sequence.prompt_len],
        choice=choice,
    )
