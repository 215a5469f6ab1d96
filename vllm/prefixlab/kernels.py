"""Flat replay, compiled: one cache of `capacity` ids, each access by itself.

Every function takes `ids` (int32 [accesses], dense: 0 <= id < universe), `capacity` (>= 1) and
`universe`, and marks the hits in `hits` (uint8 [accesses], zeros at the start). Their slow twins
are the policy objects of `vllm.kv.evict` and, for LRU, FIFO, LFU and SIEVE, libCacheSim.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import njit

Ids = npt.NDArray[np.int32]
Hits = npt.NDArray[np.uint8]
NONE = -1


@njit(cache=True)
def lru(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """The trace itself is the queue: an id is resident while its last access is not before `head`.

    ids   . . . | a  b  a  c  b  a ...  t        `head` passes an access that is not its id's
                head                             last for free, and evicts at one that is
    """
    last = np.full(universe, NONE, np.int32)
    head, size = 0, 0
    for t in range(ids.size):
        x = ids[t]
        if last[x] >= head:
            hits[t] = 1
        elif size < capacity:
            size += 1
        else:
            while last[ids[head]] != head:
                head += 1
            head += 1
        last[x] = t


@njit(cache=True)
def fifo(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """Misses are numbered; an id is resident while its number is among the last `capacity`."""
    entered = np.full(universe, NONE, np.int32)
    misses = 0
    for t in range(ids.size):
        x = ids[t]
        if entered[x] != NONE and entered[x] >= misses - capacity:
            hits[t] = 1
        else:
            entered[x] = misses
            misses += 1


@njit(cache=True)
def clock(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """CLOCK with one bit: a used id at the hand loses its bit and stays (Corbato, 1968)."""
    slot = np.full(universe, NONE, np.int32)
    ring = np.zeros(capacity, np.int32)
    used = np.zeros(capacity, np.uint8)
    size, hand = 0, 0
    for t in range(ids.size):
        x = ids[t]
        if slot[x] != NONE:
            hits[t] = 1
            used[slot[x]] = 1
            continue
        if size < capacity:
            place = size
            size += 1
        else:
            while used[hand]:
                used[hand] = 0
                hand = hand + 1 if hand + 1 < capacity else 0
            place = hand
            slot[ring[place]] = NONE
            hand = hand + 1 if hand + 1 < capacity else 0
        slot[x] = place
        ring[place] = x
        used[place] = 0


@njit(cache=True)
def sieve(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """SIEVE (Zhang et al., NSDI'24): CLOCK that puts new ids at the head, not at the hand.

    oldest <- newer -> ... -> head      the hand walks towards the head, then starts again
    """
    slot = np.full(universe, NONE, np.int32)
    owner = np.zeros(capacity, np.int32)
    newer = np.full(capacity, NONE, np.int32)
    older = np.full(capacity, NONE, np.int32)
    used = np.zeros(capacity, np.uint8)
    head, oldest, hand, size = NONE, NONE, NONE, 0
    for t in range(ids.size):
        x = ids[t]
        if slot[x] != NONE:
            hits[t] = 1
            used[slot[x]] = 1
            continue
        if size < capacity:
            place = size
            size += 1
        else:
            place = hand if hand != NONE else oldest
            while used[place]:
                used[place] = 0
                place = newer[place] if newer[place] != NONE else oldest
            hand = newer[place]
            slot[owner[place]] = NONE
            if older[place] != NONE:
                newer[older[place]] = newer[place]
            else:
                oldest = newer[place]
            if newer[place] != NONE:
                older[newer[place]] = older[place]
            else:
                head = older[place]
        slot[x] = place
        owner[place] = x
        used[place] = 0
        older[place], newer[place] = head, NONE
        if head != NONE:
            newer[head] = place
        else:
            oldest = place
        head = place


@njit(cache=True)
def lfu(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """Least frequently used while resident; among equals the least recently used goes first.

    One list of slots a count, oldest first: first[count] ... last[count].
    """
    slot = np.full(universe, NONE, np.int32)
    owner = np.zeros(capacity, np.int32)
    count = np.zeros(capacity, np.int32)
    before = np.full(capacity, NONE, np.int32)
    behind = np.full(capacity, NONE, np.int32)
    accesses = np.zeros(universe, np.int32)
    most = 0
    for t in range(ids.size):
        accesses[ids[t]] += 1
        most = max(most, accesses[ids[t]])
    first = np.full(most + 2, NONE, np.int32)
    last = np.full(most + 2, NONE, np.int32)
    size, least = 0, 1
    for t in range(ids.size):
        x = ids[t]
        place = slot[x]
        if place != NONE or size == capacity:
            if place != NONE:
                hits[t] = 1
            else:
                while first[least] == NONE:
                    least += 1
                place = first[least]
                slot[owner[place]] = NONE
            c = count[place]  # take it out of its list
            if before[place] != NONE:
                behind[before[place]] = behind[place]
            else:
                first[c] = behind[place]
            if behind[place] != NONE:
                before[behind[place]] = before[place]
            else:
                last[c] = before[place]
            c = c + 1 if hits[t] else 1
        else:
            place = size
            size += 1
            c = 1
        slot[x] = place
        owner[place] = x
        count[place] = c
        before[place], behind[place] = last[c], NONE
        if last[c] != NONE:
            behind[last[c]] = place
        else:
            first[c] = place
        last[c] = place
        if c == 1:
            least = 1


@njit(cache=True)
def _s3fifo(ids: Ids, capacity: int, universe: int, hits: Hits, fill_main: bool) -> None:
    """Two rings of ids; `where[x]` is 0 outside, 1 small, 2 main.

    Ghosts stand in `graves`, oldest at `oldest`; grave[x] is x's place there. An id that comes back
    leaves its grave open, which is passed over when the oldest ghost is forgotten.
    """
    small_size = max(1, capacity // 10)
    ghosts = capacity - small_size
    where = np.zeros(universe, np.uint8)
    freq = np.zeros(universe, np.uint8)
    grave = np.full(universe, NONE, np.int32)
    graves = np.empty(ids.size, np.int32)
    oldest, buried, remembered = 0, 0, 0
    span = capacity + 1
    small, main = np.zeros(span, np.int32), np.zeros(span, np.int32)
    s_tail, s_len, m_tail, m_len = 0, 0, 0, 0
    evicted = False
    for t in range(ids.size):
        x = ids[t]
        if where[x]:
            hits[t] = 1
            if freq[x] < 3:
                freq[x] += 1
            continue
        # A ghost's place is read before the eviction below, which may push it out.
        ghost = grave[x] != NONE
        if ghost:
            grave[x] = NONE
            remembered -= 1
        while s_len + m_len >= capacity:
            evicted = True
            if s_len >= small_size or m_len == 0:
                y = small[s_tail]
                s_tail = s_tail + 1 if s_tail + 1 < span else 0
                s_len -= 1
                if freq[y] > 1:
                    where[y] = 2
                    freq[y] = 0
                    at = m_tail + m_len
                    main[at if at < span else at - span] = y
                    m_len += 1
                else:
                    where[y] = 0
                    grave[y] = buried
                    graves[buried] = y
                    buried += 1
                    remembered += 1
                    while remembered > ghosts:
                        if grave[graves[oldest]] == oldest:
                            grave[graves[oldest]] = NONE
                            remembered -= 1
                        oldest += 1
            else:
                y = main[m_tail]
                m_tail = m_tail + 1 if m_tail + 1 < span else 0
                m_len -= 1
                if freq[y]:
                    freq[y] -= 1
                    at = m_tail + m_len
                    main[at if at < span else at - span] = y
                    m_len += 1
                else:
                    where[y] = 0
        freq[x] = 0
        if ghost or (fill_main and not evicted and s_len >= small_size):
            where[x] = 2
            at = m_tail + m_len
            main[at if at < span else at - span] = x
            m_len += 1
        else:
            where[x] = 1
            at = s_tail + s_len
            small[at if at < span else at - span] = x
            s_len += 1


@njit(cache=True)
def s3fifo(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """S3-FIFO (Yang et al., SOSP'23): the small queue may fill the cache while it warms up."""
    _s3fifo(ids, capacity, universe, hits, False)


@njit(cache=True)
def s3fifo_main(ids: Ids, capacity: int, universe: int, hits: Hits) -> None:
    """S3-FIFO as libCacheSim warms it up: what the small queue does not hold goes to main."""
    _s3fifo(ids, capacity, universe, hits, True)


Kernel = Callable[[Ids, int, int, Hits], None]
KERNELS: dict[str, Kernel] = {
    "lru": lru,
    "fifo": fifo,
    "clock": clock,
    "lfu": lfu,
    "sieve": sieve,
    "s3fifo": s3fifo,
    "s3fifo-main": s3fifo_main,
}
