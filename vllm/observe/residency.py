"""How long cached blocks live, by a sample of them: vLLM's `--kv-cache-metrics`.

Of a sampled block, when it leaves the device: its lifetime (since its content was published), how
long it had not been used, and the times between its latest uses.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

USES = 4  # of a block, the latest, whose gaps are told


@dataclass(slots=True)
class Told:
    """Seconds, of blocks that were evicted since this was last taken."""

    lifetimes: list[float] = field(default_factory=list)
    idles: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class Residency:
    """Samples `share` of all keys. The keys themselves decide, so a block that comes back is
    sampled again, and two engines sample the same blocks.
    """

    def __init__(self, share: float) -> None:
        self._below = int(share * 2**32)
        self._since: dict[bytes, float] = {}
        self._uses: dict[bytes, deque[float]] = {}
        self._told = Told()

    def published(self, key: bytes, now: float) -> None:
        """On the device from now on. Of a key that is not sampled nothing is kept."""
        if int.from_bytes(key[:4], "little") < self._below:
            self._since[key] = now
            self._uses[key] = deque([now], maxlen=USES)

    def used(self, key: bytes, now: float) -> None:
        """Found by a request that looked for it."""
        uses = self._uses.get(key)
        if uses is not None:
            uses.append(now)

    def evicted(self, key: bytes, now: float) -> None:
        since = self._since.pop(key, None)
        if since is None:
            return
        uses = self._uses.pop(key)
        self._told.lifetimes.append(now - since)
        self._told.idles.append(now - uses[-1])
        self._told.gaps += [after - before for before, after in pairwise(uses)]

    def take(self) -> Told:
        told, self._told = self._told, Told()
        return told

    def __len__(self) -> int:
        return len(self._since)
