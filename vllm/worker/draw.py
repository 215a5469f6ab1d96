"""Tokens drawn from rows of logits; a row's token depends on nothing but the row and its number.

Randomness is counter based: the uniform number that picks the token at position p of a sequence is
a function of (sampling seed, p) alone. A request's tokens therefore depend neither on what else is
in the batch nor on a preemption in between.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm.core.splitmix import GOLDEN, finalized_all

CANDIDATES = 512  # top-p looks at so many of the likeliest before it sorts more of the vocabulary


def draw(
    logits: Tensor, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray, uniform: np.ndarray
) -> Tensor:
    """One token a row from softmax(logits), cut by top-k, then top-p, then min-p.

    logits float32 [S, V]; the rest [S], uniform in [0, 1). Inverse transform sampling: the first
    token at which the cumulated probability passes `uniform`, in the order of ids, or of falling
    probability in a row that top-k or top-p cuts. A row's token does not depend on other rows.
    Returns int64 [S].
    """
    probs = logits.softmax(-1)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    cut = (top_k > 0) | (top_p < 1)
    whole = np.flatnonzero(~cut)
    if len(whole):
        at = torch.from_numpy(whole)
        tokens[at] = _inverse(_cut_min_p(probs[at], min_p[whole]), uniform[whole])
    few = np.flatnonzero(cut)
    if len(few):
        at = torch.from_numpy(few)
        arguments = (logits[at], probs[at], top_k[few], top_p[few], min_p[few], uniform[few])
        tokens[at] = _draw_cut(*arguments)
    return tokens


def _draw_cut(
    logits: Tensor,
    probs: Tensor,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    uniform: np.ndarray,
) -> Tensor:
    """`draw` for rows of which only the likeliest tokens matter."""
    vocab = logits.shape[1]
    tokens = torch.empty(len(logits), dtype=torch.int64)
    left = np.arange(len(logits))
    count = int(np.where(top_k > 0, top_k, CANDIDATES).max())
    while len(left):
        count = min(count, vocab)
        at = torch.from_numpy(left)
        ordered = _largest(logits[at], count)
        tokens[at], wide = _draw_ordered(
            probs[at], ordered, top_k[left], top_p[left], min_p[left], uniform[left]
        )
        left = left[wide]  # a flat distribution, of which top-p wants more
        count *= 16
    return tokens


def _draw_ordered(
    probs: Tensor,
    ordered: Tensor,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    uniform: np.ndarray,
) -> tuple[Tensor, np.ndarray]:
    """Draw from ids `ordered` by falling probability; returns also which rows need more of them."""
    weights = probs.gather(1, ordered).double()
    limit = np.where(top_k > 0, top_k, weights.shape[1])
    weights[torch.arange(weights.shape[1]) >= torch.from_numpy(limit).unsqueeze(1)] = 0.0
    mass = weights.cumsum(-1)
    # What top_p is a share of: with top_k what that has left, else everything.
    total = torch.where(torch.from_numpy(top_k > 0), mass[:, -1], 1.0)
    wanted = (torch.from_numpy(top_p) * total).unsqueeze(1)
    drop = mass - weights >= wanted  # the mass before it is enough already
    drop[:, 0] = False
    drop[torch.from_numpy(top_p >= 1)] = False
    weights[drop] = 0.0
    chosen = _inverse(_cut_min_p(weights, min_p), uniform)
    wide = (mass[:, -1:] < wanted).flatten().numpy() & (top_k == 0)
    if weights.shape[1] == probs.shape[1]:
        wide[:] = False
    return ordered.gather(1, chosen.unsqueeze(1)).squeeze(1), np.flatnonzero(wide)


def _largest(values: Tensor, count: int) -> Tensor:
    """Each row's ids of its `count` largest values, falling; of equal ones the lower id first.

    So the first ones do not depend on `count`. values [S, V]; returns int64 [S, count].
    """
    found, ids = values.topk(count, -1)
    ids, by_id = ids.sort(-1)
    found, by_value = found.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    least = found[:, -1:]
    more = np.count_nonzero((values >= least).numpy(), axis=-1) > count
    for s in np.flatnonzero(more):  # some that equal the least were left out
        equal = (values[s] == least[s]).nonzero().flatten()
        above = int((found[s] > least[s]).sum())
        ids[s, above:] = equal[: count - above]
    return ids


def _cut_min_p(probs: Tensor, min_p: np.ndarray) -> Tensor:
    """Drop what is less likely than min_p times the likeliest (Nguyen et al., 2024), in place."""
    if min_p.any():
        probs[probs < probs.amax(-1, keepdim=True) * torch.from_numpy(min_p).unsqueeze(1)] = 0.0
    return probs


def _inverse(weights: Tensor, uniform: np.ndarray) -> Tensor:
    """The first index at which the cumulated weight passes uniform * total; weight 0 never wins."""
    mass = np.cumsum(weights.numpy(), -1, dtype=np.float64)
    target = uniform * mass[:, -1]  # below the total, rounded too: uniform is at most 1 - 2**-53
    found = torch.searchsorted(
        torch.from_numpy(mass), torch.from_numpy(target).unsqueeze(1), right=True
    )
    return found.squeeze(1).clamp_(max=weights.shape[1] - 1)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [S] in [0, 1): SplitMix64 (Steele et al., 2014) over seed, then position."""
    with np.errstate(over="ignore"):
        mixed = finalized_all(seeds.astype(np.uint64) + np.uint64(GOLDEN))
        mixed = finalized_all(mixed ^ (positions.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
