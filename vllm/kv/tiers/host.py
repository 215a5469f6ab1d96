"""The host tier: one arena of slots in memory, allocated and touched before it is used."""

from __future__ import annotations

import mmap
import threading

import numpy as np

from vllm.kv.lineage import Key

PAGE = 4096


class HostTier:
    """`num_blocks` slots of `block_bytes`. A key keeps its slot from its write until it is deleted.

    The caller sees to it that no more keys are here than slots, and that a key is not deleted while
    it is read; then slots never move, and copies run without a lock.
    """

    name = "host"
    in_memory = True
    damaged = 0  # memory is trusted

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        """Raises MemoryError (or OSError) when the memory cannot be had."""
        self._memory = mmap.mmap(-1, num_blocks * block_bytes)
        self._slots = np.frombuffer(self._memory, dtype=np.uint8).reshape(num_blocks, block_bytes)
        self._slots.reshape(-1)[::PAGE] = 0  # have the pages now, not in the first transfers
        self._free = list(reversed(range(num_blocks)))
        self._slot: dict[Key, int] = {}
        self._lock = threading.Lock()

    def contains(self, keys: list[Key]) -> list[bool]:
        return [key in self._slot for key in keys]

    def read(self, key: Key, buffer: memoryview) -> bool:
        slot = self._slot.get(key)
        if slot is None:
            return False
        np.copyto(np.frombuffer(buffer, dtype=np.uint8), self._slots[slot])
        return True

    def write(self, key: Key, buffer: memoryview) -> None:
        with self._lock:
            if key in self._slot:
                return
            if not self._free:
                raise OSError("the host tier is full")
            slot = self._free.pop()
        np.copyto(self._slots[slot], np.frombuffer(buffer, dtype=np.uint8))
        self._slot[key] = slot

    def delete(self, key: Key) -> None:
        with self._lock:
            slot = self._slot.pop(key, None)
            if slot is not None:
                self._free.append(slot)

    def view(self, key: Key) -> memoryview | None:
        """The slot itself, to copy a block on to the next tier."""
        slot = self._slot.get(key)
        return None if slot is None else memoryview(self._slots[slot])

    def close(self) -> None:
        self._slot.clear()
