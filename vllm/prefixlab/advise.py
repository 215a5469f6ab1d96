"""Advice: the least memory for a share of the ceiling, and which policy is best, how surely."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.prefixlab.curve import lru_hits
from vllm.prefixlab.geometry import Geometry
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import replay
from vllm.prefixlab.view import Outcome, View

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
RESAMPLES, CLUSTERS = 1000, 1000
LEVEL = 0.95


def sizes(view: View, geometry: Geometry, shares: Iterable[float] = SHARES) -> list[dict[str, Any]]:
    """For each share of what a cache without limits hits: the least LRU, and the least optimum."""
    hits = lru_hits(view)
    ceiling, accesses = int(hits[-1]), max(1, view.trace.accesses)
    rows = []
    for share in shares:
        wanted = int(np.ceil(share * ceiling - 1e-9))
        lru = max(1, int(np.searchsorted(hits, wanted)))
        best = _least(view, wanted, lru)
        row: dict[str, Any] = {
            "semantics": view.semantics,
            "share_of_ceiling": share,
            "hit_rate": wanted / accesses,
            "lru_capacity": lru,
            "optimal_capacity": best,
            "lru_gib": geometry.gib(lru, view.trace.block_size),
            "optimal_gib": geometry.gib(best, view.trace.block_size),
        }
        rows.append(row)
    return rows


def _least(view: View, wanted: int, enough: int) -> int:
    """The least capacity at which the optimum has so many hits; `enough` blocks do for LRU."""
    low, high = 1, enough
    while low < high:
        middle = (low + high) // 2
        if int(replay(view, OPTIMAL, middle).hits.sum(dtype=np.int64)) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


def ranking(outcomes: list[Outcome], seed: int = 0) -> list[dict[str, Any]]:
    """Policies by token hit rate, the best first, with intervals of the rate and of its lead.

    `lead` is over the next one down. Intervals hold 95% of `RESAMPLES` bootstraps, in which whole
    sessions are drawn, or without sessions whole stretches of time: requests of one conversation
    are not independent. All policies see the same draws, so leads are compared pair by pair.
    """
    if not outcomes:
        return []
    draws = _draws(outcomes[0].view, seed)
    cluster = _clusters(outcomes[0].view)
    asked = _sums(cluster, outcomes[0].view.trace.input_len)
    rates = []
    for outcome in outcomes:
        cached = _sums(cluster, outcome.per_request())
        drawn = (draws @ cached) / np.maximum(1.0, draws @ asked)
        rates.append((float(cached.sum() / max(1.0, asked.sum())), drawn, outcome))
    rates.sort(key=lambda entry: -entry[0])
    rows = []
    for place, (rate, drawn, outcome) in enumerate(rates):
        low, high = _interval(drawn)
        row = {
            "semantics": outcome.view.semantics,
            "policy": outcome.policy,
            "capacity": outcome.capacity,
            "token_hit_rate": rate,
            "low": low,
            "high": high,
        }
        if place + 1 < len(rates):
            below, others, _ = rates[place + 1]
            row["lead"] = rate - below
            row["lead_low"], row["lead_high"] = _interval(drawn - others)
        rows.append(row)
    return rows


Floats = npt.NDArray[np.float64]


def _clusters(view: View) -> npt.NDArray[np.int64]:
    """[requests]: which of at most CLUSTERS groups each belongs to, drawn or left out together."""
    trace = view.trace
    if (trace.session >= 0).all() and np.unique(trace.session).size > 1:
        return trace.session.astype(np.int64) % CLUSTERS
    stretch = max(1, -(-trace.requests // CLUSTERS))
    # Fewer, longer stretches while there are enough of them: neighbours are alike.
    stretch = max(stretch, min(64, trace.requests // 20))
    return np.arange(trace.requests, dtype=np.int64) // max(1, stretch)


def _draws(view: View, seed: int) -> Floats:
    """[RESAMPLES, clusters]: how often each cluster is drawn."""
    count = int(_clusters(view).max()) + 1
    rng = np.random.default_rng(seed)
    drawn: Floats = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    return drawn


def _sums(cluster: npt.NDArray[np.int64], values: npt.NDArray[np.int32]) -> Floats:
    summed: Floats = np.bincount(cluster, values, int(cluster.max()) + 1).astype(np.float64)
    return summed


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def shared_prefixes(view: View, count: int = 20) -> list[dict[str, Any]]:
    """The prefixes that most tokens are shared in: how long, and by how many requests.

    A prefix ends where some of those who share it go on differently, or end. Longer ones lie within
    shorter ones, so their tokens are not to be added up.
    """
    trace = view.trace
    uses = np.bincount(trace.ids, minlength=trace.universe)
    _, first = np.unique(trace.ids, return_index=True)
    depth = trace.depth[first]
    child_uses = np.zeros(trace.universe, np.int64)
    inner = np.flatnonzero(depth > 0)
    np.maximum.at(child_uses, trace.ids[first[inner] - 1], uses[inner])
    ends = np.flatnonzero((uses > 1) & (child_uses < uses))
    tokens = (depth + 1).astype(np.int64) * trace.block_size
    saved = (uses - 1) * tokens
    best = ends[np.argsort(-saved[ends], kind="stable")[:count]]
    whole = max(1, int(trace.input_len.sum(dtype=np.int64)))
    return [
        {
            "semantics": view.semantics,
            "tokens": int(tokens[i]),
            "requests": int(uses[i]),
            "first_request": int(trace.request[first[i]]),
            "shared_tokens": int(saved[i]),
            "share_of_prompts": int(saved[i]) / whole,
        }
        for i in best
    ]
