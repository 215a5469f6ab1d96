"""The engine's steps over arrays, compiled: what `Scheduler` and `KVManager` do, without objects.

For the plain engine only: first come first served, LRU, no tiers, no compression. There sequences
start in the order of their numbers; blocks are all alike, so none has an id; and the eviction order
is closed by itself, as whoever uses a block uses those before it until then as well. Everything
else is step for step as there: tests hold both against each other.

    names, copies   sequence s: [first, first + blocks)        its blocks' keys, by number
    keys            0 is the ring of those that nobody uses: `after` the oldest, `before` the latest
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

COUNTS = np.dtype(
    [
        ("now", "f8"),
        ("busy", "f8"),  # seconds of steps
        ("steps", "i8"),
        ("free", "i8"),  # blocks without content that anybody could find
        ("idle", "i8"),  # blocks that are cached, and nobody's
        ("running", "i8"),
        ("back", "i8"),  # preempted ones that wait
        ("fresh", "i8"),  # the first that has never been preempted, and waits
        ("added", "i8"),
        ("ended", "i8"),
        ("block_size", "i8"),
        ("budget", "i8"),  # tokens a step
        ("most", "i8"),  # sequences at once
        ("chunk", "i8"),  # tokens of one sequence a step
        ("whole", "i8"),  # 1: a prompt only starts where the step has budget for all of it
        ("caching", "i8"),
    ]
)
SEQUENCES = np.dtype(
    [
        ("first", "i8"),  # of its places in `names`
        ("prompt", "i8"),
        ("length", "i8"),
        ("goal", "i8"),  # the length at which it ends
        ("computed", "i8"),
        ("blocks", "i8"),
        ("published", "i8"),
        ("cached", "i8"),  # tokens that it found at first; -1: not yet
        ("preemptions", "i8"),
        ("told", "f8"),  # when it had its first token
        ("end", "f8"),
    ]
)
LATENCY = np.dtype(
    [
        (name, "f8")
        for name in (
            "step prefill sequence kv "  # of Linear
            "weights always experts chosen kv_bytes pair_flops flops bandwidth"  # of Roofline
        ).split()
    ]
)
KEYS = np.dtype([("there", "i1"), ("refs", "i4"), ("before", "i4"), ("after", "i4")])


class State(NamedTuple):
    """All that an engine is."""

    counts: np.ndarray  # COUNTS [1]
    sequences: np.ndarray  # SEQUENCES [added, at least]
    keys: np.ndarray  # KEYS, by number
    names: np.ndarray  # int32: keys of blocks
    copies: np.ndarray  # int8: whether the block is a copy of what was published already
    running: np.ndarray  # int32 [most]; the last is preempted first
    back: np.ndarray  # int32 [most]; the last starts first. Together they are in order
    rows: np.ndarray  # int32 [most]: the step's sequences
    shares: np.ndarray  # int64 [most]: and how many tokens each computes
    ended: np.ndarray  # int32 [most]: in the last step that was made
    latency: np.ndarray  # LATENCY [1]


@njit(cache=True)
def run(state: State, until: float) -> bool:
    """Steps up to the first with which a sequence ends, or time comes to `until`; one at least.

    False: nothing could be computed.
    """
    count = state.counts[0]
    count.ended = 0
    while True:
        rows = _schedule(state)
        if rows == 0:
            return False
        _pass(state, rows)
        _update(state, rows)
        if count.ended or count.now >= until:
            return True


@njit(cache=True)
def waiting(count: Any) -> int:
    return count.back + count.added - count.fresh


@njit(cache=True)
def _schedule(state: State) -> int:
    """The step's rows, and how many: decodes, prompts, then those that start."""
    count = state.counts[0]
    rows, budget, preempted = 0, count.budget, False
    i = 0
    while i < count.running and budget:
        s = state.running[i]
        it = state.sequences[s]
        if it.length - it.computed == 1:
            if it.length > it.blocks * count.block_size:
                while count.free + count.idle == 0 and i < count.running:
                    preempted = True
                    _preempt(state)
                if i == count.running:
                    break
                _take(state, 1)
                it.blocks += 1
            state.rows[rows], state.shares[rows] = s, 1
            rows += 1
            budget -= 1
        i += 1
    for i in range(count.running):
        s = state.running[i]
        left = state.sequences[s].length - state.sequences[s].computed
        if left != 1 and budget:
            share = min(left, budget, count.chunk)
            state.rows[rows], state.shares[rows] = s, share
            rows += 1
            budget -= share
    admitting = not preempted or count.running == 0
    while admitting and budget:
        s = _admit(state, budget)
        if s < 0:
            break
        left = state.sequences[s].length - state.sequences[s].computed
        share = min(left, budget, count.chunk)
        state.rows[rows], state.shares[rows] = s, share
        rows += 1
        budget -= share
    return rows


