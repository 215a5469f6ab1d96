"""Where the content that a key names can be found now.

Today a key has one place, the device. The slower tiers add theirs here, beside it, so that one
lookup answers for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NewType

from vllm.kv.lineage import Key

BlockId = NewType("BlockId", int)


class Index:
    """Key -> device block. A key is listed from its publication until its eviction."""

    def __init__(self) -> None:
        self._device: dict[Key, BlockId] = {}

    def add(self, key: Key, block: BlockId) -> bool:
        """False, and nothing changes, when the key has a block already."""
        return self._device.setdefault(key, block) == block

    def drop(self, key: Key) -> BlockId:
        return self._device.pop(key)

    def block(self, key: Key) -> BlockId | None:
        return self._device.get(key)

    def place(self, key: Key) -> BlockId:
        """The block of a key that is on the device. KeyError when it is not."""
        return self._device[key]

    def leading(self, keys: Iterable[Key]) -> list[BlockId]:
        """The blocks of the longest leading run of keys that are on the device."""
        found: list[BlockId] = []
        for key in keys:
            block = self._device.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def __len__(self) -> int:
        return len(self._device)

    def items(self) -> Iterable[tuple[Key, BlockId]]:
        return self._device.items()
