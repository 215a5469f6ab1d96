"""What counts as an access and as a hit: the three semantics, and rates of hits under each.

flat    each block of a request by itself, head to tail; any resident one is a hit
prefix  hits are the leading run that is resident before the request starts; then its first
        `capacity` blocks are made resident, touched last one first; no request takes time
engine  prefix, as an engine computes it: only full blocks are ever cached, and the block with the
        prompt's last token is computed again, because that token is what is sampled behind
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.kv.lineage import Key
from vllm.prefixlab.geometry import Geometry
from vllm.prefixlab.trace import Ints, Trace, dense

SEMANTICS = ("flat", "prefix", "engine")
MAX_GROUPS = 64  # told one by one
Hits = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """A trace under one of the semantics: `trace` has the accesses that it knows."""

    trace: Trace
    semantics: str

    @cached_property
    def may_hit(self) -> Hits:
        """uint8 [accesses]: 0 where a block is computed again though it may be resident."""
        trace = self.trace
        if self.semantics != "engine":
            return np.ones(trace.accesses, np.uint8)
        cap = (trace.input_len[trace.request] - 1) // trace.block_size
        return (trace.depth < cap).astype(np.uint8)

    @property
    def closed(self) -> bool:
        """Whether only a leading run can be hit."""
        return self.semantics != "flat"

    @cached_property
    def keys(self) -> list[Key]:
        """Each id's name for a policy: hashes, as the engine's are."""
        names = (i.to_bytes(8, "little") for i in range(self.trace.universe))
        return [Key(hashlib.sha256(name).digest()) for name in names]


def view(trace: Trace, semantics: str) -> View:
    """Raises ValueError for semantics that are not one of SEMANTICS."""
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics: {semantics!r} is not one of {', '.join(SEMANTICS)}")
    if semantics == "engine":
        full = trace.input_len[trace.request] // trace.block_size
        kept = trace.only(trace.depth < full)
        return View(replace(kept, ids=dense(kept.ids)), semantics)
    return View(trace, semantics)


@dataclass(frozen=True)
class Outcome:
    """What one policy at one capacity hit: `hits` is uint8 [accesses] of the view's trace."""

    view: View
    policy: str
    capacity: int
    hits: Hits

    def row(self, requests: Mask | None = None, geometry: Geometry | None = None) -> dict[str, Any]:
        """Hit rates over the `requests` (bool [requests]; None: all), and what they are rates of.

        By block, by prompt token, and with a `geometry` by FLOPs of prefill.
        """
        trace = self.view.trace
        kept = np.ones(trace.requests, bool) if requests is None else requests
        inside = kept[trace.request]
        hit = self.hits.view(bool) & inside
        accesses, hits = int(inside.sum()), int(hit.sum())
        asked = trace.input_len[kept]
        tokens = int(trace.tokens[hit].sum(dtype=np.int64))
        told = {
            "semantics": self.view.semantics,
            "policy": self.policy,
            "capacity": self.capacity,
            "requests": int(kept.sum()),
            "accesses": accesses,
            "hits": hits,
            "hit_rate": hits / max(1, accesses),
            "token_hit_rate": tokens / max(1, int(asked.sum(dtype=np.int64))),
        }
        if geometry is not None:
            first = trace.depth[hit].astype(np.float64) * trace.block_size
            saved = geometry.flops(first, trace.tokens[hit]).sum()
            whole = geometry.flops(np.zeros(asked.size), asked).sum()
            told["flop_hit_rate"] = float(saved / max(1.0, whole))
        return told

    def per_request(self) -> Ints:
        """int32 [requests]: cached tokens of each request."""
        trace = self.view.trace
        tokens = np.bincount(
            trace.request, weights=trace.tokens * self.hits, minlength=trace.requests
        )
        counted: Ints = tokens.astype(np.int32)
        return counted


def warm(trace: Trace, share: float) -> Mask:
    """bool [requests]: those after the first `share` of all."""
    if not 0 <= share < 1:
        raise ValueError(f"warmup: must be at least 0 and below 1, is {share}")
    later: Mask = np.arange(trace.requests) >= round(share * trace.requests)
    return later


def groups(trace: Trace, by: str) -> dict[str, Mask]:
    """Name -> bool [requests], and `others` for those beyond the MAX_GROUPS first or largest.

    Together they are all requests. Raises ValueError for another `by`.
    """
    if by == "workload":
        found = {name: trace.workload == i for i, name in enumerate(trace.workloads)}
    elif by == "turn":
        found = {str(t): trace.turn == t for t in np.unique(trace.turn)[:MAX_GROUPS]}
    elif by == "session":
        sizes = np.bincount(trace.session[trace.session >= 0])
        largest = np.argsort(-sizes, kind="stable")[:MAX_GROUPS]
        found = {str(s): trace.session == s for s in largest}
    else:
        raise ValueError(f"by: {by!r} is not one of workload, session, turn")
    told: Mask = np.zeros(trace.requests, bool)
    for mask in found.values():
        told |= mask
    found["others"] = ~told
    return {name: mask for name, mask in found.items() if mask.any()}
