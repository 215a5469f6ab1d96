"""Feed-forward layers."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.layers.base import Layer, Linear


class GatedMLP(Layer):
    """`down(silu(gate(x)) * up(x))` with gate and up fused (Shazeer 2020, GLU variants)."""

    def __init__(self, ops: Ops, hidden: int, inner: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.silu_and_mul = ops.silu_and_mul
        self.gate_up = Linear(ops, hidden, 2 * inner, bias, dtype)
        self.down = Linear(ops, inner, hidden, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.silu_and_mul(self.gate_up(x)))
