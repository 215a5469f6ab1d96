"""The exact hit rate of prefix-LRU at every capacity, in one pass over the trace.

Mattson's stack (1970) for requests: before a request, the position of a block is the number of
distinct blocks that were used after it, and at capacity C it is resident iff position < C. All of a
request's blocks are looked up first; then they are touched last one first, so that every parent is
more recent than its child, the resident set stays closed under prefixes and a request's hits are
its leading run at each capacity.

Positions come from a Fenwick tree over a window of time slots: a block's newest use is a one, and
the ones after it are counted. When the window is full the live slots are packed together, which
keeps the tree as small as the number of distinct blocks asks for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from vllm.prefixlab.view import View

NONE = -1
FAR = np.int32(2**31 - 1)  # the position of a block that was never used


@njit(cache=True)
def positions(
    ids: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    universe: int,
    out: npt.NDArray[np.int32],
) -> None:
    """Write each access's position before its request into `out` (int32 [accesses]); FAR: cold.

    `ids`: int32 [accesses], dense below `universe`, no id twice in a request.
    `starts`: int64 [requests + 1]. An access hits at capacity C iff out < C.
    """
    longest = 1
    for r in range(starts.size - 1):
        longest = max(longest, starts[r + 1] - starts[r])
    slots = 1 << 12
    while slots < 2 * universe + longest + 2:
        slots *= 2
    slots = min(slots, 1 << 30)
    tree = np.zeros(slots + 1, np.int32)
    slot = np.zeros(universe, np.int32)  # 1-based; 0: never used
    owner = np.zeros(slots + 1, np.int32)
    top, live = 0, 0
    for r in range(starts.size - 1):
        begin, end = starts[r], starts[r + 1]
        if top + (end - begin) > slots:
            top = _pack(tree, slot, owner, top)
        for i in range(begin, end):
            s = slot[ids[i]]
            if s == 0:
                out[i] = FAR
                continue
            older = 0
            while s > 0:
                older += tree[s]
                s &= s - 1
            out[i] = live - older
        for i in range(end - 1, begin - 1, -1):
            x = ids[i]
            s = slot[x]
            if s == 0:
                live += 1
            else:
                while s <= slots:
                    tree[s] -= 1
                    s += s & -s
            top += 1
            slot[x] = top
            owner[top] = x
            s = top
            while s <= slots:
                tree[s] += 1
                s += s & -s


@njit(cache=True)
def _pack(
    tree: npt.NDArray[np.int32], slot: npt.NDArray[np.int32], owner: npt.NDArray[np.int32], top: int
) -> int:
    """Move the live slots to 1 .. live in their order; returns the new top."""
    live = 0
    for s in range(1, top + 1):
        x = owner[s]
        if slot[x] == s:
            live += 1
            owner[live] = x
            slot[x] = live
    size = tree.size - 1
    tree[:] = 0
    for s in range(1, size + 1):
        if s <= live:
            tree[s] += 1
        up = s + (s & -s)
        if up <= size:
            tree[up] += tree[s]
    return live


def lru_positions(view: View) -> npt.NDArray[np.int32]:
    """int32 [accesses]: each access hits an LRU cache of more blocks than this."""
    trace = view.trace
    out = np.empty(trace.accesses, np.int32)
    starts = trace.starts if view.closed else np.arange(trace.accesses + 1)
    positions(trace.ids, starts, trace.universe, out)
    return out


def lru_hits(view: View) -> npt.NDArray[np.int64]:
    """int64 [universe + 1]: the hits of LRU at every capacity, from 0 to all distinct blocks."""
    trace = view.trace
    hits: npt.NDArray[np.int64] = hits_of(lru_positions(view), view.may_hit, trace.universe)
    return hits


@njit(cache=True)
def hits_of(
    positions: npt.NDArray[np.int32], may_hit: npt.NDArray[np.uint8], universe: int
) -> npt.NDArray[np.int64]:
    hits = np.zeros(universe + 1, np.int64)
    for i in range(positions.size):
        if may_hit[i] and positions[i] < universe:
            hits[positions[i] + 1] += 1
    for c in range(universe):
        hits[c + 1] += hits[c]
    return hits


def knots(limit: int, count: int = 48) -> list[int]:
    """At most `count` capacities up to `limit`, evenly spread from 1 on a logarithmic axis."""
    if limit <= count:
        return list(range(1, limit + 1))
    if count == 1:
        return [limit]
    return sorted({round(limit ** (i / (count - 1))) for i in range(count)})
