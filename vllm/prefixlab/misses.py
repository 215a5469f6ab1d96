"""Where the tokens of a trace go: which are hits, and why the others are not.

Engine semantics, for they alone know of partial tails and last tokens:

    prompt  | hit ... | evicted ... | new: cold, diverged or continued ... | partial tail |
              seen before, resident  seen before, gone                       never cached

New tokens are *cold* when the request shares nothing with earlier ones; *diverged* when others went
on differently from the last block that it shares; *continued* when nobody has gone on from there.
The *last token*'s block, when it is full, has to be computed again though it may be resident.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.prefixlab.reuse import Floats, cold
from vllm.prefixlab.view import Outcome

CAUSES = ("hit", "evicted", "cold", "diverged", "continued", "last token", "partial tail")
HIT, EVICTED, COLD, DIVERGED, CONTINUED, LAST, TAIL = range(len(CAUSES))
Counts = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max


def misses(outcome: Outcome) -> tuple[list[dict[str, Any]], Floats]:
    """(rows {cause, requests, blocks, tokens, share}, at which token each request diverged).

    The shares are of all prompt tokens, and sum up to 1. Raises ValueError for other semantics.
    """
    view, trace = outcome.view, outcome.view.trace
    if view.semantics != "engine":
        raise ValueError(f"semantics: misses are told apart under engine, not {view.semantics}")
    new = cold(view)
    known = np.bincount(trace.request, weights=~new, minlength=trace.requests).astype(np.int64)
    kind = _kinds_of_new(outcome, known)
    cause = np.full(trace.accesses, EVICTED)
    cause[new] = kind[trace.request[new]]
    hit = outcome.hits.view(bool)
    cause[hit] = HIT
    # Behind a hit, or alone in its request: nothing but the last token forbids it.
    reached = np.concatenate(([False], hit[:-1])) | (trace.depth == 0)
    cause[~view.may_hit.view(bool) & ~new & reached] = LAST
    tails = trace.input_len % trace.block_size
    whole = max(1, int(trace.input_len.sum(dtype=np.int64)))
    rows = []
    for number, name in enumerate(CAUSES):
        at = cause == number
        tokens = int(trace.tokens[at].sum(dtype=np.int64))
        requests, blocks = np.unique(trace.request[at]).size, int(at.sum())
        if number == TAIL:
            tokens, requests = int(tails.sum(dtype=np.int64)), int((tails > 0).sum())
            blocks = requests
        row = {"cause": name, "requests": requests, "blocks": blocks, "tokens": tokens}
        rows.append(row | {"share": tokens / whole})
    return rows, known[kind == DIVERGED].astype(np.float64) * trace.block_size


def _kinds_of_new(outcome: Outcome, known: Counts) -> Counts:
    """[requests]: COLD, DIVERGED or CONTINUED, for those that have new blocks; -1 for the others.

    known: [requests], how many leading blocks had been seen before.
    """
    trace = outcome.view.trace
    # The first request that went on from each block; its children's parents never change.
    follows = np.flatnonzero(trace.depth > 0)
    first_child = np.full(trace.universe, NEVER)
    np.minimum.at(first_child, trace.ids[follows - 1], trace.request[follows].astype(np.int64))
    kind = np.full(trace.requests, COLD)
    share = np.flatnonzero(known > 0)
    last_known = trace.ids[trace.starts[share] + known[share] - 1]
    kind[share] = np.where(first_child[last_known] < share, DIVERGED, CONTINUED)
    kind[known == trace.lengths] = -1
    return kind
