"""The one piece of memory that holds all KVs on the device; the room's only file with torch."""

from __future__ import annotations

import torch

from vllm.kv.spec import KVSpec


class ArenaIO:
    """`core.plan.BlockIO` over an arena in memory that the processor can address."""

    def __init__(self, kv: torch.Tensor) -> None:
        self._bytes = kv.flatten(1).view(torch.uint8).numpy()

    def view(self, block: int) -> memoryview:
        return memoryview(self._bytes[block])


def allocate(spec: KVSpec, num_blocks: int, device: str = "cpu") -> torch.Tensor:
    """The arena, `[num_blocks, L, H, 2, B, D]`, block-major: one block is one contiguous piece.

    Its content is undefined: attention never reads a KV that was not written, and leaving it so
    lets the operating system hand out the memory as it is used.
    """
    return torch.empty(
        (num_blocks, spec.num_layers, spec.num_kv_heads, 2, spec.block_size, spec.head_dim),
        dtype=getattr(torch, spec.dtype),
        device=device,
    )
