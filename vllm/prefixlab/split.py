"""How to share a cache out among workloads, from each one's own LRU curve.

Memory goes, piece after piece, to the workload whose hits grow most by it. Curves have steps, so
that is done on their concave hulls: the best split there is, to within one step of one curve.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vllm.prefixlab.curve import knots, lru_hits
from vllm.prefixlab.trace import dense
from vllm.prefixlab.view import Mask, View

KNOTS = 400  # of a curve


def curve_of(view: View, requests: Mask) -> npt.NDArray[np.int64]:
    """int64 [own blocks + 1]: LRU's hits at each capacity, had these requests (bool) the cache."""
    part = view.trace.only(requests[view.trace.request])
    return lru_hits(View(replace(part, ids=dense(part.ids)), view.semantics))


def hull(hits: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Corners (capacity, hits) of the least concave curve that is nowhere below the given one."""
    corners: list[tuple[int, int]] = [(0, 0)]
    for capacity in knots(hits.size - 1, KNOTS) if hits.size > 1 else []:
        at = (capacity, int(hits[capacity]))
        while len(corners) > 1 and _left(corners[-2], corners[-1], at):
            corners.pop()
        corners.append(at)
    return corners


def _left(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def split(view: View, capacity: int) -> dict[str, int]:
    """Blocks for each workload, `capacity` in all unless nobody has a use for the rest."""
    trace = view.trace
    pieces: list[tuple[float, int, str]] = []
    for number, name in enumerate(trace.workloads):
        corners = hull(curve_of(view, trace.workload == number))
        for (c0, h0), (c1, h1) in pairwise(corners):
            pieces.append(((h1 - h0) / (c1 - c0), c1 - c0, name))
    # A hull's slopes fall, so its pieces come in their order.
    pieces.sort(key=lambda piece: -piece[0])
    parts = dict.fromkeys(trace.workloads, 0)
    left = capacity
    for slope, blocks, name in pieces:
        if slope <= 0 or not left:
            break
        given = min(blocks, left)
        parts[name] += given
        left -= given
    return parts


def quota(view: View, capacity: int) -> str:
    """The policy `quota:NAME=BLOCKS,...` of that split. Raises ValueError for names with commas."""
    parts = {name: blocks for name, blocks in split(view, capacity).items() if blocks}
    if any("," in name for name in parts):
        raise ValueError("workload: a name with a comma cannot have a quota")
    if not parts:  # nobody reuses anything
        return "quota"
    return "quota:" + ",".join(f"{name}={blocks}" for name, blocks in parts.items())


def allow(view: View) -> str:
    """The policy `allow:NAME,...` of the workloads that reuse most.

    Those whose own ceiling is more than half of the highest. Raises ValueError for names with
    commas.
    """
    trace = view.trace
    ceilings = {}
    for number, name in enumerate(trace.workloads):
        mine = trace.workload == number
        accesses = int(mine[trace.request].sum())
        ceilings[name] = int(curve_of(view, mine)[-1]) / max(1, accesses)
    listed = [name for name, ceiling in ceilings.items() if 2 * ceiling > max(ceilings.values())]
    if any("," in name for name in listed):
        raise ValueError("workload: a name with a comma cannot be in an allow list")
    return "allow:" + ",".join(listed or ceilings)
