"""Which KVs of one sequence stay. A pure function of scores, positions and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.core.compression import CompressionParams

PYRAMID = 20  # the last layer's share is the average divided by this


@dataclass(frozen=True)
class Protection:
    """Positions that every head keeps: [from_position, end), the first `sinks`, and the spans."""

    from_position: int
    sinks: int = 0
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, params: CompressionParams, length: int) -> Protection:
        window = params.protected_window_size
        return cls(max(0, length - window), params.sinks, params.protected_spans)

    def covers(self, positions: Tensor) -> Tensor:
        """bool, as positions; padding (-1) is never covered."""
        covered = (positions >= self.from_position) | (positions < self.sinks)
        for start, end in self.spans:
            covered |= (positions >= start) & (positions < end)
        return covered & (positions >= 0)


@dataclass(frozen=True)
class Rule:
    """How the budget is shared out.

    budget: global (all heads of all layers compete), per-layer (a layer's heads compete), uniform
    (every head gets the same), pyramid (lower layers more, heads of a layer the same). head_floor:
    the share of an even split that each head is sure of (AdaKV). control_layers keep everything.
    """

    budget: str = "global"
    head_floor: float = 0.0
    control_layers: tuple[int, ...] = ()


def choose(
    scores: Tensor,
    positions: Tensor,
    *,
    block_size: int,
    budget: int,
    protect: Protection,
    rule: Rule,
) -> Tensor:
    """The KVs to keep: bool [L, H, T].

    scores: float32 [L, H, T], higher is kept, NaN lowest. positions: int64 [L, H, T], -1 where
    padding. budget: KVs over all layers and heads.

    Each head's KVs are sorted, the protected ones first, and cut into groups of block_size; a group
    is worth its best member; the best groups stay until the budget is spent. So each head keeps
    whole blocks, or all that it has, and all that goes is memory. No more stays than the budget
    rounded up to blocks, except what is protected, and the blocks that hold it, or in control
    layers.
    """
    layers, heads, kvs = scores.shape
    valid = positions >= 0
    if budget >= int(valid.sum()):
        return valid
    worth = _worth(scores, positions, protect)
    order = _order(worth, positions)
    groups = -(-kvs // block_size)
    best = worth.gather(-1, order)[..., ::block_size].contiguous()  # [L, H, groups]
    counts = valid.sum(-1, keepdim=True)
    starts = torch.arange(groups, device=scores.device) * block_size
    sizes = (counts - starts).clamp(0, block_size)
    blocks = -(-budget // block_size)
    sure = int(rule.head_floor * blocks / (layers * heads))
    best[..., :sure].clamp_min_(torch.finfo(best.dtype).max)
    for layer in rule.control_layers:
        best[layer] = torch.inf
    rows, shares = _shares(rule.budget, blocks, layers, heads)
    taken = _best(best.view(rows, -1), sizes.view(rows, -1), shares * block_size)
    kept = (sizes * taken.view_as(sizes)).sum(-1, keepdim=True)
    rank = torch.arange(kvs, device=scores.device).expand_as(order)
    return torch.zeros_like(valid).scatter_(-1, order, rank < kept)


def _worth(scores: Tensor, positions: Tensor, protect: Protection) -> Tensor:
    """The scores as finite numbers, with the protected ones above and the padding below all."""
    most = torch.finfo(torch.float32).max
    worth = torch.nan_to_num(scores.float(), nan=-most, posinf=most, neginf=-most)
    worth = worth.masked_fill(protect.covers(positions), torch.inf)
    return worth.masked_fill_(positions < 0, -torch.inf)


def _order(worth: Tensor, positions: Tensor) -> Tensor:
    """Best first; equals by position, however they are stored."""
    by_position = torch.where(positions >= 0, positions, torch.iinfo(torch.int64).max)
    if bool((by_position.diff(dim=-1) >= 0).all()):
        return worth.argsort(dim=-1, descending=True, stable=True)
    first = by_position.argsort(dim=-1, stable=True)
    return first.gather(-1, worth.gather(-1, first).argsort(dim=-1, descending=True, stable=True))


def _shares(rule: str, blocks: int, layers: int, heads: int) -> tuple[int, Tensor]:
    """How many rows of groups compete among themselves, and the blocks of each: int64 [rows, 1].

    What does not divide goes to the last rows, one block each: a pyramid's are the poorest.
    """
    if rule == "global":
        return 1, torch.tensor([[blocks]])
    if rule == "per-layer":
        parts = torch.full((layers,), 1 / layers, dtype=torch.float64)
    elif rule == "uniform":
        parts = torch.full((layers * heads,), 1 / (layers * heads), dtype=torch.float64)
    elif rule == "pyramid":
        last = 1 / PYRAMID
        slope = torch.linspace(2 - last, last, layers, dtype=torch.float64)
        slope = slope if layers > 1 else torch.ones(1, dtype=torch.float64)
        parts = (slope / (layers * heads)).repeat_interleave(heads)
    else:
        raise ValueError(f"unknown budget rule {rule!r}")
    shares = (parts * blocks + 1e-6).floor().long()
    shares[len(parts) - (blocks - int(shares.sum())) :] += 1
    return len(parts), shares[:, None]


def _best(best: Tensor, sizes: Tensor, limits: Tensor) -> Tensor:
    """bool as `best` [rows, groups]: each row's best while they fit, equals in order."""
    order = best.argsort(dim=-1, descending=True, stable=True)
    ranked = best.gather(-1, order)
    spent = sizes.gather(-1, order).cumsum(-1)
    fits = (spent <= limits.to(spent.device)) | (ranked == torch.inf)
    return torch.zeros_like(fits).scatter_(-1, order, fits)
