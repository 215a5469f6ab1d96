"""How much of a trace could be reused at all, by a cache that never evicts; and how soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.prefixlab.trace import Ints, next_use
from vllm.prefixlab.view import Mask, View

Floats = npt.NDArray[np.float64]
PARTS = {
    "reuse_fraction": "share of a prompt's tokens that was reused",
    "hits_per_block": "uses of a block after its first",
    "reuse_gap": "seconds between two uses of a block",
}
# Where a plot's axis becomes logarithmic.
LINEAR = {"reuse_fraction": None, "hits_per_block": 1.0, "reuse_gap": 0.1}


@dataclass(frozen=True)
class Reuse:
    """Of requests: prompt tokens and those reused (int64 [requests]), and the workload.

    Of blocks: `hits_per_block` (int64 [blocks]). Of uses after the first: `reuse_gap` (float64
    [reuses], seconds).
    """

    name: str
    total_tokens: npt.NDArray[np.int64]
    reused_tokens: npt.NDArray[np.int64]
    workload: Sequence[str]
    hits_per_block: npt.NDArray[np.int64]
    reuse_gap: Floats

    @property
    def reuse_fraction(self) -> Floats:
        fraction: Floats = self.reused_tokens / np.maximum(1, self.total_tokens)
        return fraction

    @property
    def ceiling(self) -> float:
        """The hit rate by blocks of a cache that never evicts."""
        hits = int(self.hits_per_block.sum())
        return hits / max(1, hits + self.hits_per_block.size)

    @property
    def token_ceiling(self) -> float:
        return int(self.reused_tokens.sum()) / max(1, int(self.total_tokens.sum()))

    def values(self, part: str) -> Floats:
        """The values of one of PARTS, as float64."""
        return np.asarray(getattr(self, part), np.float64)


def cold(view: View) -> Mask:
    """bool [accesses]: the first use of each block. Ids are dense in the order of first use."""
    ids = view.trace.ids
    if not ids.size:
        return np.zeros(0, bool)
    highest = np.maximum.accumulate(ids)
    first: Mask = np.concatenate(([True], ids[1:] > highest[:-1]))
    return first


def gaps(view: View) -> Floats:
    """float64 [reuses]: seconds from each use of a block to its next one."""
    trace = view.trace
    later = next_use(trace.ids)
    here = np.flatnonzero(later >= 0)
    at = trace.arrival[trace.request]
    passed: Floats = at[later[here]] - at[here]
    return passed


def reuse_of(view: View) -> Reuse:
    """What a cache without limits would reuse of the trace, under the view's semantics."""
    trace = view.trace
    again = ~cold(view) & view.may_hit.view(bool)
    reused = np.bincount(trace.request, weights=trace.tokens * again, minlength=trace.requests)
    uses = np.bincount(trace.ids, weights=again, minlength=trace.universe)
    return Reuse(
        name=trace.name,
        total_tokens=trace.input_len.astype(np.int64),
        reused_tokens=reused.astype(np.int64),
        workload=[trace.workloads[w] for w in trace.workload],
        hits_per_block=uses.astype(np.int64),
        reuse_gap=gaps(view),
    )


def summary(values: Floats | Ints) -> dict[str, Any]:
    """count, mean, median, p90, p99, min, max, and the share above zero; no values: count alone."""
    if not values.size:
        return {"count": 0}
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return {
        "count": int(values.size),
        "mean": float(values.mean()),
        "median": float(median),
        "p90": float(p90),
        "p99": float(p99),
        "min": float(values.min()),
        "max": float(values.max()),
        "above_zero": float((values > 0).mean()),
    }


def cdf(values: Floats | Ints, points: int = 101) -> list[tuple[float, float]]:
    """(value, share of all that are not above it), at most `points` of them; all that differ."""
    if not values.size:
        return []
    found, counts = np.unique(values, return_counts=True)
    shares = np.cumsum(counts) / values.size
    if found.size > points:
        at = np.searchsorted(shares, np.linspace(0, 1, points)).clip(max=found.size - 1)
        at = np.unique(at)
        found, shares = found[at], shares[at]
    return list(zip(found.tolist(), shares.tolist(), strict=True))
