"""Consistent hashing (Karger et al., 1997): who keeps what; few moves when hosts come and go."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable

POINTS = 64  # a host has on the ring: loads differ by about 1 / sqrt(POINTS)


class Ring:
    """Hosts on a circle, each at `POINTS` places that its name determines."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.hosts = sorted(set(hosts))
        places = sorted(
            (_place(f"{host}#{i}".encode()), host) for host in self.hosts for i in range(POINTS)
        )
        self._at = [at for at, _ in places]
        self._who = [host for _, host in places]

    def owners(self, key: bytes, count: int) -> list[str]:
        """The first `count` different hosts from the key's place on; all if there are fewer."""
        count = min(count, len(self.hosts))
        found: list[str] = []
        start = bisect.bisect_left(self._at, _place(key))
        for i in range(len(self._who)):
            if len(found) == count:
                break
            host = self._who[(start + i) % len(self._who)]
            if host not in found:
                found.append(host)
        return found


def _place(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
