"""The one piece of memory that holds all KVs on the device; the room's only file with torch."""

from __future__ import annotations

import ctypes
import mmap

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


def give_back(kv: torch.Tensor) -> None:
    """Return the arena's pages to the system; its address stays, its content is undefined.

    They come back, as zeros, when they are next written. Raises OSError.
    """
    start, size = kv.data_ptr(), kv.untyped_storage().nbytes()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= last:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    advice = (ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
    if libc.madvise(*advice) != 0:
        raise OSError(ctypes.get_errno(), "madvise failed")
