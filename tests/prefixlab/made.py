"""Traces made for the tests: requests that continue each other, with partial ends."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from vllm.prefixlab.trace import Trace, TraceBuilder, dense

BLOCK = 4


def accesses(seed: int, count: int, universe: int) -> np.ndarray:
    """int32 [count]: single accesses, few ids often and many seldom, dense."""
    rng = np.random.default_rng(seed)
    return dense(rng.zipf(1.2, count).astype(np.int64) % universe)


def chains(seed: int, requests: int, *, roots: int = 3, longest: int = 8) -> Trace:
    """Requests over a growing forest: each takes a known path some way and then leaves it."""
    rng = np.random.default_rng(seed)
    builder = TraceBuilder(BLOCK, "made")
    paths: list[list[int]] = [[root] for root in range(roots)]
    fresh = roots
    time = 0.0
    for _ in range(requests):
        time += float(rng.exponential(5.0))
        path = paths[int(rng.integers(len(paths)))]
        kept = path[: int(rng.integers(1, len(path) + 1))]
        more = int(rng.integers(0, longest))
        ids = (kept + list(range(fresh, fresh + more)))[: 2 * longest]
        fresh += more
        partial = int(rng.integers(0, BLOCK))
        tokens = len(ids) * BLOCK + partial
        if partial:
            ids = [*ids, fresh]
            fresh += 1
        builder.add(
            ids,
            tokens,
            int(rng.integers(0, 9)),
            time,
            session=int(rng.integers(4)),
            turn=int(rng.integers(3)),
            workload=("chat", "qa")[int(rng.integers(2))],
        )
        paths.append([i for i in ids if not partial or i != ids[-1]] or [ids[0]])
    return builder.build()


def flat(ids: np.ndarray) -> Trace:
    """A trace whose requests are single accesses."""
    builder = TraceBuilder(1, "flat")
    for time, i in enumerate(ids.tolist()):
        builder.add([i], 1, 0, float(time))
    return builder.build()


seeds = st.integers(0, 10**6)