@njit(cache=True)
def _admit(state: State, budget: int) -> int:
    """Who starts, with blocks for all of its tokens; -1: nobody can."""
    count = state.counts[0]
    if count.running >= count.most or waiting(count) == 0:
        return -1
    s = state.back[count.back - 1] if count.back else count.fresh
    it = state.sequences[s]
    if count.whole and it.length > budget:
        return -1
    found = unheld = 0
    most = (it.length - 1) // count.block_size if count.caching else 0
    while found < most:
        key = state.keys[state.names[it.first + found]]
        if not key.there:
            break
        unheld += key.refs == 0
        found += 1
    blocks = -(-it.length // count.block_size)
    if blocks - found + count.running > count.free + count.idle - unheld:
        return -1
    for i in range(it.first, it.first + found):
        _hold(state, state.names[i])
    _take(state, blocks - found)
    state.copies[it.first : it.first + blocks] = 0
    it.blocks, it.published, it.computed = blocks, found, found * count.block_size
    if it.cached < 0:
        it.cached = it.computed
    if count.back:
        count.back -= 1
    else:
        count.fresh += 1
    state.running[count.running] = s
    count.running += 1
    return int(s)


@njit(cache=True)
def _pass(state: State, rows: int) -> None:
    """The step's time."""
    count = state.counts[0]
    prefill = sequences = kv_tokens = pairs = 0
    for row in range(rows):
        tokens = state.shares[row]
        start = state.sequences[state.rows[row]].computed
        if tokens == 1:
            sequences += 1
        else:
            prefill += tokens
        kv_tokens += start + tokens
        pairs += tokens * start + tokens * (tokens + 1) // 2
    took = seconds(state.latency[0], prefill, sequences, kv_tokens, pairs)
    count.steps += 1
    count.busy += took
    count.now += took


@njit(cache=True)
def seconds(model: Any, prefill: int, sequences: int, kv_tokens: int, pairs: int) -> float:
    """As `latency.Linear` and `latency.Roofline`, bit by bit; both at once, one of them is 0."""
    tokens = prefill + sequences
    linear = model.prefill * prefill + model.sequence * sequences + model.kv * kv_tokens
    touched = 1 - (1 - model.chosen) ** float(tokens)
    computing = (2 * model.weights * tokens + model.pair_flops * pairs) / model.flops
    read = model.always + model.experts * touched + model.kv_bytes * kv_tokens
    return model.step + linear + max(computing, read / model.bandwidth)


@njit(cache=True)
def _update(state: State, rows: int) -> None:
    """What the step has computed is published; tokens, and ends."""
    count = state.counts[0]
    for row in range(rows):
        s = state.rows[row]
        it = state.sequences[s]
        it.computed += state.shares[row]
        if count.caching:
            full = it.computed // count.block_size
            for i in range(it.first + it.published, it.first + full):
                key = state.keys[state.names[i]]
                if key.there:
                    state.copies[i] = 1
                else:
                    key.there, key.refs = 1, 1
            it.published = full
        if it.computed < it.length:
            continue
        it.length += 1
        if it.length == it.prompt + 1:
            it.told = count.now
        if it.length < it.goal:
            continue
        it.end = count.now
        _remove(state.running, count.running, s)
        count.running -= 1
        _release(state, it)
        state.ended[count.ended] = s
        count.ended += 1


@njit(cache=True)
def _preempt(state: State) -> None:
    """The last that runs waits again, and computes anew what is not cached by then."""
    count = state.counts[0]
    count.running -= 1
    s = state.running[count.running]
    it = state.sequences[s]
    _release(state, it)
    it.computed = 0
    it.preemptions += 1
    state.back[count.back] = s
    count.back += 1


@njit(cache=True)
def _remove(order: np.ndarray, size: int, s: int) -> None:
    i = 0
    while order[i] != s:
        i += 1
    for j in range(i, size - 1):
        order[j] = order[j + 1]


@njit(cache=True)
def _take(state: State, blocks: int) -> None:
    """Blocks for somebody: those that are free, then those that were used longest ago."""
    count = state.counts[0]
    for _ in range(blocks - count.free):
        oldest = state.keys[0].after
        _unlink(state.keys, oldest)
        state.keys[oldest].there = 0
        count.idle -= 1
        count.free += 1
    count.free -= blocks


@njit(cache=True)
def _hold(state: State, k: int) -> None:
    key = state.keys[k]
    if key.refs == 0:
        _unlink(state.keys, k)
        state.counts[0].idle -= 1
    key.refs += 1


@njit(cache=True)
def _release(state: State, it: Any) -> None:
    """Its blocks, last one first, as `BlockPool.release_used`."""
    count = state.counts[0]
    count.free += it.blocks - it.published
    for i in range(it.first + it.published - 1, it.first - 1, -1):
        k = state.names[i]
        key = state.keys[k]
        if state.copies[i] and key.there:
            if key.refs == 0:  # in use until now, by its copy
                _unlink(state.keys, k)
                _link(state.keys, k)
            count.free += 1
            continue
        if state.copies[i]:  # it has been evicted since: the copy takes its place
            key.there, key.refs = 1, 1
        key.refs -= 1
        if key.refs == 0:
            _link(state.keys, k)
            count.idle += 1
    it.blocks = it.published = 0


@njit(cache=True)
def _link(keys: np.ndarray, k: int) -> None:
    latest = keys[0].before
    keys[k].before, keys[k].after = latest, 0
    keys[latest].after = k
    keys[0].before = k


@njit(cache=True)
def _unlink(keys: np.ndarray, k: int) -> None:
    before, after = keys[k].before, keys[k].after
    keys[before].after = after
    keys[after].before = before
