"""Self-attention over the arena, for every family."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.kernels import HeadBatch, Ops, head_blocks
from vllm.model_executor.forward import Forward
from vllm.model_executor.layers.base import Layer, Linear, parameter


class Attention(Layer):
    """Fused q, k and v, rotary embedding when the model has one, KV write, attention, output.

    Grouped queries (Ainslie et al. 2023, GQA) when there are fewer KV heads than query heads; a
    sliding window (Beltagy et al. 2020) when `window` > 0; an RMS norm of each query and key head
    (Henry et al. 2020, QKNorm; as Qwen3 does it) when `norm_eps` is given.
    """

    def __init__(
        self,
        ops: Ops,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        layer: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        window: int = 0,
        norm_eps: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.layer = layer
        self.sizes = [heads, kv_heads, kv_heads]
        self.grid = (-1, sum(self.sizes), head_dim)
        self.width = heads * head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window
        self.norm_eps = norm_eps
        self.qkv = Linear(ops, hidden, sum(self.sizes) * head_dim, qkv_bias, dtype)
        self.out = Linear(ops, self.width, hidden, out_bias, dtype)
        if norm_eps is not None:
            self.q_norm = parameter(head_dim, dtype=dtype)
            self.k_norm = parameter(head_dim, dtype=dtype)

    def forward(self, x: Tensor, kv: Tensor, step: Forward, cos_sin: Tensor | None) -> Tensor:
        """x [T, E]; kv [N, H, 2, B, D], this layer of the arena; cos_sin: see `ops.rotary`."""
        ops = self.ops
        q, k, v = self.qkv(x).view(self.grid).split_with_sizes(self.sizes, 1)
        if self.norm_eps is not None:
            q = ops.rms_norm(q, self.q_norm, self.norm_eps)
            k = ops.rms_norm(k, self.k_norm, self.norm_eps)
        if cos_sin is not None:
            ops.rotary(step.positions, q, k, cos_sin)
        if step.capture is not None:
            step.capture.take(q)
        if step.heads is not None:
            return self.out(self._both(q, k, v, kv, step, step.heads).view(-1, self.width))
        ops.write_kv(kv, k, v, step.dense.slots)
        mixed = ops.attention(q, kv, step.dense, self.scale, self.window)
        return self.out(mixed.view(-1, self.width))

    def _both(
        self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, step: Forward, heads: HeadBatch
    ) -> Tensor:
        """Attention of dense and compressed sequences side by side. Returns [T, Q, D]."""
        ops, blocks, dense = self.ops, head_blocks(step.kv), len(step.dense.slots)
        slots = heads.slots[self.layer]
        ops.write_kv_heads(blocks, k[dense:], v[dense:], slots)
        tables, lengths = heads.tables[self.layer], heads.lengths[self.layer]
        compressed = ops.attention_heads(
            q[dense:], blocks, tables, heads.query_start, lengths, self.scale
        )
        if dense == 0:
            return compressed
        ops.write_kv(kv, k[:dense], v[:dense], step.dense.slots)
        ordinary = ops.attention(q[:dense], kv, step.dense, self.scale, self.window)
        return torch.cat([ordinary, compressed])

    def head_rows(self) -> list[int]:
        """Rows of q, k and v in the fused weight."""
        return [n * self.grid[2] for n in self.sizes]
