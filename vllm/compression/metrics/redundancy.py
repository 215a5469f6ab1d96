"""How much a key says what its head's other keys say, and what is left of importance by that."""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.observed import Observed

IMPORTANCE = 0.1  # R-KV's lambda; the rest is redundancy's


def likeness(o: Observed) -> tuple[Tensor, Tensor]:
    """Each key's mean cosine to all keys of its head, float32 [H, T], 0 where padding; and the
    length of their mean direction, [H, 1].

    The mean cosine is one product with that mean, so nothing is as large as the keys but they.
    """
    keys = o.keys.float()
    shrink = o.valid / keys.norm(dim=-1).clamp_min_(1e-12)  # to length 1
    count = o.valid.sum(1).clamp_min(1)
    mean = (shrink / count[:, None]).unsqueeze(1) @ keys  # [H, 1, D]
    return (keys @ mean.transpose(1, 2)).squeeze(-1) * shrink, mean.norm(dim=-1)


def less_redundant(importance: Tensor, redundancy: Tensor, o: Observed) -> Tensor:
    """R-KV's score, float32 [H, T]: lambda * importance - (1 - lambda) * redundancy.

    Both, float32 [H, T], are made shares that sum to 1 over a head.
    """
    valid = o.valid
    important = importance * valid
    share = important / important.sum(-1, keepdim=True).clamp_min(1e-9)
    redundant = redundancy.masked_fill(~valid, float("-inf")).softmax(-1)
    return IMPORTANCE * share - (1 - IMPORTANCE) * redundant
