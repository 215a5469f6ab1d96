"""The slower tiers: where blocks go that the device has no room for. One file a tier."""

from __future__ import annotations

from typing import Protocol

from vllm.kv.lineage import Key


class Tier(Protocol):
    """Stores blobs of one size by key. Synchronous, and called from the mover's threads.

    Whether a key is here, which key goes when there is no room, who waits for whom: none of that is
    a tier's concern (see `kv.shelf` and `kv.mover`). A tier must stand concurrent calls for
    different keys.
    """

    name: str
    in_memory: bool  # its calls copy, and never wait for a device or a network
    damaged: int  # blobs that were read so far and were not what they should be

    def contains(self, keys: list[Key]) -> list[bool]: ...

    def read(self, key: Key, buffer: memoryview) -> bool:
        """Fill the buffer. False when the key is not here, or what is here is not it, whole."""
        ...

    def write(self, key: Key, buffer: memoryview) -> None:
        """Raises OSError when it cannot be written; then nothing of it is here."""
        ...

    def delete(self, key: Key) -> None:
        """Forget the key; one that is not here is fine."""
        ...

    def close(self) -> None: ...
