"""Every operation in plain torch: the definition that all other kernel sets are tested against.

Right on any device and in any float dtype; arithmetic is float32 inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kernels.ops import DenseBatch


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension. x [..., E], weight [E]; keeps x's dtype."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`residual += x` in place; returns the norm of the sum. x, residual [T, E]."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def rotary(positions: Tensor, q: Tensor, k: Tensor, cos_sin: Tensor) -> None:
    """Rotary position embedding in place, in the half-split (NeoX) order.

    positions int64 [T]; q [T, Q, D], k [T, H, D], rows may be strided; cos_sin float32
    [max_position, R]: R/2 cosines, then R/2 sines. Only the first R <= D dimensions turn.
    """
    half = cos_sin.shape[1] // 2
    row = cos_sin[positions].unsqueeze(1)
    cos, sin = row[..., :half], row[..., half:]
    for x in (q, k):
        a, b = x[..., :half].float(), x[..., half : 2 * half].float()
        # Both before either is written: in float32 `a` and `b` are x's own memory.
        turned = a * cos - b * sin, b * cos + a * sin
        x[..., :half], x[..., half : 2 * half] = turned[0].to(x.dtype), turned[1].to(x.dtype)


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(gate) * up` of x [T, 2*I] = [gate, up]; returns [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(x.dtype)


def write_kv(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Write the step's keys and values into one layer of the arena.

    kv [N, H, 2, B, D], a layer's view (block stride is that of all layers); k, v [T, H, D], rows
    may be strided; slots int64 [T].
    """
    size = kv.shape[3]
    block, offset = slots // size, slots % size
    kv[block, :, 0, offset] = k
    kv[block, :, 1, offset] = v


def attention(q: Tensor, kv: Tensor, batch: DenseBatch, scale: float, window: int) -> Tensor:
    """Causal attention of a step's tokens over their sequences' blocks, with the KVs written.

    q [T, Q, D], rows may be strided; kv [N, H, 2, B, D], a layer's view; Q is a multiple of H and
    query head h reads KV head h // (Q/H). window > 0: a token sees only the last `window` KVs,
    itself included. Returns [T, Q, D].
    """
    heads, size, dim = kv.shape[1], kv.shape[3], kv.shape[4]
    group = q.shape[1] // heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    starts = batch.query_start.tolist()
    for s, length in enumerate(batch.seq_lens.tolist()):
        lo, hi = starts[s], starts[s + 1]
        if lo == hi:
            continue
        blocks = batch.block_tables[s, : -(-length // size)].long()
        pages = kv[blocks].transpose(0, 1).transpose(1, 2)  # [H, 2, blocks, B, D]
        keys, values = pages.reshape(heads, 2, -1, dim)[:, :, :length].float().unbind(1)
        queries = q[lo:hi].float().view(hi - lo, heads, group, dim).permute(1, 2, 0, 3)
        scores = queries @ keys.unsqueeze(1).transpose(-1, -2) * scale  # [H, group, new, length]
        at = torch.arange(length - (hi - lo), length, device=q.device).unsqueeze(1)
        seen = torch.arange(length, device=q.device).unsqueeze(0)
        hidden = seen > at
        if window > 0:
            hidden |= seen <= at - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        mixed = weights @ values.unsqueeze(1)
        out[lo:hi] = mixed.permute(2, 0, 1, 3).reshape(hi - lo, -1, dim).to(q.dtype)
    return out


def write_kv_heads(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Write one layer's keys and values to head blocks, a place of its own for each head.

    blocks [N*L*H, 2, B, D], the arena as head blocks; k, v [T, H, D], rows may be strided;
    slots int64 [T, H].
    """
    size = blocks.shape[2]
    block, offset = slots // size, slots % size
    blocks[block, 0, offset] = k
    blocks[block, 1, offset] = v


def attention_heads(
    q: Tensor, blocks: Tensor, tables: Tensor, query_start: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`attention` where each KV head of each sequence has a table and a length of its own.

    q [T, Q, D], rows may be strided; blocks [N*L*H, 2, B, D]; tables int32 [S, H, max_blocks];
    query_start int32 [S + 1]; lengths int32 [S, H]: of a sequence with n new tokens, token i sees
    the first lengths - n + i + 1 KVs of each head. Returns [T, Q, D].
    """
    heads, size, dim = tables.shape[1], blocks.shape[2], blocks.shape[3]
    group = q.shape[1] // heads
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    starts = query_start.tolist()
    for s, of_heads in enumerate(lengths.tolist()):
        new = starts[s + 1] - starts[s]
        for h, length in enumerate(of_heads if new else ()):
            at = tables[s, h, : -(-length // size)].long()
            keys, values = blocks[at].transpose(0, 1).reshape(2, -1, dim)[:, :length].float()
            tokens = slice(starts[s], starts[s + 1]), slice(h * group, (h + 1) * group)
            queries = q[tokens].float().transpose(0, 1)
            scores = queries @ keys.T * scale  # [group, new, length]
            position = torch.arange(length - new, length, device=q.device).unsqueeze(1)
            hidden = torch.arange(length, device=q.device).unsqueeze(0) > position
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            out[tokens] = (weights @ values).transpose(0, 1).to(q.dtype)
    return out


def copy_kv(blocks: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy single KVs from slot to slot of head blocks (head block * B + offset), key and value.

    blocks [N*L*H, 2, B, D]; source, target int64 [K]. No slot is in both.
    """
    size = blocks.shape[2]
    blocks[target // size, :, target % size] = blocks[source // size, :, source % size]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`. x [T, K], weight [M, K], bias [M]; returns [T, M]."""
    return F.linear(x, weight, bias)
