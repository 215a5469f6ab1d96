"""The offline optimum: the most hits that any policy can have, knowing the future.

Belady's MIN with bypass (an id that is not worth a place need not take one). A hit is an interval
between two accesses of one id during which the id stays; at most `capacity` intervals may overlap.
Taken in the order of their ends, each interval goes to the place that became free last before its
start, if there is one (Carlisle and Lloyd, 1995): that accepts the most. One union-find over the
accepted ends answers "which place became free last", so a trace takes O(accesses * alpha).

The next use of a parent is never after that of its child, so MIN keeps prefixes closed by itself
and the flat optimum is the prefix optimum too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

OPTIMAL = "optimal"  # its name among the policies
NONE = -1


@njit(cache=True)
def optimal(
    ids: npt.NDArray[np.int32],
    capacity: int,
    universe: int,
    counts: npt.NDArray[np.uint8],
    hits: npt.NDArray[np.uint8],
) -> None:
    """Mark the hits of the optimum in `hits` (uint8 [accesses]).

    `ids`: int32 [accesses], dense below `universe`. An access whose `counts` (uint8 [accesses]) is
    0 is computed anyway and can be no hit; whoever wants its id later may keep it from there.

    Token k > 0 is the end of the k-th accepted interval, token 0 stands for the places that were
    never taken. `up[k]` is k while the place behind token k is free, else something lower.
    """
    up = np.empty(ids.size + 1, np.int32)
    up[0] = 0
    since = np.full(universe, NONE, np.int32)  # the newest token at the id's last access
    tokens, unused = 0, capacity
    for t in range(ids.size):
        x = ids[t]
        k = since[x]
        if k != NONE and counts[t]:
            while up[k] != k:  # path halving
                up[k] = up[up[k]]
                k = up[k]
            if k > 0 or unused > 0:
                if k > 0:
                    up[k] = k - 1
                else:
                    unused -= 1
                tokens += 1
                up[tokens] = tokens
                hits[t] = 1
        since[x] = tokens
