"""The inputs of compressed sequences: where each token's KV goes, head by head."""

from __future__ import annotations

import numpy as np
import pytest

from vllm.kv.table import HeadTable
from vllm.worker.inputs import _heads

LAYERS, HEADS, SIZE = 3, 2, 4


def table(rng: np.random.Generator) -> HeadTable:
    lengths = rng.integers(1, 30, (LAYERS, HEADS)).astype(np.int32)
    most = -(-int(lengths.max()) // SIZE)
    blocks = rng.permutation(10_000)[: LAYERS * HEADS * most].astype(np.int32)
    return HeadTable(blocks.reshape(LAYERS, HEADS, most), lengths, 100, SIZE, int(lengths.sum()))


@pytest.mark.parametrize("sequences", [1, 2, 7, 16])
@pytest.mark.parametrize("most", [1, 3])
def test_slots_are_the_ends_of_heads(sequences: int, most: int) -> None:
    rng = np.random.default_rng(sequences)
    tables = [table(rng) for _ in range(sequences)]
    counts = rng.integers(1, most + 1, sequences)
    for t in tables:
        t.first[:] = np.maximum(t.first, most)
    made = _heads(tables, counts)
    expected = [
        [
            [
                int(t.head_blocks[layer, head, at // SIZE]) * SIZE + at % SIZE
                for head in range(HEADS)
                for at in [int(t.lengths[layer, head]) - back]
            ]
            for t, count in zip(tables, counts, strict=True)
            for back in range(int(count), 0, -1)
        ]
        for layer in range(LAYERS)
    ]
    assert made.slots.tolist() == expected
    for layer in range(LAYERS):  # as the kernels take them
        assert made.slots[layer].is_contiguous()
        assert made.tables[layer].is_contiguous()
        assert made.lengths[layer].is_contiguous()
