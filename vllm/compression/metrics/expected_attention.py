"""The attention that queries to come will pay, if they are like the last ones.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
Distribution", 2025.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vllm.compression.metrics.by_queries import ByQueries
from vllm.compression.metrics.observed import Observed
from vllm.config.compression import EXPECTED_WINDOW

FUTURE = 512  # positions over which the rotation is averaged


class ExpectedAttention(ByQueries):
    """E[exp(q k)] for normal q, as a share of its head's sum, times the value's norm.

    Mean and covariance are those of the window's queries with their rotation taken off; then the
    mean rotation of the next positions is put on. The group's query heads are averaged.
    """

    window: int | None = EXPECTED_WINDOW

    def score(self, o: Observed) -> Tensor:
        heads, _, dim = o.keys.shape
        mean, spread = self._queries_to_come(o)
        mean = mean.view(heads, -1, dim)
        spread = spread.view(heads, -1, dim, dim)
        keys = o.keys.float()
        towards = torch.einsum("hgd,htd->hgt", mean, keys) * o.scale
        turned = torch.einsum("hgde,hte->hgtd", spread, keys)
        towards += torch.einsum("hgtd,htd->hgt", turned, keys) * (o.scale**2 / 2)
        share = towards.masked_fill(~o.valid[:, None], -math.inf).softmax(-1).mean(1)
        return share * o.values.float().norm(dim=-1)

    @staticmethod
    def _queries_to_come(o: Observed) -> tuple[Tensor, Tensor]:
        """Mean [Q, D] and covariance [Q, D, D] of the queries behind the sequence's end."""
        queries = o.queries.float().transpose(0, 1)  # [Q, W, D]
        if o.rotate is not None:
            queries = o.rotate(queries, -o.query_positions)
        mean = queries.mean(1)
        apart = queries - mean[:, None]
        spread = apart.transpose(1, 2) @ apart / queries.shape[1]
        if o.rotate is None:
            return mean, spread
        dim = mean.shape[-1]
        ahead = o.now + 1 + torch.arange(FUTURE, device=mean.device)
        unit = torch.eye(dim, device=mean.device)[:, None].expand(dim, FUTURE, dim)
        turn = o.rotate(unit, ahead).mean(1)  # row i: where unit vector i goes on average
        return mean @ turn, turn.T @ spread @ turn
