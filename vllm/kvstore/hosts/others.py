"""Lines to other hosts: kept while they serve, left alone for a while when they do not."""

from __future__ import annotations

import threading
import time
from typing import Any

from vllm.kvstore.hosts.talk import Line, PeerError, endpoint


class Others:
    """Asks hosts by ID and address. `patience`: the seconds that one has to begin an answer."""

    def __init__(self, secret: bytes, patience: float) -> None:
        self._secret, self._patience = secret, patience
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}  # that nobody uses now
        self._avoid: dict[str, float] = {}  # until when
        self.errors = 0

    def may(self, ident: str) -> bool:
        """Whether it has not failed just now."""
        with self._lock:
            return time.monotonic() >= self._avoid.get(ident, 0.0)

    def ask(
        self, ident: str, address: str, header: dict[str, Any], *payload: Any
    ) -> tuple[dict[str, Any], memoryview] | None:
        """Its answer. None: there is none, and it is not asked again for a while."""
        with self._lock:
            line = self._lines.pop(ident, None)
        used = line is not None
        while True:
            try:
                if line is None:
                    line = Line.connect(endpoint("a host", address), self._secret, self._patience)
                line.send(header, *payload)
                reply = line.receive()
            except (PeerError, ValueError):
                if line is not None:
                    line.close()
                line = None
                if used:  # it may have been idle for too long: once more on a new one
                    used = False
                    continue
                with self._lock:
                    self.errors += 1
                    self._avoid[ident] = time.monotonic() + self._patience + 1
                    if len(self._avoid) > 1024:
                        self._avoid.clear()
                return None
            with self._lock:
                spare, self._lines[ident] = self._lines.get(ident), line
            if spare is not None:
                spare.close()
            return reply

    def close(self) -> None:
        with self._lock:
            for line in self._lines.values():
                line.close()
            self._lines.clear()
