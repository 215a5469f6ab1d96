"""A mixture of experts in place of one feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.layers.base import Layer, Linear, parameter
from vllm.model_executor.settings import Settings


def read_top(cfg: Settings, count: int, default: int | None = None) -> int:
    """Experts a token, of `count`."""
    top = cfg.count("num_experts_per_tok", default)
    if top > count:
        cfg.refuse("num_experts_per_tok", f"exceeds the {count} experts")
    return top


class Experts(Layer):
    """Each token goes through the `top` experts that its router likes best (Shazeer et al. 2017).

    `sums_to_one`: the weights of the chosen experts are scaled to sum to one. Tokens are grouped by
    expert, so an expert's weights are read once a step; what a token gets does not depend on the
    order of the others, because each token sums its own experts in the router's order.
    """

    def __init__(
        self,
        ops: Ops,
        hidden: int,
        inner: int,
        count: int,
        top: int,
        sums_to_one: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.ops, self.count, self.top, self.sums_to_one = ops, count, top, sums_to_one
        self.router = Linear(ops, hidden, count, False, dtype)
        self.gate_up = parameter(count, 2 * inner, hidden, dtype=dtype)
        self.down = parameter(count, hidden, inner, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, E] -> [T, E]."""
        chances = self.router(x).softmax(-1, dtype=torch.float32)
        share, chosen = chances.topk(self.top, dim=-1)  # [T, top]
        if self.sums_to_one:
            share = share / share.sum(-1, keepdim=True)
        ops, flat = self.ops, chosen.flatten()  # pair p is token p // top
        order = flat.argsort(stable=True)  # pairs by expert
        grouped = x[order // self.top]
        made = torch.empty_like(grouped)
        start = 0
        for expert, size in enumerate(flat.bincount(minlength=self.count).tolist()):
            if size:
                some = slice(start, start + size)
                wide = ops.silu_and_mul(ops.linear(grouped[some], self.gate_up[expert], None))
                made[order[some]] = ops.linear(wide, self.down[expert], None)
                start += size
        pairs = made.view(-1, self.top, x.shape[1])
        return (pairs * share.to(x.dtype).unsqueeze(-1)).sum(1)

    def targets(self, gate: str, up: str, down: str) -> dict[str, Tensor]:
        """What a checkpoint gives, given its names of an expert's three weights."""
        views = self.router.rows(["gate"], [])
        for expert in range(self.count):
            first, second = self.gate_up[expert].chunk(2)
            views |= {
                f"experts.{expert}.{gate}.weight": first,
                f"experts.{expert}.{up}.weight": second,
                f"experts.{expert}.{down}.weight": self.down[expert],
            }
        return views
